"""Optimal transport between two sets of weighted points with an entropy penalty, many problems at once.

Sinkhorn's iterations in logarithms, so that no penalty is too small: what would overflow as ``exp(cost / epsilon)``
never leaves its logarithm. A problem's iterations end when its own potentials stand still, whatever others are solved
beside it, and finished problems cost nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError

LARGEST_EXPONENT = 40.0
"""Up to this cost / epsilon, ``exp`` of it keeps float32's digits, and products of matrices replace sums of exps."""


class Transport(NamedTuple):
    """What :func:`sinkhorn` found.

    Parameters
    ----------
    plan
        π: how much mass goes from each row to each column.
    row_potential, column_potential
        f and g with ``π_ij = exp((f_i + g_j − C_ij) / ε)``, in the unit of the cost.
    iterations
        How many each problem took.
    """

    plan: Float[Tensor, "*batch R S"]
    row_potential: Float[Tensor, "*batch R"]
    column_potential: Float[Tensor, "*batch S"]
    iterations: Int[Tensor, "*batch"]


def sinkhorn(
    cost: Float[Tensor, "*batch R S"],
    epsilon: float,
    rows: Float[Tensor, "*#batch R"] | None = None,
    columns: Float[Tensor, "*#batch S"] | None = None,
    *,
    row_penalty: float = math.inf,
    column_penalty: float = math.inf,
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> Transport:
    r"""The transport plan of least cost with an entropy penalty.

    .. math::
        \pi = \arg\min_\pi \langle \pi, C \rangle - \varepsilon H(\pi)
              + \rho_r \mathrm{KL}(\pi 1 \| a) + \rho_c \mathrm{KL}(\pi^\top 1 \| b)

    by the iterations ``f ← ρ_r/(ρ_r+ε) ε (log a − logsumexp_j((g_j − C_ij) / ε))`` and the same for ``g``, from
    ``g = 0``. With infinite penalties, the default, the sums of rows and columns are a and b.

    Parameters
    ----------
    cost
        C, finite; float32 or float64 (others are computed in float32).
    epsilon
        ε > 0, in the unit of the cost.
    rows, columns
        a and b, non-negative; uniform with sum 1 when ``None``.
    row_penalty, column_penalty
        ρ_r and ρ_c > 0: how much it costs to deviate from a and b ("unbalanced" transport). Infinite: no deviation.
    max_iterations
        At least 1.
    tolerance
        A problem is finished when ``Σ_i |Δf_i|`` of an iteration is below it; 0 takes all iterations.

    Returns
    -------
    Transport
        In the broadcast shape of the cost. Differentiable by its iterations.

    Raises
    ------
    InputError
        When a setting is out of range, or marginals do not fit the cost.

    References
    ----------
    Cuturi, Sinkhorn Distances, 2013, arXiv 1306.0895; Chizat et al., Scaling Algorithms for Unbalanced Optimal
    Transport Problems, 2018, arXiv 1607.05816 (the penalties).
    """
    if not (epsilon > 0 and row_penalty > 0 and column_penalty > 0 and max_iterations >= 1):
        raise InputError(
            "epsilon, the penalties and the number of iterations of a transport must be positive, not "
            f"{epsilon:g}, {row_penalty:g}, {column_penalty:g} and {max_iterations}"
        )
    batch, (height, width) = cost.shape[:-2], cost.shape[-2:]
    scaled = cost.to(torch.promote_types(cost.dtype, torch.float32)).reshape(-1, height, width) / epsilon
    log_rows = _log_marginal(rows, height, scaled, batch, "row")
    log_columns = _log_marginal(columns, width, scaled, batch, "column")
    damped_rows, damped_columns = _damping(row_penalty, epsilon), _damping(column_penalty, epsilon)

    waiting = torch.arange(len(scaled), device=scaled.device)
    going = torch.ones_like(waiting, dtype=torch.bool)
    finished: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    along_rows, along_columns = _reductions(scaled)
    u, v = torch.zeros_like(log_rows), torch.zeros_like(log_columns)
    for iteration in range(1, max_iterations + 1):
        before = u
        u = damped_rows * (log_rows - along_rows(v))
        v = damped_columns * (log_columns - along_columns(u))
        if iteration == max_iterations:
            ends = going
        elif tolerance <= 0:
            continue
        else:
            # A row without mass has the potential minus infinity in every iteration: it does not move.
            moved = epsilon * (u - before).abs().nan_to_num(0.0).sum(-1)
            ends = going & (moved < tolerance)
        count = torch.full_like(waiting, iteration)
        finished.append((waiting[ends], u[ends], v[ends], count[ends]))
        going = going & ~ends
        remaining = int(going.sum())
        if not remaining:
            break
        if 2 * remaining < len(going):
            waiting, u, v, log_rows, log_columns = (part[going] for part in (waiting, u, v, log_rows, log_columns))
            along_rows, along_columns = _reductions(scaled[waiting])
            going = torch.ones_like(waiting, dtype=torch.bool)
    order, u, v, iterations = (torch.cat(parts) for parts in zip(*finished, strict=True))
    back = order.argsort()
    u, v = u[back], v[back]
    plan = torch.exp(u.unsqueeze(-1) + v.unsqueeze(-2) - scaled)
    return Transport(
        plan.reshape(cost.shape),
        (epsilon * u).reshape(*batch, height),
        (epsilon * v).reshape(*batch, width),
        iterations[back].reshape(batch),
    )


def barycentric(plan: Float[Tensor, "*batch R S"], targets: Float[Tensor, "*batch S D"]) -> Float[Tensor, "*batch R D"]:
    """Where each row's mass arrives on average: ``diag(π 1)⁻¹ π q``; zeros for a row without mass."""
    mass = plan.sum(-1, keepdim=True)
    return (plan / mass.clamp(min=torch.finfo(plan.dtype).tiny)) @ targets


def squared_distances(x: Float[Tensor, "*batch R D"], y: Float[Tensor, "*batch S D"]) -> Float[Tensor, "*batch R S"]:
    """``‖x_i − y_j‖²`` by products of matrices, without the differences' tensor."""
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * x @ y.transpose(-1, -2)).clamp(min=0)


def _damping(penalty: float, epsilon: float) -> float:
    return 1.0 if math.isinf(penalty) else penalty / (penalty + epsilon)


def _log_marginal(
    given: Tensor | None, size: int, scaled: Tensor, batch: torch.Size, name: str
) -> Float[Tensor, "N size"]:
    if given is None:
        return scaled.new_full((len(scaled), size), -math.log(size))
    if given.shape[-1:] != (size,) or (given < 0).any():
        raise InputError(f"a {name} marginal must be {size} non-negative masses, not of shape {list(given.shape)}")
    return given.to(scaled).expand(*batch, size).reshape(-1, size).log()


def _reductions(scaled: Float[Tensor, "N R S"]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """``logsumexp_j(v_j − C_ij / ε)`` of a potential v of the columns, and the same of one of the rows."""
    if not scaled.numel() or float(scaled.detach().abs().max()) > LARGEST_EXPONENT:
        return (
            lambda v: torch.logsumexp(v.unsqueeze(-2) - scaled, -1),
            lambda u: torch.logsumexp(u.unsqueeze(-1) - scaled, -2),
        )
    kernel = torch.exp(-scaled)
    return (
        lambda v: (kernel @ v.exp().unsqueeze(-1)).squeeze(-1).log(),
        lambda u: (u.exp().unsqueeze(-2) @ kernel).squeeze(-2).log(),
    )
