"""Classes at points and on grids, whose Fréchet objective needs no distances between classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.adapt.class_metric import ClassMetric, Rule
from thrifty.core.errors import InputError


class Euclidean(ClassMetric):
    """Classes at points: embeddings of their names, numbers on an ordinal scale. The nearest to the mean point wins.

    ``Σ_i p_i ‖e_y − e_i‖² = ‖e_y‖² − 2 e_y·m + Σ_i p_i ‖e_i‖²`` with the mean ``m = Σ_i p_i e_i``.

    Parameters
    ----------
    points
        ``[N, D]``, or ``[N]`` on a line.
    labels
        Names of the classes; 0 ... N-1 by default.

    Raises
    ------
    InputError
        When a point is not finite, or the numbers of points and labels differ.
    """

    def __init__(self, points: Any, labels: Any = None) -> None:
        given = torch.as_tensor(np.asarray(points), dtype=torch.float64)
        self.points = given[:, None] if given.ndim == 1 else given
        if self.points.ndim != 2 or not len(self.points) or not torch.isfinite(self.points).all():
            raise InputError(f"points must be finite, [N, D] or [N], not {list(given.shape)} or with NaN or infinity")
        super().__init__(np.arange(len(self.points)) if labels is None else labels)
        if len(self.labels) != len(self.points):
            raise InputError(f"{len(self.labels)} class names came with {len(self.points)} points")

    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(self.points[classes], self.points, compute_mode=exact)

    def rule(self, observed: Int[Tensor, " K"], device: torch.device | str = "cpu") -> Rule:
        return _EuclideanRule(observed.to(device), self.points.to(device))

    def identifying_set(self) -> Int[Tensor, " M"]:
        if self.points.shape[1] > 1:
            return super().identifying_set()
        line = self.points[:, 0]
        return torch.tensor(sorted({int(line.argmin()), int(line.argmax())}))


class _EuclideanRule(Rule):
    def __init__(self, observed: Int[Tensor, " K"], points: Float[Tensor, "N D"]) -> None:
        super().__init__(observed, len(points))
        # About their centre, so that squares stay small beside differences.
        self.points = points - points.mean(0)
        self.squares = self.points.square().sum(1)

    def costs(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        mean = probs @ self.points[self.observed]
        spread_out = probs @ self.squares[self.observed]
        total = probs.sum(1, keepdim=True)
        return total * self.squares - 2 * mean @ self.points.T + spread_out[:, None]


class Grid(ClassMetric):
    """Classes on a grid of any dimension; the distance is the number of steps along its edges.

    The objective needs the marginals of single axes and of pairs of axes only: with ``a_j = |y_j − λ_j|`` it is the
    mean of ``Σ_j a_j² + 2 Σ_{j<k} a_j a_k``.

    Parameters
    ----------
    shape
        Points along each axis.
    labels
        Names of the classes, the last axis running fastest; 0 ... N-1 by default.

    Raises
    ------
    InputError
        When an axis has no point, or the number of labels differs from that of points.
    """

    def __init__(self, shape: Sequence[int], labels: Any = None) -> None:
        self.shape = tuple(shape)
        if not self.shape or min(self.shape) < 1:
            raise InputError(f"a grid has at least one point along each axis, not {list(self.shape)}")
        count = int(np.prod(self.shape))
        super().__init__(np.arange(count) if labels is None else labels)
        if len(self.labels) != count:
            raise InputError(f"{len(self.labels)} class names came with a grid of {count} points")
        self.points = torch.cartesian_prod(*(torch.arange(n) for n in self.shape)).reshape(count, -1)

    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        points = self.points.double()
        return torch.cdist(points[classes], points, p=1.0)

    def rule(self, observed: Int[Tensor, " K"], device: torch.device | str = "cpu") -> Rule:
        return _GridRule(observed.to(device), self.shape, self.points[observed].to(device))

    def identifying_set(self) -> Int[Tensor, " M"]:
        """Two opposite corners: every point lies on a shortest path between them. Points at equal distances from a
        corner tie, so the likeliest or first of them is predicted; with all corners observed each has its own p."""
        return torch.tensor(sorted({0, len(self) - 1}))


class _GridRule(Rule):
    def __init__(self, observed: Int[Tensor, " K"], shape: tuple[int, ...], points: Int[Tensor, "K A"]) -> None:
        super().__init__(observed, int(np.prod(shape)))
        self.shape, self.points = shape, points
        lines = [torch.arange(n, dtype=torch.float64, device=points.device) for n in shape]
        self.steps = [(line[:, None] - line).abs() for line in lines]

    def costs(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        total = probs.new_zeros(len(probs), *self.shape)
        axes = range(len(self.shape))
        for j in axes:
            marginal = probs.new_zeros(len(probs), self.shape[j]).index_add_(1, self.points[:, j], probs)
            total += self._placed(marginal @ self.steps[j].square(), (j,))
        for j, k in itertools.combinations(axes, 2):
            place = self.points[:, j] * self.shape[k] + self.points[:, k]
            flat = probs.new_zeros(len(probs), self.shape[j] * self.shape[k]).index_add_(1, place, probs)
            joint = flat.unflatten(1, (self.shape[j], self.shape[k]))
            total += 2 * self._placed(self.steps[j] @ joint @ self.steps[k], (j, k))
        return total.flatten(1)

    def _placed(self, part: Tensor, axes: tuple[int, ...]) -> Tensor:
        """A function of some axes, shaped so that it adds to one of all."""
        sizes = [n if axis in axes else 1 for axis, n in enumerate(self.shape)]
        return part.reshape(len(part), *sizes)
