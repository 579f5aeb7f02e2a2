"""Evaluations that cost something: each architecture is evaluated once, and no more of them than the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from thrifty.core.errors import InputError


class Queries:
    """Asks for objectives and keeps them.

    Parameters
    ----------
    objective
        ``objective(row)``: what an architecture is worth, higher is better.
    count
        How many architectures there are.
    budget
        How many distinct ones may be asked for.
    """

    def __init__(self, objective: Callable[[int], float], count: int, budget: int) -> None:
        self._objective, self._most = objective, min(budget, count)
        self._known: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, row: int) -> bool:
        return row in self._known

    @property
    def exhausted(self) -> bool:
        """Whether the budget is used up, or everything is known."""
        return len(self._known) >= self._most

    @property
    def history(self) -> tuple[tuple[int, float], ...]:
        """Rows with their objectives, in the order in which they were first asked for."""
        return tuple(self._known.items())

    @property
    def best(self) -> tuple[int, float]:
        """The row with the highest objective and that; of equal ones the first that was asked for."""
        row = max(self._known, key=self._known.__getitem__)
        return row, self._known[row]

    def ask(self, row: int) -> float:
        """The objective of a row; one that is known costs nothing.

        Raises
        ------
        InputError
            When it is no finite number.
        """
        if row not in self._known:
            value = float(self._objective(row))
            if not math.isfinite(value):
                raise InputError(
                    f"the objective of architecture {row} is {value}: give a failed training a low value instead"
                )
            self._known[row] = value
        return self._known[row]

    def ask_first(self, rows: Iterable[int]) -> None:
        """Asks for the first rows of an order that are not known, until the budget is used up."""
        for row in rows:
            if self.exhausted:
                return
            self.ask(int(row))
