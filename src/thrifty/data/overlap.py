"""What a search for evaluation examples in training texts takes and gives."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from thrifty.core.errors import InputError

Evaluations: TypeAlias = Sequence[str | Sequence[str]] | Mapping[str, Sequence[str | Sequence[str]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Match:
    """A training text and the evaluation example it matches best.

    Parameters
    ----------
    row
        Which training text.
    evaluation
        Name of the evaluation set; empty where only one was given.
    example
        Which example of it.
    score
        How much of the example is in the training text, in (0, 1]; 1 for an exact match.
    """

    row: int
    evaluation: str
    example: int
    score: float


@dataclass(frozen=True)
class OverlapReport:
    """What a search for evaluation examples found.

    Parameters
    ----------
    kept
        Indices of the training texts without a match, in order.
    matches
        One for each training text to drop, in order: the best match.
    shares
        For each evaluation set, the share of its examples that some training text matches.
    unchecked
        Indices of training texts of which nothing was left to compare: empty after cleaning, or shorter than an n-gram.
    unchecked_examples
        The same of evaluation examples: (set, index) each.
    """

    kept: list[int]
    matches: list[Match]
    shares: dict[str, float]
    unchecked: list[int]
    unchecked_examples: list[tuple[str, int]]

    def __str__(self) -> str:
        total = len(self.kept) + len(self.matches)
        sets = ", ".join(f"{name or 'the evaluation set'} {share:.1%}" for name, share in self.shares.items())
        return (
            f"{len(self.matches)} of {total} training texts match an evaluation example (found of {sets}); too short "
            f"to compare were {len(self.unchecked)} training texts and {len(self.unchecked_examples)} examples"
        )

    def apply(self, rows: Sequence[T]) -> list[T]:
        """The rows to keep.

        Raises
        ------
        InputError
            When they are not as many as the texts that were searched.
        """
        total = len(self.kept) + len(self.matches)
        if len(rows) != total:
            raise InputError(f"{len(rows)} rows for a report on {total} texts: give the rows that the texts came from")
        return [rows[row] for row in self.kept]


def checked(
    train: Sequence[str], evaluations: Evaluations
) -> tuple[list[str], list[tuple[str, ...]], list[tuple[str, int]]]:
    """The training texts, the examples as tuples of texts, and the set and index of each example.

    Raises
    ------
    InputError
        When something is no text, or there is no example.
    """
    if isinstance(train, str) or isinstance(evaluations, str):
        raise InputError("give lists of texts, not one text")
    texts = list(train)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"training text {row} is a {type(text).__name__}: give texts, or leave the row out")
    sets = evaluations if isinstance(evaluations, Mapping) else {"": evaluations}
    examples: list[tuple[str, ...]] = []
    names: list[tuple[str, int]] = []
    for name, members in sets.items():
        if isinstance(members, str) or not len(members):
            raise InputError(f"the evaluation set {name!r} holds no example: give a list of texts")
        for index, member in enumerate(members):
            fields = (member,) if isinstance(member, str) else tuple(member or ())
            if not fields or not all(isinstance(field, str) for field in fields):
                raise InputError(f"example {index} of the evaluation set {name!r} is no text but {member!r}")
            examples.append(fields)
            names.append((name, index))
    if not examples:
        raise InputError("there is no evaluation set: give at least one")
    return texts, examples, names


class Findings:
    """The examples that each training text matches, kept once for all texts that match for the same reason.

    Thousands of texts may share a sentence with thousands of examples; each pair of them would be too many.
    """

    def __init__(self) -> None:
        self._reasons: dict[Hashable, dict[int, float]] = {}
        self._rows: dict[int, Hashable] = {}

    def known(self, reason: Hashable) -> bool:
        """Whether the scores of a reason were given."""
        return reason in self._reasons

    def explain(self, reason: Hashable, scores: dict[int, float]) -> None:
        """Gives the score of each example that a reason stands for; none where it is no match."""
        self._reasons[reason] = scores

    def add(self, row: int, reason: Hashable) -> None:
        """Says why a training text may match."""
        self._rows[row] = reason

    def report(
        self,
        total: int,
        names: Sequence[tuple[str, int]],
        unchecked: list[int],
        unchecked_examples: Iterable[int],
    ) -> OverlapReport:
        """The report on so many training texts and the examples of these names."""
        matching = {reason: scores for reason, scores in self._reasons.items() if scores}
        best = {reason: min(scores, key=lambda at: (-scores[at], at)) for reason, scores in matching.items()}
        rows = {row: reason for row, reason in sorted(self._rows.items()) if reason in matching}
        matches = [Match(row, *names[best[why]], matching[why][best[why]]) for row, why in rows.items()]
        hit = {at for scores in matching.values() for at in scores}
        flags: dict[str, list[bool]] = {}
        for at, (name, _) in enumerate(names):
            flags.setdefault(name, []).append(at in hit)
        return OverlapReport(
            [row for row in range(total) if row not in rows],
            matches,
            {name: sum(found) / len(found) for name, found in flags.items()},
            unchecked,
            [names[at] for at in unchecked_examples],
        )
