"""Classes with distances between them, as Loki needs them: the Fréchet objective of all classes without a dense matrix.

A space gives a *rule* for its observed classes: what depends on them alone is computed once, then each batch of
probabilities costs little. A space that knows its closed form has a rule of its own; any other takes K rows of
distances.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.adapt.accumulator import Labels, as_labels, row_chunks
from thrifty.adapt.frechet import first_best, frechet_scores, spread
from thrifty.adapt.locus import largest_locus, reachable, without_the_needless
from thrifty.core.errors import InputError, nearest

_TRIANGLE_WORK = 1e9  # sums that are compared at most when the triangle inequality is checked


class Rule(ABC):
    """The Fréchet mean over N classes for fixed observed ones.

    Parameters
    ----------
    observed
        Which of the N classes the K probabilities are of.
    classes
        N.
    """

    def __init__(self, observed: Int[Tensor, " K"], classes: int) -> None:
        self.observed, self.classes = observed, classes

    @abstractmethod
    def costs(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        """``Σ_i p_i d²(y, λ_i)`` of each class, for rows that sum to one."""

    def nearest(self, probs: Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
        """The class of the lowest cost; of equal ones the likeliest, then the first."""
        parts = [self._nearest(probs[part]) for part in row_chunks(len(probs), self.width)]
        return torch.cat(parts)

    @property
    def width(self) -> int:
        """Numbers that a row takes: so many rows at a time as fit."""
        return self.classes

    def _nearest(self, probs: Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
        return first_best(self.costs(probs), spread(probs, self.observed, self.classes))


class MatrixRule(Rule):
    """The rule of squared distances ``[K, N]``."""

    def __init__(self, observed: Int[Tensor, " K"], sq_dist: Float[Tensor, "K N"]) -> None:
        super().__init__(observed, sq_dist.shape[1])
        self.sq_dist = sq_dist

    def costs(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        return frechet_scores(probs, self.sq_dist)


class ClassMetric(ABC):
    """N classes and the distances between them.

    Parameters
    ----------
    labels
        Their names, ``[N]`` integers or strings, each once.

    Raises
    ------
    InputError
        When a name occurs twice.
    """

    def __init__(self, labels: Any) -> None:
        self.labels: Labels = as_labels(labels)
        self._order = np.argsort(self.labels, kind="stable")
        names = self.labels[self._order]
        twice = np.flatnonzero(names[1:] == names[:-1])
        if len(twice):
            raise InputError(f"class {names[twice[0]].item()!r} occurs twice in the metric: each may once")

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        """Distances, not squared, from some classes to all; float64."""

    def rule(self, observed: Int[Tensor, " K"], device: torch.device | str = "cpu") -> Rule:
        """The Fréchet mean for these observed classes, on a device."""
        return MatrixRule(observed.to(device), self.rows(observed).square().to(device))

    def positions(self, labels: Any) -> Int[Tensor, " K"]:
        """Where classes are in the metric.

        Raises
        ------
        InputError
            When it knows one of them not: that one is named, and what comes near.
        """
        names = as_labels(labels)
        if (names.dtype.kind in "UO") != (self.labels.dtype.kind in "UO"):
            raise InputError(
                f"the metric knows classes like {self.labels[0].item()!r}, not like {names[0].item()!r}: give it the "
                "classes' own names"
            )
        at = np.searchsorted(self.labels, names, sorter=self._order).clip(max=len(self) - 1)
        found = self._order[at]
        missing = np.flatnonzero(self.labels[found] != names)
        if len(missing):
            name = names[missing[0]].item()
            hint = nearest(str(name), map(str, self.labels.tolist()))
            raise InputError(
                f"the metric does not know class {name!r} ({len(missing)} of {len(names)} classes are missing from its "
                f"{len(self)}): add it or leave its examples out; {hint}".rstrip("; ")
            )
        return torch.from_numpy(found)

    def locus(self, observed: Int[Tensor, " K"]) -> Bool[Tensor, " N"]:
        """The classes that some probabilities over the observed ones predict; exact, for some hundred classes."""
        return reachable(self.rows(observed).square())

    def identifying_set(self) -> Int[Tensor, " M"]:
        """Classes to observe so that every class can be predicted, none of them needless."""
        return without_the_needless(self.locus, len(self))

    def next_class(self, observed: Int[Tensor, " K"], candidates: Sequence[int] | None = None) -> int:
        """The class to label next: the one that lets the most classes be predicted; of equal ones the first.

        Raises
        ------
        InputError
            When there is none left.
        """
        return largest_locus(self.locus, observed, self._candidates(observed, candidates))

    def _candidates(self, observed: Int[Tensor, " K"], candidates: Sequence[int] | None) -> list[int]:
        known = set(observed.tolist())
        left = [y for y in (range(len(self)) if candidates is None else candidates) if y not in known]
        if not left:
            raise InputError("every class is observed already: there is none to label next")
        return left


class Distances(ClassMetric):
    """Distances given as a matrix.

    Parameters
    ----------
    distances
        ``[N, N]``, symmetric, not squared.
    labels
        Names of the classes; 0 ... N-1 by default.

    Raises
    ------
    InputError
        When it is not square, not symmetric, or holds NaN, infinity or negative numbers. A broken triangle inequality
        is a warning with the worst triple found (all are looked at up to 1,000 classes, drawn ones beyond).
    """

    def __init__(self, distances: Any, labels: Any = None) -> None:
        self.matrix = torch.as_tensor(np.asarray(distances), dtype=torch.float64)
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1] or not len(self.matrix):
            raise InputError(f"distances must be a square matrix [N, N], not {list(self.matrix.shape)}")
        super().__init__(np.arange(len(self.matrix)) if labels is None else labels)
        if len(self.labels) != len(self.matrix):
            raise InputError(f"{len(self.labels)} class names came with distances {list(self.matrix.shape)}")
        check_distances(self.matrix, self.labels)

    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        return self.matrix[classes]


def check_distances(dist: Float[Tensor, "N N"], labels: Labels) -> None:
    """Raises what :class:`Distances` does, and warns as it does."""

    def pair(mask: Tensor) -> tuple[str, float]:
        i, j = mask.nonzero()[0].tolist()
        return f"d({labels[i].item()!r}, {labels[j].item()!r})", float(dist[i, j])

    if not torch.isfinite(dist).all():
        name, value = pair(~torch.isfinite(dist))
        raise InputError(f"{name} is {value}: distances must be finite; leave classes out that nothing connects")
    if (dist < 0).any():
        raise InputError("{} is {:g}: distances can't be negative".format(*pair(dist < 0)))
    scale = float(dist.max())
    if dist.diagonal().any():
        raise InputError("{} is {:g}: a class is at distance 0 from itself".format(*pair(dist.diagonal().diag() > 0)))
    uneven = (dist - dist.T).abs() > 1e-6 * scale
    if uneven.any():
        (name, value), (i, j) = pair(uneven), uneven.nonzero()[0].tolist()
        raise InputError(f"{name} is {value:g}, but {float(dist[j, i]):g} the other way round: make them symmetric")
    worst, at = 0.0, (0, 0, 0)
    count = len(dist)
    between = np.random.default_rng(0).permutation(count)[: max(int(_TRIANGLE_WORK / count**2), 1)]
    for k in between.tolist():
        excess, place = (dist - dist[:, k, None] - dist[k]).flatten().max(0)
        if float(excess) > worst:
            worst, at = float(excess), (*divmod(int(place), count), k)
    if worst > 1e-6 * scale:
        i, j, k = at
        a, b, c = (repr(labels[y].item()) for y in (i, j, k))
        warnings.warn(
            f"the triangle inequality is broken: d({a}, {b}) = {float(dist[i, j]):g} > d({a}, {c}) + d({c}, {b}) = "
            f"{float(dist[i, k] + dist[k, j]):g}; predictions are still defined, the locus of a tree is not",
            UserWarning,
            stacklevel=3,
        )


class Complete(ClassMetric):
    """All classes equally far from each other: the Fréchet mean is the likeliest class, the usual argmax."""

    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        return 1 - torch.nn.functional.one_hot(classes, len(self)).double()

    def rule(self, observed: Int[Tensor, " K"], device: torch.device | str = "cpu") -> Rule:
        return _CompleteRule(observed.to(device), len(self))

    def locus(self, observed: Int[Tensor, " K"]) -> Bool[Tensor, " N"]:
        return torch.zeros(len(self), dtype=torch.bool).index_fill(0, observed, True)

    def identifying_set(self) -> Int[Tensor, " M"]:
        return torch.arange(len(self))

    def next_class(self, observed: Int[Tensor, " K"], candidates: Sequence[int] | None = None) -> int:
        return self._candidates(observed, candidates)[0]


class _CompleteRule(Rule):
    def costs(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        return probs.sum(1, keepdim=True) - spread(probs, self.observed, self.classes)
