"""The optimizer of HESSO: on schedule, the groups of lowest saliency fade to zero while all others are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.shrink.directions import Direction
from thrifty.shrink.group_sparse import Directions, GroupSparse
from thrifty.shrink.ranking import lowest_released, lowest_spared
from thrifty.shrink.saliency import EQUAL, CosineSign, check_criteria, group_saliency
from thrifty.shrink.zero_groups import GroupSet

Selection = Literal["exact", "released"]


def fading(step: int, duration: int) -> float:
    r"""What a redundant group is multiplied by, :math:`(D - t - 1) / (D - t)`: from its size to zero in equal parts.

    Parameters
    ----------
    step
        t, from 0 to ``duration`` - 1, at which the factor is 0.
    duration
        D.
    """
    return (duration - step - 1) / (duration - step)


def quotas(count: int, periods: int) -> list[int]:
    """How many groups go in each period: the same number in all but the last, which takes the rest."""
    return [count // periods] * (periods - 1) + [count - (periods - 1) * (count // periods)]


class SaliencySparse(GroupSparse):
    """What HESSO and HESSO-CRIC share: saliency scores, the choice of redundant groups, and how those fade.

    Parameters
    ----------
    groups, lr, direction, target, divisible
        As for :class:`~thrifty.shrink.group_sparse.GroupSparse`.
    criteria
        The weight of each saliency criterion; all five alike by default.
    cosine_sign
        See :func:`thrifty.shrink.saliency.criteria_of`.
    selection
        ``exact``: in each layer the best groups are spared, and the target is met with others. ``released``: what a
        layer must keep is given back after the choice, so that fewer groups go; see
        :func:`thrifty.shrink.ranking.lowest_released`.
    """

    remembered: ClassVar[tuple[str, ...]] = (*GroupSparse.remembered, "redundant")

    def __init__(
        self,
        groups: GroupSet,
        lr: float,
        direction: Direction | None = None,
        *,
        target: float = 0.5,
        divisible: int = 1,
        criteria: Mapping[str, float] | None = None,
        cosine_sign: CosineSign = "released",
        selection: Selection = "exact",
    ) -> None:
        super().__init__(groups, lr, direction, target=target, divisible=divisible)
        self.criteria = dict(EQUAL if criteria is None else criteria)
        check_criteria(self.criteria)
        self.cosine_sign, self.selection = cosine_sign, selection
        # A layer with no more groups than must stay is not counted.
        self.wanted = int(int(groups.units[groups.units > divisible].sum()) * min(target, 0.999))
        self.redundant: Bool[Tensor, " G"] = torch.zeros_like(self.zero)

    def scores(self, directions: Directions) -> Float[Tensor, " G"]:
        """What each group is worth now."""
        return group_saliency(self.groups, directions, self.criteria, self.cosine_sign)

    def choose(self, scores: Float[Tensor, " G"], count: int) -> Bool[Tensor, " G"]:
        """The groups that go next."""
        among = lowest_spared if self.selection == "exact" else lowest_released
        return among(scores, count, self.zero, self.groups.layer, self.groups.units, self.divisible)

    def hybrid(self, directions: Directions, step: int, duration: int) -> None:
        """One step of hybrid training: descent for all, then the redundant groups fade; at the end they are zero."""
        self.move(directions)
        factor = fading(step, duration)
        self.groups.scale_(torch.where(self.redundant, factor, 1.0).to(self.groups.sizes))
        if step == duration - 1:
            self.zero |= self.redundant
            self.redundant = torch.zeros_like(self.redundant)
        self.hold_zero()

    def plain(self, directions: Directions) -> None:
        """One step of the optimizer without anything fading."""
        self.move(directions)
        self.hold_zero()


class HESSOOptimizer(SaliencySparse):
    """Hybrid efficient structured sparse optimizer: in some periods of training, groups fade to zero.

    Parameters
    ----------
    groups, lr, direction, target, divisible, criteria, cosine_sign, selection
        As for :class:`SaliencySparse`.
    start_step
        Steps before the first period; until then it is the plain optimizer.
    pruning_steps
        Steps that all periods take together.
    periods
        How many periods. At the first step of each the groups with the lowest saliency are chosen, and they are zero
        before the next one begins.

    Raises
    ------
    InputError
        When a period would have no step.
    """

    def __init__(
        self,
        groups: GroupSet,
        lr: float,
        direction: Direction | None = None,
        *,
        start_step: int,
        pruning_steps: int,
        periods: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(groups, lr, direction, **settings)
        if start_step < 0 or periods < 1:
            raise InputError(f"start_step must be at least 0 and periods at least 1, not {start_step} and {periods}")
        if pruning_steps < periods:
            raise InputError(
                f"{periods} periods need at least as many pruning steps, not {pruning_steps}: give fewer periods"
            )
        self.start_step, self.periods, self.duration = start_step, periods, pruning_steps // periods
        self.quotas = quotas(self.wanted, periods)

    def update(self, directions: Directions, loss: Any) -> None:  # noqa: ARG002
        """One step of warm-up, of a period, or of the training that follows."""
        since = self.steps - self.start_step
        period = (since - 1) // self.duration
        if since < 1 or period >= self.periods:
            self.plain(directions)
            return
        if (since - 1) % self.duration == 0:
            self.redundant = self.choose(self.scores(directions), self.quotas[period])
        # The counter begins at 1, so that a period of D steps ends with zeros in its last but one.
        step = since % self.duration
        if bool(self.redundant.any()):
            self.hybrid(directions, step, self.duration)
        else:
            self.plain(directions)
