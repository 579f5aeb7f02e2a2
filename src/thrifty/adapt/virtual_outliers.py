"""Virtual outliers: features made up outside of a task's own, and a loss that keeps a classifier calm about them.

The regulariser of OVOR (see :mod:`thrifty.adapt.ovor`), for the last layer of any classifier on features: its energy is
to be low on the task's examples and high on the outliers.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from thrifty.core.errors import InputError, nearest
from thrifty.nets.transport import squared_distances

Centre = Literal["boundary", "origin"]
_DISTANCES = 1 << 24  # that are held at once


def local_cross_entropy(
    logits: Float[Tensor, "B C"], codes: Int[Tensor, " B"], start: int, end: int
) -> Float[Tensor, ""]:
    """Cross-entropy among the current task's classes ``start`` to ``end - 1`` alone.

    The logits of later classes are dropped and those of earlier ones are minus infinity, so their weights get no
    gradient.

    Parameters
    ----------
    logits
        Of all classes so far.
    codes
        Classes from ``start`` on.
    """
    return functional.cross_entropy(logits[:, start:end], codes - start)


def energy(logits: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """``E(z) = −logsumexp_c h(z)_c`` over the classes of the current task: low where the classifier is sure."""
    return -torch.logsumexp(logits, 1)


def vor_loss(
    id_logits: Float[Tensor, "N C"],
    ood_logits: Float[Tensor, "M C"],
    *,
    tau_in: float = -15.0,
    tau_out: float = -3.0,
    weight: float = 0.1,
    huber: bool = True,
) -> Float[Tensor, ""]:
    r"""What energies cost that are on the wrong side of their thresholds.

    .. math::
        \lambda \left( H(\mathrm{relu}(E(z_{in}) - \tau_{in})) + H(\mathrm{relu}(\tau_{out} - E(z_{out}))) \right)

    Parameters
    ----------
    id_logits, ood_logits
        Of the task's examples and of the outliers, for the task's own classes only.
    tau_in, tau_out
        Thresholds, in the unit of logits. The defaults suit a pretrained ViT-B/16; others are calibrated (see
        :func:`energy_quantiles`).
    weight
        λ.
    huber
        H is Huber's function with δ = 1, half the square below 1 and linear above; otherwise the square. The mean over
        each batch.
    """
    too_high = functional.relu(energy(id_logits) - tau_in)
    too_low = functional.relu(tau_out - energy(ood_logits))
    cost = functional.huber_loss if huber else functional.mse_loss
    return weight * (cost(too_high, torch.zeros_like(too_high)) + cost(too_low, torch.zeros_like(too_low)))


def energy_quantiles(energies: Float[Tensor, " N"], low: float = 0.05, high: float = 0.95) -> tuple[float, float]:
    """Thresholds for features other than the paper's: ``τ_in`` and ``τ_out`` at quantiles of a trained task's energies.

    Most examples are already below the first; outliers must be above what nearly no example reaches.
    """
    return float(energies.quantile(low)), float(energies.quantile(high))


def kth_distances(queries: Float[Tensor, "N D"], points: Float[Tensor, "M D"], k: int) -> Float[Tensor, " N"]:
    """Squared distance of each query to its k-th nearest point; a query that is a point counts itself as the first."""
    step = max(_DISTANCES // max(len(points), 1), 1)
    parts = [squared_distances(part, points).kthvalue(k, dim=1).values for part in queries.split(step)]
    return torch.cat(parts)


def boundary_points(features: Float[Tensor, "N D"], k: int = 50, count: int = 50) -> Int[Tensor, " S"]:
    """The examples farthest from their k-th nearest neighbour (itself counted) among directions: the outskirts."""
    unit = functional.normalize(features, dim=1)
    return kth_distances(unit, unit, k).topk(min(count, len(features))).indices


def synthesize_outliers(
    features: Float[Tensor, "N D"],
    n: int,
    *,
    k: int = 50,
    n_boundary: int = 50,
    n_offsets: int = 600,
    sigma: float = 0.1,
    center: Centre = "boundary",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n D"]:
    r"""Virtual outliers around a task's features.

    .. math:: \{ c + \sigma \epsilon_j \}, \quad \epsilon_j \sim N(0, I), \quad c \in \text{boundary points}

    of which the n with the largest distance to their k-th nearest example are kept.

    Parameters
    ----------
    features
        Of the current task's examples.
    n
        Outliers to make, at most ``n_boundary`` times ``n_offsets``; 40 for each class of the task in the paper.
    k
        K, at most N.
    n_boundary
        S.
    n_offsets
        Gaussian offsets, the same for all boundary points.
    sigma
        Their deviation, in the unit of the features.
    center
        boundary: the paper; candidates are compared with the examples as directions, as boundary points are. origin:
        the released code, which computes the boundary points and does not use them: offsets around zero, each repeated
        for every boundary point, and compared unscaled with directions.
    generator
        Where the random numbers come from.

    Raises
    ------
    InputError
        When there are fewer than ``k`` examples, or more outliers are asked for than there are candidates.
    """
    if center not in get_args(Centre):
        raise InputError(f"center {center!r} is unknown: {nearest(str(center), get_args(Centre))}")
    if not 1 <= k <= len(features):
        raise InputError(f"the k-th neighbour of {len(features)} examples can't be the {k}th: give a smaller k")
    outskirts = boundary_points(features, k, n_boundary)
    if not 1 <= n <= len(outskirts) * n_offsets:
        raise InputError(
            f"{n} outliers can't be chosen from {len(outskirts) * n_offsets} candidates: give more offsets"
        )
    offsets = torch.randn(n_offsets, features.shape[1], generator=generator).to(features) * sigma
    centres = features[outskirts] if center == "boundary" else torch.zeros_like(features[outskirts])
    candidates = (centres.unsqueeze(1) + offsets).flatten(0, 1)
    unit = functional.normalize(features, dim=1)
    compared = functional.normalize(candidates, dim=1) if center == "boundary" else candidates
    return candidates[kth_distances(compared, unit, k).topk(n).indices]
