"""Transductive few-shot classification: assignments and prototypes in turn, for thousands of episodes at once.

A method is two parts: an :class:`AssignmentStep` (whose class does each example have, given the prototypes?) and a
:class:`PrototypeStep` (where are the prototypes, given the assignments?). :class:`TransductiveSolver` alternates them
over a batch of episodes, each of which stops when its own energy no longer changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.adapt.accumulator import Labels
from thrifty.adapt.episodes import Episodes
from thrifty.adapt.points import Points, hard, unchanged, weighted_means
from thrifty.adapt.settling import settle

_NUMBERS = 1 << 22
"""Feature numbers that are solved together on a processor, some 80 episodes of 80 points with 640 features: more takes
longer. Accelerators take 32 times as many."""


class AssignmentStep(ABC):
    """Gives every point a share in each class, with the prototypes fixed."""

    def prepare(self, points: Points) -> dict[str, Tensor]:  # noqa: ARG002 (for those that need something)
        """What is computed once for each episode."""
        return {}

    def start(self, points: Points, prototypes: Float[Tensor, "T K D"]) -> Float[Tensor, "T N K"]:
        """The first assignment; that of the step itself from even shares unless a method says otherwise."""
        even = prototypes.new_full((*points.x.shape[:2], prototypes.shape[1]), 1 / prototypes.shape[1])
        return self.assign(points, prototypes, even, 0)

    @abstractmethod
    def assign(
        self, points: Points, prototypes: Float[Tensor, "T K D"], previous: Float[Tensor, "T N K"], step: int
    ) -> Float[Tensor, "T N K"]:
        """The shares, from the prototypes and the previous shares; ``step`` counts from 0."""

    def energy(
        self, points: Points, prototypes: Float[Tensor, "T K D"], assignment: Float[Tensor, "T N K"]
    ) -> Float[Tensor, " T"]:
        """What the alternation makes smaller: ``Σ_pk s_pk ‖x_p − m_k‖²`` unless a method says otherwise."""
        return (assignment * points.squared_distances(prototypes)).sum((1, 2))


class PrototypeStep(ABC):
    """Moves the prototypes, with the assignment fixed."""

    in_span: ClassVar[bool] = False
    """Whether prototypes are always sums of points with weights, so that coordinates within their span will do, and
    move so often that it pays to find these first."""

    def initial(self, points: Points) -> Float[Tensor, "T K D"]:
        """Where the prototypes are at first: the means of the support unless a method says otherwise."""
        return points.support_means()

    @abstractmethod
    def move(
        self, points: Points, prototypes: Float[Tensor, "T K D"], assignment: Float[Tensor, "T N K"]
    ) -> Float[Tensor, "T K D"]:
        """The new prototypes."""


@dataclass(frozen=True)
class SoftAssignment(AssignmentStep):
    """``s_p = softmax_k(−‖x_p − m_k‖² / temperature)``, support as given."""

    temperature: float = 1.0

    def assign(self, points: Points, prototypes: Tensor, previous: Tensor, step: int) -> Tensor:  # noqa: ARG002
        """The shares."""
        return points.clamped((-points.squared_distances(prototypes) / self.temperature).softmax(2))


@dataclass(frozen=True)
class Means(PrototypeStep):
    """Means of the points, weighted by their shares, or of those whose largest share the class has.

    Parameters
    ----------
    of_labels
        Count a point for its class only.
    """

    in_span: ClassVar[bool] = True

    of_labels: bool = False

    def move(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:  # noqa: ARG002
        """The means."""
        return weighted_means(points.x, hard(assignment) if self.of_labels else assignment)


@dataclass(frozen=True)
class Fixed(PrototypeStep):
    """Prototypes that stay the means of the support."""

    def move(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:  # noqa: ARG002
        """The same prototypes."""
        return prototypes


@dataclass(frozen=True, eq=False)
class TransductiveResult:
    """What was found for the queries of T episodes.

    Parameters
    ----------
    labels
        int64 ``[T, Nq]``.
    probabilities
        Shares of the classes, ``[T, Nq, K]``.
    prototypes
        ``[T, K, D]`` in the space in which the method compares.
    energy
        Of the last round, ``[T]``; less is better.
    rounds
        How many rounds each episode took, int64 ``[T]``.
    """

    labels: Int[Tensor, "T Nq"]
    probabilities: Float[Tensor, "T Nq K"]
    prototypes: Float[Tensor, "T K D"]
    energy: Float[Tensor, " T"]
    rounds: Int[Tensor, " T"]

    def named(self, episodes: Episodes) -> Labels:
        """The labels under the names of their classes, ``[T, Nq]``."""
        labels = self.labels.cpu().numpy()
        if episodes.names is None:
            return labels
        if episodes.names.ndim == 1:
            return episodes.names[labels]
        taken: Labels = episodes.names[torch.arange(len(labels))[:, None].numpy(), labels]
        return taken

    @staticmethod
    def joined(parts: list[TransductiveResult]) -> TransductiveResult:
        """The results of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        names = ("labels", "probabilities", "prototypes", "energy", "rounds")
        return TransductiveResult(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class TransductiveSolver:
    """Alternates the two steps over a batch of episodes.

    Parameters
    ----------
    assignment, prototype
        The parts of the method.
    rounds
        How often both steps are taken at most.
    tolerance
        An episode is done when its energy changes by no more than this share of it. ``None``: all take all rounds, and
        gradients flow through them.
    least_rounds
        Rounds that every episode takes.
    keep_classes
        Where a round leaves a class without a point, the episode keeps what it had before and is done.
    """

    assignment: AssignmentStep
    prototype: PrototypeStep
    rounds: int = 100
    tolerance: float | None = 1e-4
    least_rounds: int = 3
    keep_classes: bool = False

    def solve(self, episodes: Episodes, prepare: Callable[[Episodes], Episodes] | None = None) -> TransductiveResult:
        """Solves all episodes, as many together as memory bears.

        Parameters
        ----------
        episodes
            The tasks.
        prepare
            What is done to their features first, part by part.
        """
        bearable = _NUMBERS if episodes.support.device.type == "cpu" else 32 * _NUMBERS
        size = max(bearable // (episodes.support[0].numel() + episodes.query[0].numel()), 1)
        parts = [episodes] if len(episodes) <= size else episodes.parts(size)
        return TransductiveResult.joined([self._solve(part if prepare is None else prepare(part)) for part in parts])

    def _solve(self, episodes: Episodes) -> TransductiveResult:
        points = Points.of(episodes)
        back: Callable[[Tensor], Tensor] = unchanged
        if self.prototype.in_span and not points.x.requires_grad:
            points, back = points.compressed()
        points = replace(points, prepared=self.assignment.prepare(points))
        prototypes = self.prototype.initial(points)
        assignment = self.assignment.start(points, prototypes)
        if self.tolerance is None:
            for step in range(1, self.rounds + 1):
                prototypes = self.prototype.move(points, prototypes, assignment)
                assignment = self.assignment.assign(points, prototypes, assignment, step)
            energy = self.assignment.energy(points, prototypes, assignment)
            done = torch.full((len(episodes),), self.rounds, device=energy.device)
        else:
            prototypes, assignment, energy, done = self._until_done(points, prototypes, assignment, self.tolerance)
        shares = assignment[:, points.supports :]
        return TransductiveResult(shares.argmax(2), shares, back(prototypes), energy, done)

    def _until_done(
        self, points: Points, prototypes: Tensor, assignment: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        def update(step: int, state: tuple[Tensor, ...], points: Points) -> tuple[tuple[Tensor, ...], Tensor]:
            prototypes, assignment, energy = state
            moved = self.prototype.move(points, prototypes, assignment)
            shares = self.assignment.assign(points, moved, assignment, step)
            reached = self.assignment.energy(points, moved, shares)
            done = ((reached - energy).abs() <= tolerance * energy.abs()) & (step >= self.least_rounds)
            if not self.keep_classes:
                return (moved, shares, reached), done
            lost = (hard(shares).sum(1) == 0).any(1)
            kept = (
                torch.where(lost[:, None, None], prototypes, moved),
                torch.where(lost[:, None, None], assignment, shares),
                torch.where(lost, energy, reached),
            )
            return kept, done | lost

        energy = self.assignment.energy(points, prototypes, assignment)
        state, rounds = settle(update, (prototypes, assignment, energy), points, self.rounds, Points.take)
        return state[0], state[1], state[2], rounds
