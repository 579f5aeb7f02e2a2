"""DHSPG, the optimizer of OTOv2: groups that training would miss least are pushed to zero, and projected onto it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.shrink.directions import Direction
from thrifty.shrink.group_sparse import Directions, GroupSparse
from thrifty.shrink.ranking import lowest, rank_within
from thrifty.shrink.zero_groups import GroupSet

# lambda, amplification and the largest multiple of lambda, as the authors set them for each direction.
PENALTIES = {"sgd": (1e-3, 2.0, 10.0), "adam": (1e-2, 20.0, 1e3), "adamw": (1e-2, 20.0, 1e3)}


def redundancy(
    cosine: Float[Tensor, " G"], norm: Float[Tensor, " G"], sizes: Float[Tensor, " G"]
) -> Float[Tensor, " G"]:
    r"""How redundant each group is: :math:`\tfrac12 \hat c + \tfrac12 \hat r`, :math:`r_g = |g| / \lVert x_g \rVert`.

    c is the cosine, and the hats divide by the norm over all groups. A group is redundant when it is small, and when a
    step along the negative direction makes it smaller.

    Parameters
    ----------
    cosine
        Of the angle between the group's weights and their direction.
    norm
        Of the group's weights.
    sizes
        How many weights it has.
    """
    inverse = 1 / (norm / sizes + 1e-6)
    return 0.5 * functional.normalize(cosine, dim=0) + 0.5 * functional.normalize(inverse, dim=0)


def penalised_groups(
    score: Float[Tensor, " G"],
    count: int,
    layer: Int[Tensor, " G"],
    units: Int[Tensor, " layer"],
    divisible: int = 1,
) -> Bool[Tensor, " G"]:
    """The groups to penalise: the most redundant over all layers, then in each layer a number that leaves a multiple.

    Parameters
    ----------
    score
        Of each group, the most redundant one highest.
    count
        How many to choose over all layers.
    layer, units
        The layer of each group, and how many groups each layer has.
    divisible
        What stays in a layer is rounded to the nearest multiple of it, to one multiple at least; a layer with no more
        groups than that stays whole.
    """
    stay = torch.zeros_like(units).index_add(0, layer, (~lowest(-score, count)).to(units.dtype))
    rounded = ((stay / divisible).round().clamp(min=1).to(units.dtype) * divisible).minimum(units)
    rounded = torch.where(units <= divisible, units, rounded)
    return rank_within(layer, score, units) >= rounded[layer]


def adjusted_penalty(
    norm: Float[Tensor, " G"],
    inner: Float[Tensor, " G"],
    direction_norm: Float[Tensor, " G"],
    penalty: float,
    amplify: float,
    largest: float,
) -> Float[Tensor, " G"]:
    r"""The penalty :math:`\lambda_g` of each group, so that a step makes the group smaller and the loss too.

    .. math::
        \mathrm{lo}_g = -\langle x_g, d_g\rangle / \lVert x_g \rVert, \qquad
        \mathrm{hi}_g = -\lVert d_g \rVert^2 \lVert x_g \rVert / \langle x_g, d_g\rangle

    Where the step alone would make the group larger (:math:`\langle x_g, d_g\rangle < 0`) it is ``amplify`` times lo
    between ``penalty`` and ``largest`` times ``penalty``, and in the middle of lo and hi where that is not below hi.
    Above lo the group shrinks, below hi the loss falls to first order. The limit may be below lo: such a group grows
    all the same, and only a larger ``penalty`` helps.

    Parameters
    ----------
    norm, direction_norm
        Of the weights and of their direction.
    inner
        Their inner product.
    penalty, amplify, largest
        Constants.
    """
    low = -inner / norm
    high = -direction_norm.square() * norm / inner
    raised = (amplify * low).clamp(penalty, largest * penalty)
    raised = torch.where(raised >= high, (low + high) / 2, raised)
    return torch.where(inner < 0, raised, torch.full_like(norm, penalty))


def behind_half_space(
    inner: Float[Tensor, " G"], squared_norm: Float[Tensor, " G"], epsilon: float
) -> Bool[Tensor, " G"]:
    r"""Which groups go: :math:`\langle \hat x_g, x_g\rangle < \epsilon \lVert x_g \rVert^2`, and those that are zero.

    Parameters
    ----------
    inner
        Of the trial point and the group.
    squared_norm
        Of the group.
    epsilon
        With 0 a group has to turn round to be projected, with 0.95 it is enough that it shrinks by a twentieth.
    """
    return (inner < epsilon * squared_norm) | (squared_norm == 0)


class DHSPG(GroupSparse):
    """Dual half-space projected gradient: trains a model, and brings a given share of its groups to zero meanwhile.

    Parameters
    ----------
    groups, lr, direction, target, divisible
        As for :class:`~thrifty.shrink.group_sparse.GroupSparse`.
    tolerance
        Share of the groups that are penalised beyond the target, so that some may stay.
    start_step
        Steps before groups are chosen; until then it is the plain optimizer.
    epsilon
        Of the half-space projection.
    penalty, amplify, largest
        See :func:`adjusted_penalty`; by default the authors' values for the direction.
    project_step
        First step that projects; ``start_step`` by default.
    warm_up_steps
        Steps in which the penalty is not adjusted and nothing is projected.
    decay_norm
        ``l2``, or ``l1``: AdamW's decay of a group is then by a fixed length.
    surplus
        Whether a step may bring more groups to zero than the target: ``none`` projects only the most shrunken ones, so
        that the target is met exactly; ``released`` lets go all that qualify, up to the tolerance.

    Raises
    ------
    InputError
        When a setting is out of range.
    """

    remembered: ClassVar[tuple[str, ...]] = (*GroupSparse.remembered, "penalised")

    def __init__(
        self,
        groups: GroupSet,
        lr: float,
        direction: Direction | None = None,
        *,
        target: float = 0.5,
        tolerance: float = 0.05,
        start_step: int = 0,
        epsilon: float = 0.95,
        penalty: float | None = None,
        amplify: float | None = None,
        largest: float | None = None,
        divisible: int = 1,
        project_step: int | None = None,
        warm_up_steps: int = 0,
        decay_norm: Literal["l1", "l2"] = "l2",
        surplus: Literal["none", "released"] = "none",
    ) -> None:
        super().__init__(groups, lr, direction, target=target, divisible=divisible)
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon must lie between 0 and 1, not {epsilon:g}")
        if tolerance < 0 or start_step < 0:
            raise InputError(f"tolerance and start_step must be at least 0, not {tolerance:g} and {start_step}")
        given = (penalty, amplify, largest)
        usual = PENALTIES[self.variant]
        self.penalty, self.amplify, self.largest = (u if g is None else g for g, u in zip(given, usual, strict=True))
        self.start_step, self.warm_up_steps, self.epsilon = start_step, warm_up_steps, epsilon
        self.project_step = start_step if project_step is None else project_step
        self.decay_norm, self.surplus = decay_norm, surplus
        self.most = int(len(groups) * min(target + tolerance, 0.999))
        self.penalised: Tensor = torch.zeros_like(self.zero)

    def update(self, directions: Directions, loss: Any) -> None:  # noqa: ARG002
        """One step; see the equations above."""
        if self.steps <= self.start_step:
            self.move(directions)
            return
        parameters: Directions = dict(self.groups.parameters)
        squared = self.groups.squared_norms()
        norm, inner = squared.sqrt(), self.groups.inner(parameters, directions)
        direction_norm = self.groups.inner(directions, directions).sqrt()
        if self.steps == self.start_step + 1:
            cosine = inner / (norm * direction_norm).clamp(min=1e-8)
            score = redundancy(cosine, norm, self.groups.sizes)
            self.penalised = penalised_groups(score, self.most, self.groups.layer, self.groups.units, self.divisible)
        lr, unit = self.param_groups[0]["lr"], 1 / (norm + 1e-8)
        factor = torch.full_like(norm, self.decay)
        if self.decay_norm == "l1":
            factor = 1 - (1 - self.decay) * unit
        active = self.penalised & ~self.zero
        if int(self.zero.sum()) >= self.wanted:
            active = torch.zeros_like(active)
        warm = self.steps >= self.warm_up_steps
        penalty = (
            adjusted_penalty(norm, inner, direction_norm, self.penalty, self.amplify, self.largest)
            if warm
            else torch.full_like(norm, self.penalty)
        )
        factor = torch.where(active, factor - lr * penalty * unit, factor)
        self.move(directions, factor)
        if warm and self.steps > self.project_step:
            # The trial point factor x - lr d need not be kept: its inner product with x follows from what is known.
            trial = factor * squared - lr * inner
            self._project(active & behind_half_space(trial, squared, self.epsilon), trial / squared.clamp(min=1e-30))
        self.hold_zero()

    def _project(self, behind: Bool[Tensor, " G"], shrunk: Float[Tensor, " G"]) -> None:
        if self.surplus == "none":
            behind &= lowest(shrunk.masked_fill(~behind, torch.inf), self.wanted - int(self.zero.sum()))
        self.zero |= behind
