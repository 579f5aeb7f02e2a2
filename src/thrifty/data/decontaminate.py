"""Which training texts hold evaluation examples: exact matches after cleaning, and shared word n-grams.

Nothing is removed here: each function returns a report that names, for every text to drop, the evaluation example that
it matches. Read it before dropping: short questions can look alike and be different ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Literal, TypeAlias

from thrifty.core.errors import InputError
from thrifty.data.overlap import Evaluations, Findings, Match, OverlapReport, checked

__all__ = ["Match", "OverlapReport", "clean", "exact_overlap", "ngram_overlap", "ngrams", "shared_ngrams", "words"]

Tokenizer: TypeAlias = Callable[[str], list[str]]
_Grams: TypeAlias = frozenset[tuple[str, ...]]
_Place: TypeAlias = tuple[int, int]  # an evaluation example, and which of its texts
_Lookup: TypeAlias = dict[tuple[str, ...], list[tuple[_Place, int]]]  # where each n-gram of the examples begins


def clean(text: str) -> str:
    """A text without its non-word characters and digits, in lower case: questions that differ in numbers become equal.

    Letters with accents, underscores and characters such as ½ and ² are word characters and stay.

    References
    ----------
    Wen et al., "Light-R1", 2025, arXiv 2503.10460, section 2.2; the authors' ``character_matching.py``.
    """
    return re.sub(r"\d+", "", re.sub(r"[^\w]", "", text)).lower()


def words(text: str) -> list[str]:
    """The words of a text in lower case, parted at white space."""
    return text.lower().split()


def exact_overlap(train: Sequence[str], evaluations: Evaluations) -> OverlapReport:
    """Training texts that equal an evaluation example, as they stand or after :func:`clean`.

    Texts of which cleaning leaves nothing ("3 + 4 = ?") are compared as they stand only, and reported: cleaned, they
    would all be the same.

    Parameters
    ----------
    train
        N texts.
    evaluations
        Texts, or several named sets of them. An example of several texts (a passage and a question) matches by any.

    Raises
    ------
    InputError
        When something is no text, or there is no example.
    """
    texts, examples, names = checked(train, evaluations)
    lookup: dict[str, dict[int, float]] = {}
    for at, example in enumerate(examples):
        for text in example:
            if key := clean(text) or text:
                lookup.setdefault(key, {})[at] = 1.0
    found = Findings()
    unchecked = []
    for row, text in enumerate(texts):
        cleaned = clean(text)
        if not cleaned:
            unchecked.append(row)
        # What matches as it stands has the same cleaned form too.
        key = cleaned or text
        if key in lookup:
            found.explain(key, lookup[key])
            found.add(row, key)
    empty = [at for at, example in enumerate(examples) if not any(map(clean, example))]
    return found.report(len(texts), names, unchecked, empty)


def shared_ngrams(
    train: Sequence[str], evaluations: Evaluations, *, n: int = 32, tokenizer: Tokenizer = words
) -> OverlapReport:
    """Training texts that share at least one n-gram of words with an evaluation example.

    The score is the share of the example's distinct n-grams that the training text holds. Texts of fewer than n words
    can't match, and are reported.

    Parameters
    ----------
    train, evaluations
        As for :func:`exact_overlap`.
    n
        Words in an n-gram.
    tokenizer
        What takes a text apart.

    Raises
    ------
    InputError
        When n is below 1, something is no text, or there is no example.

    References
    ----------
    Wen et al., "Light-R1", 2025, arXiv 2503.10460, section 2.2; the authors' ``n_gram_check.py``.
    """
    texts, examples, names = checked(train, evaluations)
    _check_n(n)
    distinct = [{gram for text in example for gram in ngrams(tokenizer(text), n)} for example in examples]
    lookup: dict[tuple[str, ...], list[int]] = {}
    for at, grams in enumerate(distinct):
        for gram in grams:
            lookup.setdefault(gram, []).append(at)

    def scores(shared: _Grams) -> dict[int, float]:
        counts = Counter(at for gram in shared for at in lookup[gram])
        return {at: count / len(distinct[at]) for at, count in counts.items()}

    found, unchecked = _searched(texts, tokenizer, n, lookup, scores)
    return found.report(len(texts), names, unchecked, [at for at, grams in enumerate(distinct) if not grams])


def ngram_overlap(
    train: Sequence[str],
    evaluations: Evaluations,
    *,
    n: int = 8,
    threshold: float = 0.5,
    tokenizer: Tokenizer = words,
    repeated: Literal["every", "last"] = "every",
) -> OverlapReport:
    """Training texts that hold more than a share of an evaluation example's tokens, counted by shared n-grams.

    A token of the example counts as matched by a training text when it lies in an n-gram that the text holds too. The
    score is matched tokens by all tokens; of an example of several texts, the mean of theirs. Examples and training
    texts of fewer than n tokens can't match, and are reported.

    Parameters
    ----------
    train, evaluations
        As for :func:`exact_overlap`.
    n
        Tokens in an n-gram.
    threshold
        Scores above it are matches.
    tokenizer
        What takes a text apart. The authors search with spaCy's tokens in an index that ignores case and punctuation.
    repeated
        Where an n-gram that occurs more than once in an example counts: at every place, or at the last one only, as in
        the authors' code.

    Raises
    ------
    InputError
        When n or the threshold is out of range, something is no text, or there is no example.

    References
    ----------
    Lambert et al., "TULU 3", 2024, arXiv 2411.15124, section 3.2; the authors' ``decontamination/search.py``.
    """
    texts, examples, names = checked(train, evaluations)
    _check_n(n)
    if not 0 <= threshold < 1:
        raise InputError(f"threshold must be within [0, 1), not {threshold:g}")
    tokens = [[tokenizer(text) for text in example] for example in examples]
    lookup = _places(tokens, n, repeated)

    def scores(shared: _Grams) -> dict[int, float]:
        shares = _matched_shares(shared, lookup, tokens, n)
        return {at: share for at, share in shares.items() if share > threshold}

    found, unchecked = _searched(texts, tokenizer, n, lookup, scores)
    short = [at for at, fields in enumerate(tokens) if all(len(field) < n for field in fields)]
    return found.report(len(texts), names, unchecked, short)


def ngrams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """The runs of n tokens, in order."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def _searched(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    n: int,
    lookup: Container[tuple[str, ...]],
    scores: Callable[[_Grams], dict[int, float]],
) -> tuple[Findings, list[int]]:
    """What the texts share with the examples' n-grams, and which texts are too short to share any."""
    found, unchecked = Findings(), []
    for row, text in enumerate(texts):
        tokens = tokenizer(text)
        if len(tokens) < n:
            unchecked.append(row)
        shared = frozenset(gram for gram in ngrams(tokens, n) if gram in lookup)
        if not found.known(shared):
            found.explain(shared, scores(shared))
        found.add(row, shared)
    return found, unchecked


def _matched_shares(
    shared: _Grams, lookup: _Lookup, tokens: Sequence[Sequence[Sequence[str]]], n: int
) -> dict[int, float]:
    """For each example, the share of its tokens that lie in one of the n-grams; the mean over its texts."""
    matched: dict[_Place, set[int]] = {}
    for gram in shared:
        for place, start in lookup[gram]:
            matched.setdefault(place, set()).update(range(start, start + n))
    scores: dict[int, float] = {}
    for (at, field), positions in matched.items():
        scores[at] = scores.get(at, 0.0) + len(positions) / len(tokens[at][field]) / len(tokens[at])
    return scores


def _places(tokens: Sequence[Sequence[Sequence[str]]], n: int, repeated: str) -> _Lookup:
    """Where each n-gram of the examples begins."""
    lookup: _Lookup = {}
    for at, fields in enumerate(tokens):
        for field, pieces in enumerate(fields):
            starts: dict[tuple[str, ...], list[int]] = {}
            for start, gram in enumerate(ngrams(pieces, n)):
                starts.setdefault(gram, []).append(start)
            for gram, all_of_them in starts.items():
                taken = all_of_them[-1:] if repeated == "last" else all_of_them
                lookup.setdefault(gram, []).extend(((at, field), start) for start in taken)
    return lookup


def _check_n(n: int) -> None:
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}")
