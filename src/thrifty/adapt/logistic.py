"""Multinomial logistic regression of many small problems at once, by Newton's method on their Gram matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

HALVINGS = 12
"""Step sizes 1, 1/2, ... that are tried for a Newton step."""


class Logistic(NamedTuple):
    """A fitted linear classifier for each problem.

    Parameters
    ----------
    weight, bias
        Logits are ``x @ weight.T + bias``.
    """

    weight: Float[Tensor, "*T K D"]
    bias: Float[Tensor, "*T K"]

    def __call__(self, x: Float[Tensor, "*T Q D"]) -> Float[Tensor, "*T Q K"]:
        """The logits."""
        return x @ self.weight.transpose(-1, -2) + self.bias.unsqueeze(-2)


def fit_logistic(
    points: Float[Tensor, "*T N D"],
    targets: Float[Tensor, "*T N K"],
    strength: float = 1.0,
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-5,
) -> Logistic:
    r"""The classifier of scikit-learn's ``LogisticRegression(C=strength)`` for each of T problems.

    .. math::
        \min_{W, b} \; \tfrac12 \|W\|^2 + C \sum_n \mathrm{CE}(W x_n + b, y_n)

    The solution is ``W = Aᵀ X`` with ``A = C (Y − softmax)``, so Newton's steps, by conjugate gradients, are taken in
    the ``N x K`` numbers A and the biases: the length of a feature vector does not matter.

    Parameters
    ----------
    points
        X, N examples of each problem.
    targets
        Y: their classes, one-hot or as shares that sum to 1.
    strength
        C > 0, the inverse of the penalty.
    max_iterations
        Newton steps at most.
    tolerance
        Steps end when the objective can gain less than this in every problem.
    """
    problems, (count, classes) = targets.shape[:-2], targets.shape[-2:]
    x, y = points.reshape(-1, count, points.shape[-1]), targets.reshape(-1, count, classes)
    gram = x @ x.transpose(1, 2)
    a, bias = torch.zeros_like(y), torch.zeros_like(y[:, 0])

    def inner(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
        return (left[0] * (gram @ right[0])).sum((1, 2)) + (left[1] * right[1]).sum(1)

    for _ in range(max_iterations):
        logits = gram @ a + bias.unsqueeze(1)
        p = logits.softmax(-1)
        downhill = strength * (y - p) - a, strength * (y - p).sum(1)

        def curvature(step: tuple[Tensor, Tensor], p: Tensor = p) -> tuple[Tensor, Tensor]:
            change = gram @ step[0] + step[1].unsqueeze(1)
            bent = strength * (p * change - p * (p * change).sum(-1, keepdim=True))
            return step[0] + bent, bent.sum(1)

        step = _conjugate_gradients(curvature, downhill, inner, count * classes + classes)
        gain = inner(downhill, step)
        if not (gain > tolerance).any():
            break
        size = _step_size(gram, a, step, logits, y, strength, gain)
        a, bias = a + size.view(-1, 1, 1) * step[0], bias + size.view(-1, 1) * step[1]
    weight = (a.transpose(1, 2) @ x).reshape(*problems, classes, -1)
    return Logistic(weight, bias.reshape(*problems, classes))


def _conjugate_gradients(
    operator: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]],
    right: tuple[Tensor, Tensor],
    inner: Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Solves ``operator(found) = right`` for each problem, where the operator is symmetric under ``inner``."""
    found = torch.zeros_like(right[0]), torch.zeros_like(right[1])
    residual = direction = right
    square = first = inner(right, right)
    for _ in range(steps):
        image = operator(direction)
        along = inner(direction, image)
        size = torch.where(along > 0, square / along, 0.0)
        found = _plus(found, direction, size)
        residual = _plus(residual, image, -size)
        after = inner(residual, residual).clamp(min=0)
        if not (after > 1e-6 * first).any():  # a thousandth of the length: the next Newton step mends the rest
            break
        direction = _plus(residual, direction, torch.where(square > 0, after / square, 0.0))
        square = after
    return found


def _plus(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
    return left[0] + size.view(-1, 1, 1) * right[0], left[1] + size.view(-1, 1) * right[1]


def _step_size(
    gram: Tensor, a: Tensor, step: tuple[Tensor, Tensor], logits: Tensor, y: Tensor, strength: float, gain: Tensor
) -> Float[Tensor, " T"]:
    """The largest of 1, 1/2, 1/4, ... that lowers the objective enough; 0 where none does."""
    sizes = 0.5 ** torch.arange(HALVINGS, dtype=a.dtype, device=a.device)
    change = gram @ step[0]
    along, square = (a * change).sum((1, 2)), (step[0] * change).sum((1, 2))
    tried = logits + sizes.view(-1, 1, 1, 1) * (change + step[1].unsqueeze(1))
    fits = -(y * functional.log_softmax(tried, -1)).sum((2, 3))
    now = -(y * functional.log_softmax(logits, -1)).sum((1, 2))
    s = sizes.view(-1, 1)
    lowered = s * along + 0.5 * s.square() * square + strength * (fits - now)
    enough = lowered <= -1e-4 * s * gain
    return torch.where(enough.any(0), sizes[enough.int().argmax(0)], 0.0)
