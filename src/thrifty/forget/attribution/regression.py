"""Linear regression of many outputs on which examples a model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Penalties that are chosen among, as shares of the largest eigenvalue (ridge) or of the penalty at which every
# coefficient is zero (LASSO).
RIDGE_PATH = tuple(10.0**-power for power in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0))
LASSO_PATH = tuple(0.7**power for power in range(0, 21, 2))

Regression = Literal["lasso", "ridge", "least-squares"]


class Fit(NamedTuple):
    """Coefficients, [N, O], and the penalties that they were found with: one number, or one an output, [O]."""

    coefficients: Tensor
    penalty: Tensor


def centred(masks: Float[Tensor, "models examples"]) -> Float[Tensor, "models examples"]:
    """Without the mean of each column, which stands for an intercept that is not penalised."""
    return masks - masks.mean(0, keepdim=True)


def ridge(
    masks: Float[Tensor, "models examples"],
    outputs: Float[Tensor, "models outputs"],
    path: tuple[float, ...] = RIDGE_PATH,
) -> Fit:
    r"""Ridge regression with an intercept, :math:`\min_W \tfrac1M \|Y - X W - b\|^2 + \lambda \|W\|^2`.

    The penalty is the one of the path whose leave-one-out error over all outputs is smallest; for a linear smoother
    that error has a closed form, so that one singular value decomposition gives them all.

    Parameters
    ----------
    masks
        1 where an example was among a model's training data.
    outputs
        What the models say.
    path
        Penalties, as shares of the largest eigenvalue of the masks' covariance.
    """
    x, y = centred(masks), centred(outputs)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    seen = u.mT @ y
    best, least = torch.zeros(()), torch.tensor(torch.inf)
    for penalty in torch.tensor(path, dtype=s.dtype, device=s.device) * s[0].square():
        kept = s.square() / (s.square() + penalty)
        leverage = 1 / len(x) + u.square() @ kept
        error = ((y - u @ (kept[:, None] * seen)) / (1 - leverage).clamp(min=1e-9)[:, None]).square().mean()
        if error < least:
            best, least = penalty, error
    found: Tensor = vt.mT @ ((s / (s.square() + best))[:, None] * seen)
    return Fit(found, best / len(x))


def soft_threshold(
    values: Float[Tensor, "examples outputs"], penalty: Float[Tensor, " outputs"] | Float[Tensor, ""]
) -> Float[Tensor, "examples outputs"]:
    """Values moved towards zero by the penalty, those within it to zero."""
    return values.sign() * (values.abs() - penalty).clamp(min=0)


def lasso_path(
    masks: Float[Tensor, "models examples"],
    outputs: Float[Tensor, "models outputs"],
    penalties: Float[Tensor, "steps outputs"],
    iterations: int = 100,
) -> Float[Tensor, "steps examples outputs"]:
    r"""LASSO with an intercept, :math:`\min_w \tfrac{1}{2M} \|y - X w - b\|^2 + \lambda \|w\|_1`, of all outputs.

    Accelerated proximal gradient descent (FISTA) on the Gram matrix; each penalty begins where the one before ended.

    Parameters
    ----------
    masks
        1 where an example was among a model's training data.
    outputs
        What the models say.
    penalties
        From large to small, each output its own.
    iterations
        For each penalty.
    """
    x, y = centred(masks), centred(outputs)
    gram, moment = x.mT @ x / len(x), x.mT @ y / len(x)
    rate = 1 / torch.linalg.matrix_norm(gram, 2)
    w = torch.zeros_like(moment)
    found = []
    for penalty in penalties:
        ahead, pace = w, 1.0
        for _ in range(iterations):
            moved = soft_threshold(ahead - rate * (gram @ ahead - moment), rate * penalty)
            faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            ahead, w, pace = moved + (pace - 1) / faster * (moved - w), moved, faster
        found.append(w)
    return torch.stack(found)


def largest_penalty(
    masks: Float[Tensor, "models examples"], outputs: Float[Tensor, "models outputs"]
) -> Float[Tensor, " outputs"]:
    """The smallest penalty at which every coefficient of an output is zero."""
    return (centred(masks).mT @ centred(outputs)).abs().amax(0) / len(masks)


def lasso(
    masks: Float[Tensor, "models examples"],
    outputs: Float[Tensor, "models outputs"],
    path: tuple[float, ...] = LASSO_PATH,
    held_out: float = 0.2,
    iterations: int = 100,
) -> Fit:
    """LASSO whose penalty is chosen for each output by the error on held-out models, then fitted to all of them.

    Parameters
    ----------
    masks
        1 where an example was among a model's training data.
    outputs
        What the models say.
    path
        Penalties from large to small, as shares of the smallest one at which nothing is left.
    held_out
        Share of the models that are held out: the last.
    iterations
        As for :func:`lasso_path`.
    """
    shares = torch.tensor(path, dtype=masks.dtype, device=masks.device)[:, None]
    first = max(2, len(masks) - max(1, round(held_out * len(masks))))
    seen_masks, seen = masks[:first], outputs[:first]
    tried = lasso_path(seen_masks, seen, shares * largest_penalty(seen_masks, seen), iterations)
    said = (masks[first:] - seen_masks.mean(0)) @ tried + seen.mean(0)
    best = (said - outputs[first:]).square().mean(1).argmin(0)
    chosen = shares[:, 0][best] * largest_penalty(masks, outputs)
    # Down the path again, each output no further than to its own penalty.
    stops = torch.maximum(shares * largest_penalty(masks, outputs), chosen)
    return Fit(lasso_path(masks, outputs, stops, iterations)[-1], chosen)


def least_squares(masks: Float[Tensor, "models examples"], outputs: Float[Tensor, "models outputs"]) -> Fit:
    """Least squares with an intercept; of many solutions, the smallest. Arguments as for :func:`ridge`."""
    # Parts of one size are linearly dependent, which rounding must not turn into large coefficients.
    return ridge(masks, outputs, path=(1e-7,))


FITS: Mapping[Regression, Callable[[Tensor, Tensor], Fit]] = {
    "lasso": lasso,
    "ridge": ridge,
    "least-squares": least_squares,
}
