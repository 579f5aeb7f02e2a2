"""Tokenizers of a few words or characters, for small decoders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"
_TURNS = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
_NAMED_TURNS = (
    "{% for message in messages %}{{ message['role'].title() + ': ' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
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
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, chat_template=_TURNS)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of words with spaces between them; every turn begins with its speaker and has an end.

    Parameters
    ----------
    words
        The vocabulary, apart from the ends, the padding and what stands for other words.
    """
    from tokenizers import pre_tokenizers

    core = _core([PAD, END, UNKNOWN, *words], UNKNOWN)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False,
        chat_template=_NAMED_TURNS,
    )  # fmt: skip


def _core(words: Iterable[str], unknown: str) -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
