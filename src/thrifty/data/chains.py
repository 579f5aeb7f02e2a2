"""Sums of several numbers, taken step by step: problems of a known difficulty with a program that can teach them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thrifty.core.errors import InputError
from thrifty.data.tasks import Problem, Split, in_split, parse_integer

_TERM = re.compile(r"([+-]?) ?(\d+)")


@dataclass(frozen=True)
class Chains:
    """Chains of additions and subtractions, such as ``3 + 4 - 2``; the more operations, the harder.

    No partial result is negative. Which split a chain is in depends on its numbers.

    Parameters
    ----------
    least, most
        Operations in a chain, each number of them as likely.
    largest
        Numbers are 1 to this.
    style
        ``sentence`` ("What is 3 + 4 - 2?", answered "3 + 4 = 7. 7 - 2 = 5. The answer is 5."), or ``short``
        ("3+4-2=", answered "7,5").

    Raises
    ------
    InputError
        When not ``1 <= least <= most`` and ``largest >= 2``.
    """

    least: int = 1
    most: int = 4
    largest: int = 9
    style: Literal["sentence", "short"] = "sentence"

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.largest < 2:
            raise InputError(
                f"expected 1 <= least <= most and largest >= 2, not {self.least}, {self.most} and {self.largest}"
            )

    @property
    def name(self) -> str:
        """``chains``."""
        return "chains"

    def problems(self, n: int, seed: int, split: Split = "train") -> list[Problem]:
        """``n`` different problems; the same for the same seed, and none in both splits.

        Raises
        ------
        InputError
            If there are not that many to be found.
        """
        found: dict[str, None] = {}
        for tries, text in enumerate(self._stream(np.random.default_rng(seed))):
            if len(found) == n or tries > 100 * n + 1000:
                break
            if in_split(text, split):
                found[text] = None
        if len(found) < n:
            raise InputError(f"only {len(found)} different chains were found, {n} were asked for: allow larger ones")
        return [self._state(text) for text in found]

    def score(self, problem: Problem, completion: str) -> float:
        """1 if the last integer of the completion is the answer, else 0."""
        return float(parse_integer(completion) == int(problem.answer))

    def solution(self, problem: Problem, slips: float = 0.0, draw: np.random.Generator | None = None) -> str:
        """The steps that lead to the answer, as a teacher writes them.

        Parameters
        ----------
        problem
            One of these.
        slips
            The share of steps whose result is wrong by one or two; later steps go on from it.
        draw
            Where the slips come from.
        """
        terms = _terms(problem.id)
        total, steps = terms[0], []
        for number in terms[1:]:
            before, total = total, total + number
            if draw is not None and draw.random() < slips:
                total = max(0, total + int(draw.choice([-2, -1, 1, 2])))
            sign = "+" if number >= 0 else "-"
            steps.append(f"{before} {sign} {abs(number)} = {total}." if self.style == "sentence" else str(total))
        return " ".join([*steps, f"The answer is {total}."]) if self.style == "sentence" else ",".join(steps)

    def _stream(self, draw: np.random.Generator) -> Iterator[str]:
        while True:
            numbers = draw.integers(1, self.largest + 1, int(draw.integers(self.least, self.most + 1)) + 1)
            total, text = int(numbers[0]), str(numbers[0])
            for number in map(int, numbers[1:]):
                minus = number <= total and draw.random() < 0.5
                total += -number if minus else number
                text += f" {'-' if minus else '+'} {number}"
            yield text

    def _state(self, text: str) -> Problem:
        prompt = f"What is {text}?" if self.style == "sentence" else f"{text.replace(' ', '')}="
        return Problem(prompt, str(sum(_terms(text))), text)


def operations(problem: Problem) -> int:
    """How many operations a chain has."""
    return len(_terms(problem.id)) - 1


def _terms(text: str) -> list[int]:
    return [-int(number) if sign == "-" else int(number) for sign, number in _TERM.findall(text)]
