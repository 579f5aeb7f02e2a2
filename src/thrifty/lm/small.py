"""Decoders small enough to be trained here in seconds, and tokenizers of a few words or characters for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"
_TURNS = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
_NAMED_TURNS = (
    "{% for message in messages %}{{ message['role'].title() + ': ' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def character_tokenizer(characters: str) -> Any:
    """A tokenizer of single characters; a prompt is its text, an answer its text and an end.

    Parameters
    ----------
    characters
        The vocabulary.
    """
    from tokenizers import Regex, decoders, pre_tokenizers

    core = _core([END, *characters], END)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(f"{END}|."), "isolated")
    core.decoder = decoders.Fuse()
    return _fast(core, eos_token=END, pad_token=END, chat_template=_TURNS)


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer of words and punctuation marks; a prompt is its text, an answer its text and an end.

    Parameters
    ----------
    texts
        The vocabulary is theirs.
    """
    from tokenizers import pre_tokenizers

    found = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)}
    core = _core([END, UNKNOWN, *sorted(found)], UNKNOWN)
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([END])
    return _fast(core, eos_token=END, pad_token=END, unk_token=UNKNOWN, chat_template=_TURNS)


def dialogue_tokenizer(words: Iterable[str]) -> Any:
    """A tokenizer of words with spaces between them; every turn begins with its speaker and has an end.

    Parameters
    ----------
    words
        The vocabulary, apart from the ends, the padding and what stands for other words.
    """
    from tokenizers import pre_tokenizers

    core = _core([PAD, END, UNKNOWN, *words], UNKNOWN)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(
        core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        chat_template=_NAMED_TURNS,
    )


def _core(words: Iterable[str], unknown: str) -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))


def _fast(core: Any, **settings: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=core, **settings)


def small_decoder(
    vocabulary: int,
    end: int,
    *,
    pad: int | None = None,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 64,
    spread: float = 0.02,
    **more: Any,
) -> Any:
    """A Llama that knows nothing, its weights drawn from the global generator.

    Parameters
    ----------
    vocabulary
        How many tokens there are.
    end, pad
        The tokens that end an answer and fill the space behind it; the same one when ``pad`` is ``None``.
    width, layers, heads
        Size of the states, how many layers, and how many attention heads in each.
    context
        Longest sequence in tokens.
    spread
        Standard deviation of the weights.
    more
        Further settings of ``LlamaConfig``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end if pad is None else pad,
        "initializer_range": spread,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | more))


def decoder_for(tokenizer: Any, **sizes: Any) -> Any:
    """The same for the vocabulary of a tokenizer."""
    return small_decoder(len(tokenizer), tokenizer.eos_token_id, pad=tokenizer.pad_token_id, **sizes)
