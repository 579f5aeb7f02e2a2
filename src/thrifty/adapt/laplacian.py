"""The two steps of clustering with a Laplacian: bound steps for the assignments; means, modes or points for prototypes.

The equations are those of arXiv 2106.09516; :mod:`thrifty.adapt.transductive_clustering` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.adapt.affinity import bandwidth, nearest_neighbours, neighbour_sum
from thrifty.adapt.points import Points, hard
from thrifty.adapt.settling import rows_of, settle
from thrifty.adapt.transductive import AssignmentStep, PrototypeStep

_MODE_STEPS, _MODE_TOLERANCE = 1000, 1e-5


def mode_cost(squared: Float[Tensor, "T N K"], sigma: Float[Tensor, " T"]) -> Float[Tensor, "T N K"]:
    """K-modes: ``d(x, m) = −exp(−‖x − m‖² / 2σ²)``."""
    return -torch.exp(-squared / (2 * sigma[:, None, None] ** 2))


def bound_step(cost: Float[Tensor, "T N K"], near: Float[Tensor, "T N K"], weight: float) -> Float[Tensor, "T N K"]:
    """``s_p ← softmax_k(−a_pk + λ Σ_q w_pq s_qk)``, all points at once; ``near`` is the sum, of the old shares."""
    return (weight * near - cost).softmax(2)


def relaxed_energy(
    cost: Float[Tensor, "T N K"], near: Float[Tensor, "T N K"], shares: Float[Tensor, "T N K"], weight: float
) -> Float[Tensor, " T"]:
    """``E(S) = Σ_p s_pᵀ ln s_p + Σ_p s_pᵀ a_p − λ Σ_pq w_pq s_pᵀ s_q``; ``near`` is the sum over q, of these shares."""
    return (torch.xlogy(shares, shares) + shares * (cost - weight * near)).sum((1, 2))


def mean_shift(
    x: Float[Tensor, "T N D"],
    norms: Float[Tensor, "T N"],
    modes: Float[Tensor, "T K D"],
    members: Float[Tensor, "T K N"],
    sigma: Float[Tensor, " T"],
) -> Float[Tensor, "T K D"]:
    """One step uphill on the density of each cluster: ``m ← Σ_p κ_p x_p / Σ_p κ_p``, κ as in :func:`mode_cost`."""
    squared = norms[:, None] - 2 * (modes @ x.mT) + modes.square().sum(2)[..., None]
    # Only ratios count: with the nearest member's kernel at 1, a far mode does not lose all its members to underflow.
    exponent = (-squared / (2 * sigma[:, None, None] ** 2)).masked_fill(members == 0, -torch.inf)
    return exponent.softmax(2).nan_to_num(0) @ x


@dataclass(frozen=True)
class LaplacianAssignment(AssignmentStep):
    """Shares by bound steps until their energy rests; one-hot rows of the nearest prototype without a Laplacian.

    Parameters
    ----------
    weight
        λ.
    neighbours, symmetric
        See :func:`thrifty.adapt.affinity.nearest_neighbours` and :func:`thrifty.adapt.affinity.neighbour_sum`.
    modes
        Whether the cost is that of modes.
    sigma
        Bandwidth of the kernel; ``None`` for that of the neighbours.
    sigma_scale
        What the latter is multiplied by.
    clamp
        Put the support back to its classes after every step.
    soft_start
        Begin with the bound steps; otherwise with the nearest support mean.
    rounds, tolerance
        Bound steps at most, and the share of its energy by which an episode may still change when it is done.
    """

    weight: float
    neighbours: int = 3
    symmetric: bool = False
    modes: bool = False
    sigma: float | None = None
    sigma_scale: float = 1.0
    clamp: bool = True
    soft_start: bool = False
    rounds: int = 600
    tolerance: float = 1e-7

    def prepare(self, points: Points) -> dict[str, Tensor]:
        """The graph and the bandwidth of each episode."""
        if not self.weight and not self.modes:
            return {}
        near, squared = nearest_neighbours(points.x, self.neighbours)
        sigma = self.sigma_scale * bandwidth(squared)
        return {"near": near, "sigma": sigma if self.sigma is None else torch.full_like(sigma, self.sigma)}

    def start(self, points: Points, prototypes: Tensor) -> Tensor:
        """The nearest support mean of each query, or the first bound steps."""
        if self.soft_start:
            return super().start(points, prototypes)
        return points.clamped(hard(-points.squared_distances(prototypes).double()))

    def assign(self, points: Points, prototypes: Tensor, previous: Tensor, step: int) -> Tensor:  # noqa: ARG002
        """The shares."""
        cost = self.cost(points, prototypes)
        if not self.weight:
            nearest_one = hard(-cost)
            return points.clamped(nearest_one) if self.clamp else nearest_one

        def update(
            number: int, state: tuple[Tensor, ...], fixed: tuple[Tensor, ...]
        ) -> tuple[tuple[Tensor, ...], Tensor]:
            (shares, near, energy), (cost, graph, given) = state, fixed
            shares = bound_step(cost, near, self.weight)
            if self.clamp:
                shares[:, : given.shape[1]] = given
            near = neighbour_sum(graph, shares, symmetric=self.symmetric)
            reached = relaxed_energy(cost, near, shares, self.weight)
            done = ((reached - energy).abs() <= self.tolerance * energy.abs()) & (number > 2)
            return (shares, near, reached), done

        first = points.clamped((-cost).softmax(2))
        unknown = torch.full((len(cost),), torch.inf, dtype=cost.dtype, device=cost.device)
        fixed: tuple[Tensor, ...] = (cost, points.prepared["near"], points.given.to(cost.dtype))
        state = (first, self.near(points, first), unknown)
        return settle(update, state, fixed, self.rounds, rows_of)[0][0]

    def near(self, points: Points, shares: Tensor) -> Float[Tensor, "T N K"]:
        """The shares of each point's neighbours, summed."""
        return neighbour_sum(points.prepared["near"], shares, symmetric=self.symmetric)

    def cost(self, points: Points, prototypes: Tensor) -> Float[Tensor, "T N K"]:
        """``d(x_p, m_k)`` in float64: the tolerance is finer than float32 can tell."""
        squared = points.squared_distances(prototypes)
        return (mode_cost(squared, points.prepared["sigma"]) if self.modes else squared).double()

    def energy(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:
        """``Σ_pk s_pk d(x_p, m_k) − λ Σ_k s_kᵀ W s_k``, without the entropy, as the outer rounds are judged."""
        found = assignment * self.cost(points, prototypes)
        if self.weight:
            found = found - self.weight * assignment * self.near(points, assignment)
        return found.sum((1, 2))


@dataclass(frozen=True)
class Modes(PrototypeStep):
    """The mode of each cluster's density, found by mean-shift from where it was."""

    in_span: ClassVar[bool] = True

    def move(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:
        """The new modes."""

        def update(_: int, state: tuple[Tensor, ...], fixed: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
            (modes, resting), (x, norms, members, sigma) = state, fixed
            moved = mean_shift(x, norms, modes, members, sigma)
            # A mode that rests stays, whatever the episode's others still do.
            moved = torch.where(resting[..., None], modes, moved)
            small = (moved - modes).abs().amax(2) < _MODE_TOLERANCE * modes.abs().amax(2)
            resting = resting | small
            return (moved, resting), resting.all(1)

        moving = torch.zeros(prototypes.shape[:2], dtype=torch.bool, device=prototypes.device)
        fixed: tuple[Tensor, ...] = (points.x, points.norms, hard(assignment).mT.contiguous(), points.prepared["sigma"])
        return settle(update, (prototypes, moving), fixed, _MODE_STEPS, rows_of)[0][0]


@dataclass(frozen=True)
class MostCertain(PrototypeStep):
    """The point with the largest share of each class ("bound-optimised" modes): a by-product of the bound steps.

    The shares are those before the support is put back to its classes, or a support point would always be the first.

    Parameters
    ----------
    assignment
        The step that gave the shares.
    """

    in_span: ClassVar[bool] = True

    assignment: LaplacianAssignment

    def move(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:
        """The points."""
        cost = self.assignment.cost(points, prototypes)
        shares = bound_step(cost, self.assignment.near(points, assignment), self.assignment.weight)
        best = shares.argmax(1)
        return points.x.gather(1, best[..., None].expand(-1, -1, points.x.shape[2]))
