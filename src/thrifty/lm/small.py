"""A decoder small enough to be trained here in seconds, and a tokenizer of whole words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

END, UNKNOWN = "<end>", "<unknown>"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer of words and punctuation marks; a prompt is its text, an answer its text and an end.

    Parameters
    ----------
    texts
        The vocabulary is theirs.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)}
    words = {word: number for number, word in enumerate([END, UNKNOWN, *sorted(found)])}
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, unk_token=UNKNOWN)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def small_decoder(tokenizer: Any, *, width: int = 64, layers: int = 2, heads: int = 4, context: int = 64) -> Any:
    """A Llama with random weights, from the global generator.

    Parameters
    ----------
    tokenizer
        Gives the vocabulary and the end.
    width, layers, heads
        Size of the states, how many layers, and how many attention heads in each.
    context
        Longest sequence in tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
