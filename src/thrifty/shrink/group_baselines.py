"""What training a model smaller is compared with: plain training, a cut by magnitude or at random, the group lasso."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.shrink.group_sparse import Directions, GroupSparse
from thrifty.shrink.hesso_optimizer import HESSOOptimizer
from thrifty.shrink.ranking import lowest_spared, rank_within
from thrifty.shrink.train_once import Plan, TrainOnce
from thrifty.shrink.zero_groups import GroupSet


class _Plain(GroupSparse):
    """The optimizer without groups."""

    def update(self, directions: Directions, loss: Any) -> None:  # noqa: ARG002
        self.wanted = 0
        self.move(directions)


class _Uniform(HESSOOptimizer):
    """Compares groups within their layer only."""

    def scores(self, directions: Directions) -> Float[Tensor, " G"]:
        groups = self.groups
        places = rank_within(groups.layer, super().scores(directions), groups.units)
        return (places + 0.5) / groups.units[groups.layer]


@dataclass(frozen=True)
class Dense(TrainOnce):
    """Plain training: nothing goes, whatever ``sparsity`` says."""

    def optimizer(self, groups: GroupSet, plan: Plan) -> GroupSparse:  # noqa: ARG002
        """SGD, Adam or AdamW."""
        return _Plain(groups, self.learning_rate, self.direction, target=self.sparsity)


@dataclass(frozen=True)
class CutThenTune(TrainOnce):
    """Trains, cuts the groups of the lowest norm (or any) at once, and trains what is left: all in one budget.

    Parameters
    ----------
    at
        Share of the training before the cut; with 1 there is none after it, with 0 none before.
    by
        ``magnitude`` of a group, its ``average_magnitude`` over its weights, or ``random``.
    uniform
        The same share of each layer, instead of those that are lowest over all layers.
    """

    at: float = 0.5
    by: Literal["magnitude", "average_magnitude", "random"] = "magnitude"
    uniform: bool = True

    def optimizer(self, groups: GroupSet, plan: Plan) -> GroupSparse:
        """HESSO's optimizer with one period of one step, which is a cut."""
        if not 0 <= self.at <= 1:
            raise InputError(f"at must lie between 0 and 1, not {self.at:g}")
        kind = _Uniform if self.uniform else HESSOOptimizer
        return kind(
            groups,
            self.learning_rate,
            self.direction,
            target=self.sparsity,
            start_step=min(round(self.at * plan.steps), plan.steps - 1),
            pruning_steps=1,
            criteria={self.by: 1.0},
        )


class ProximalGroupLasso(GroupSparse):
    r"""Proximal gradient descent on the loss and :math:`\lambda \sum_g \sqrt{|g|}\, \lVert x_g \rVert`.

    How many groups become zero depends on the penalty. At ``cut_step`` those of the lowest norm follow, or as many stay
    as may, so that the target is met in any case.

    Parameters
    ----------
    groups, lr, direction, target, divisible
        As for :class:`~thrifty.shrink.group_sparse.GroupSparse`.
    penalty
        :math:`\lambda`.
    cut_step
        The step at which the penalty ends.
    """

    def __init__(self, *args: Any, penalty: float, cut_step: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.penalty, self.cut_step = penalty, cut_step

    def update(self, directions: Directions, loss: Any) -> None:  # noqa: ARG002
        """A step of descent, and the proximal map."""
        self.move(directions)
        if self.steps <= self.cut_step:
            norm = self.groups.squared_norms().sqrt()
            shorter = self.param_groups[0]["lr"] * self.penalty * self.groups.sizes.sqrt()
            self.groups.scale_((1 - shorter / norm.clamp(min=1e-12)).clamp(min=0))
        if self.steps == self.cut_step:
            groups = self.groups
            norm = groups.squared_norms().sqrt()
            self.zero = lowest_spared(
                norm / groups.sizes.sqrt(), self.wanted, self.zero, groups.layer, groups.units, self.divisible
            )
        self.hold_zero()


@dataclass(frozen=True)
class GroupLasso(TrainOnce):
    """Trains with a penalty on the norm of each group, then cuts the groups that are zero or smallest, and goes on.

    Parameters
    ----------
    at
        Share of the training with the penalty.
    penalty
        Its weight.
    """

    at: float = 0.5
    penalty: float = 1e-3

    def optimizer(self, groups: GroupSet, plan: Plan) -> GroupSparse:
        """Proximal gradient descent."""
        return ProximalGroupLasso(
            groups,
            self.learning_rate,
            self.direction,
            target=self.sparsity,
            divisible=self.divisible,
            penalty=self.penalty,
            cut_step=max(1, min(round(self.at * plan.steps), plan.steps)),
        )


def zero_share(groups: GroupSet) -> float:
    """The share of a model's groups all of whose numbers are zero."""
    return float((groups.squared_norms() == 0).float().mean())
