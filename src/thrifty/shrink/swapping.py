"""Swaps of pruned and kept weights, all rows of a matrix at once: at most one swap of each row in a cycle.

Each row has lists of weights that may come back and of weights that may go, one for each sign of the row's error; they
are made once, as long as there are cycles, so that a cycle costs a few gathers.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.shrink.masks import NM

Accept = Literal["any", "same-sign", "falling"]


def initial_error(contribution: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> Float[Tensor, " out"]:
    r"""What the outputs lack, :math:`E_r = \sum_{j\,\text{pruned}} c_{rj}`."""
    return contribution.masked_fill(~mask, 0).sum(1)


class _Ends:
    """Of each row, columns that are taken from two ends: one for negative errors, one for positive ones.

    Parameters
    ----------
    ends
        For either end, columns in the order in which it gives them, and how many it has.
    length
        How many there are in all, where the two are the ends of one list; else ``None``.
    """

    def __init__(
        self,
        ends: tuple[tuple[Int[Tensor, "out most"], Int[Tensor, " out"]], tuple[Tensor, Tensor]],
        length: Int[Tensor, " out"] | None = None,
    ) -> None:
        (self._negative, self._most_negative), (self._positive, self._most_positive) = ends
        self._length = length
        self._below, self._above = torch.zeros_like(self._most_negative), torch.zeros_like(self._most_positive)

    def next(self, positive: Bool[Tensor, " out"]) -> tuple[Int[Tensor, " out"], Bool[Tensor, " out"]]:
        """The next column of each row, and whether there is one."""
        place = torch.where(positive, self._above, self._below)
        room = place < torch.where(positive, self._most_positive, self._most_negative)
        if self._length is not None:
            room &= self._below + self._above < self._length
        place = place.clamp(max=self._negative.shape[1] - 1)
        return torch.where(positive, _at(self._positive, place), _at(self._negative, place)), room

    def take(self, positive: Bool[Tensor, " out"], rows: Bool[Tensor, " out"]) -> None:
        """Uses up the columns that were :meth:`next` in some of the rows."""
        self._above += positive & rows
        self._below += ~positive & rows


def _cheapest(key: Float[Tensor, "out in"], among: Bool[Tensor, "out in"], most: int) -> tuple[Tensor, Tensor]:
    """The columns with the smallest keys among some, at most ``most`` of a row, and how many there are."""
    most = min(most, key.shape[1])
    columns = key.masked_fill(~among, math.inf).topk(most, dim=1, largest=False).indices
    return columns, among.sum(1).clamp(max=most)


def _one_list(order: Int[Tensor, "out in"], length: Int[Tensor, " out"]) -> _Ends:
    """The two ends of one list whose first ``length`` columns count."""
    place = (length[:, None] - 1 - torch.arange(order.shape[1], device=order.device)).clamp(min=0)
    return _Ends(((order, length), (order.gather(1, place), length)), length)


def growing(
    worth: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], most: int, *, wrong_sign: bool = False
) -> _Ends:
    """Pruned weights by what they are worth to an error of either sign; kept ones are not among them."""
    if wrong_sign:
        return _one_list(worth.masked_fill(~mask, math.inf).argsort(dim=1, stable=True), mask.sum(1))
    return _Ends((_cheapest(worth, mask & (worth < 0), most), _cheapest(-worth, mask & (worth > 0), most)))


def pruning(
    contribution: Float[Tensor, "out in"],
    cost: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    most: int,
    *,
    wrong_sign: bool = False,
) -> _Ends:
    """Kept weights by cost, cheapest first: to a negative error those that contribute positively, and vice versa."""
    above, below = ~mask & (contribution > 0), ~mask & (contribution < 0)
    if wrong_sign:
        # Positive contributions by rising cost, then those of 0, then negative ones by falling cost, pruned ones last.
        order = torch.where(contribution > 0, cost, -cost).argsort(dim=1, stable=True)
        group = (1 - contribution.sign()).masked_fill(mask, 3).gather(1, order)
        return _one_list(order.gather(1, group.argsort(dim=1, stable=True)), (~mask).sum(1))
    return _Ends((_cheapest(cost, above, most), _cheapest(cost, below, most)))


def refine(
    contribution: Float[Tensor, "out in"],
    worth: Float[Tensor, "out in"],
    cost: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    max_cycles: int,
    threshold: float,
    accept: Accept = "any",
    *,
    wrong_sign: bool = False,
) -> Bool[Tensor, "out in"]:
    """Swaps weights within each row until what it lacks is small.

    Rows that have ended stay as they are, and one whose candidates are used up ends: so each row keeps its number of
    zeros, unlike in the released code, which goes on writing into such rows.

    Parameters
    ----------
    contribution
        What each weight adds to its output, summed over a window's tokens.
    worth
        By which pruned weights come back.
    cost
        By which kept weights go, cheapest first.
    mask
        True where pruned.
    max_cycles
        Most swaps of a row.
    threshold
        A row ends when what it lacks is no more than this, before a swap.
    accept
        Whether any swap counts, one after which the error has the sign of the first, or a smaller size.
    wrong_sign
        Whether to go on with weights of the wrong sign when those of the right one are used up.

    Returns
    -------
    Tensor
        The new mask.
    """
    grow = growing(worth, mask, max_cycles, wrong_sign=wrong_sign)
    prune = pruning(contribution, cost, mask, max_cycles, wrong_sign=wrong_sign)
    mask, error = mask.clone(), initial_error(contribution, mask)
    first, active = error.sign(), torch.ones_like(error, dtype=torch.bool)
    for _ in range(max_cycles):
        positive = error > 0
        grown, can_grow = grow.next(positive)
        pruned, can_prune = prune.next(positive)
        active = active & can_grow & can_prune & (error.abs() > threshold)
        after = error + _at(contribution, pruned) - _at(contribution, grown)
        active = active & _accepted(accept, error, after, first)
        if not active.any():
            break
        _swap(mask, grown, pruned, active)
        grow.take(positive, active)
        prune.take(positive, active)
        error = torch.where(active, after, error)
    return mask


def refine_blocks(
    contribution: Float[Tensor, "out in"],
    worth: Float[Tensor, "out in"],
    score: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    n_m: NM,
    max_cycles: int,
    threshold: float,
    accept: Accept = "same-sign",
) -> Bool[Tensor, "out in"]:
    """The same with a pattern: the weight that goes is the block's cheapest kept one by ``score``, the initial score.

    Parameters are those of :func:`refine`; ``m`` of ``n_m`` is the size of a block.
    """
    m = n_m[1]
    grow = growing(worth, mask, max_cycles)
    cost = score.masked_fill(mask, math.inf)  # of what was kept at first and has not gone yet
    mask, error = mask.clone(), initial_error(contribution, mask)
    first, active = error.sign(), torch.ones_like(error, dtype=torch.bool)
    for _ in range(max_cycles):
        positive = error > 0
        grown, can_grow = grow.next(positive)
        block = (grown // m * m)[:, None] + torch.arange(m, device=mask.device)
        cheapest, place = cost.gather(1, block).min(1)
        pruned = block.gather(1, place[:, None])[:, 0]
        active = active & can_grow & torch.isfinite(cheapest) & (error.abs() > threshold)
        after = error + _at(contribution, pruned) - _at(contribution, grown)
        active = active & _accepted(accept, error, after, first)
        if not active.any():
            break
        _swap(mask, grown, pruned, active)
        grow.take(positive, active)
        cost.scatter_(1, pruned[:, None], torch.where(active, math.inf, cheapest)[:, None])
        error = torch.where(active, after, error)
    return mask


def _at(values: Float[Tensor, "out in"], column: Int[Tensor, " out"]) -> Float[Tensor, " out"]:
    return values.gather(1, column[:, None])[:, 0]


def _accepted(accept: Accept, before: Tensor, after: Tensor, first: Tensor) -> Bool[Tensor, " out"]:
    if accept == "same-sign":
        return after.sign() == first
    if accept == "falling":
        return after.abs() < before.abs()
    return torch.ones_like(before, dtype=torch.bool)


def _swap(mask: Tensor, grown: Tensor, pruned: Tensor, rows: Tensor) -> None:
    """Writes a swap into some rows of a mask."""
    for column, value in ((grown, False), (pruned, True)):
        old = mask.gather(1, column[:, None])
        mask.scatter_(1, column[:, None], torch.where(rows[:, None], torch.full_like(old, value), old))
