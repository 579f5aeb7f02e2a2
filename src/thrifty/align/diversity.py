"""How much answers differ from each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from thrifty.core.errors import InputError
from thrifty.lm.sequences import Sequences


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """The share of different n-grams among all n-grams of some texts (distinct-n); 0 where they are all shorter.

    Parameters
    ----------
    texts
        Each a sequence of words or tokens.
    n
        Length of the n-grams, at least 1.

    References
    ----------
    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv 1510.03055, section 4.2.
    """
    if n < 1:
        raise InputError(f"an n-gram has at least 1 word, not {n}")
    grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def spoken(answers: Sequences) -> list[list[int]]:
    """The tokens that the model spoke, for each answer."""
    return [ids[mask].tolist() for ids, mask in zip(answers.input_ids, answers.response_mask, strict=True)]
