"""Sums in words, for claims that compare many ways to tune one small decoder.

Every number is a word of its own, so that a few hundred steps teach what larger models know from elsewhere. Tokenizer,
templates, losses, training and sampling are those that large models get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.lm.small import dialogue_tokenizer

LARGEST = 99
_WORDS = ("User:", "Assistant:", "GPT4", "GPT3", "+", "=", "so", "um", "maybe")


def sums_tokenizer() -> Any:
    """A tokenizer whose words are numbers up to 99 and what is said around them."""
    return dialogue_tokenizer([*_WORDS, *map(str, range(LARGEST + 1))])


def asked(problem: Sequence[int]) -> str:
    """``7 + 12 + 3``."""
    return " + ".join(map(str, problem))


def last_number(text: str) -> int | None:
    """The last number that was said, or None."""
    numbers = [word for word in text.split() if word.isdecimal()]
    return int(numbers[-1]) if numbers else None


def right(problems: Sequence[Sequence[int]], texts: Sequence[str]) -> float:
    """Share of right answers; each problem may have several, one after the other."""
    each = len(texts) // len(problems)
    wanted = [sum(problem) for problem in problems for _ in range(each)]
    return sum(last_number(text) == number for text, number in zip(texts, wanted, strict=True)) / len(texts)
