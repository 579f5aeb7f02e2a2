"""A byte-level tokenizer, made here and downloaded from nowhere."""

from __future__ import annotations

from typing import Any


def make_tokenizer(*merges: str, template: str | None = None) -> Any:
    """One token a byte, and one for each of ``merges``: pairs of tokens that become one (a line end is written Ċ)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(merge.split()) for merge in merges]
    words = ["<pad>", "<|end|>", *letters, *("".join(pair) for pair in pairs)]
    core = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer
