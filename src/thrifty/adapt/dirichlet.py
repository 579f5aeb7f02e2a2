"""Dirichlet distributions of class probabilities, and their most likely parameters by majorisation-minimisation.

The densities and the iteration are those of arXiv 2405.18437 (transductive CLIP), which arXiv 2412.16739 unrolls.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.adapt.settling import rows_of, settle

EPSILON = 1e-15
_CHECK_EVERY, _TOLERANCE = 50, 1e-11
_SMALL = 1e-11  # below it the curvature is its limit at 0


def log_probabilities(scores: Float[Tensor, "*N K"], scale: Float[Tensor, ""] | float) -> Float[Tensor, "*N K"]:
    """``ln(softmax(τ · scores) + 1e-15)``: what the densities see of class scores such as CLIP's cosines."""
    return ((scale * scores).softmax(-1) + EPSILON).log()


def dirichlet_log_density(log_z: Float[Tensor, "T N K"], alpha: Float[Tensor, "T C K"]) -> Float[Tensor, "T N C"]:
    """``ln p(z|α_c) = lnΓ(Σ_j α_cj) − Σ_j lnΓ(α_cj) + Σ_j (α_cj − 1) ln z_j``."""
    constant = torch.lgamma(alpha.sum(2)) - torch.lgamma(alpha).sum(2)
    return constant[:, None] + log_z @ (alpha - 1).mT


def curvature(alpha: Float[Tensor, "*N K"]) -> Float[Tensor, "*N K"]:
    """``c = |2 (lnΓ(1) − lnΓ(α+1) + ψ(α+1) α) / α²|``: of the parabola that bounds ``lnΓ(α+1)`` from one side."""
    safe = alpha.clamp(min=_SMALL)
    exact = (2 * (torch.digamma(safe + 1) * safe - torch.lgamma(safe + 1)) / safe**2).abs()
    # lnΓ(1) is 0. At 0 the quotient's limit is ψ'(1).
    return torch.where(alpha > _SMALL, exact, torch.full_like(alpha, torch.pi**2 / 6))


def mm_step(alpha: Float[Tensor, "*N K"], mean_log: Float[Tensor, "*N K"]) -> Float[Tensor, "*N K"]:
    """One step towards the most likely parameters, given the mean of ``ln z``.

    .. math:: b = \\psi(\\alpha+1) - \\psi(\\textstyle\\sum_j \\alpha_j) - c\\alpha - \\bar y, \\qquad
              \\alpha \\leftarrow \\frac{-b + \\sqrt{b^2 + 4c}}{2c}
    """
    c = curvature(alpha)
    b = torch.digamma(alpha + 1) - torch.digamma(alpha.sum(-1, keepdim=True)) - c * alpha - mean_log
    return (-b + (b.square() + 4 * c).sqrt()) / (2 * c)


def most_likely(
    alpha: Float[Tensor, "T C K"], mean_log: Float[Tensor, "T C K"], steps: int, *, through_steps: bool = False
) -> Float[Tensor, "T C K"]:
    """Parameters after up to ``steps`` MM steps; an episode stops when its squared relative change is below 1e-11.

    Parameters
    ----------
    alpha
        Where to begin.
    mean_log
        The mean of ``ln z`` of each class.
    steps
        At most so many; the change is looked at every 50.
    through_steps
        Let gradients flow back through every step, as the released code does, which keeps all of them in memory.
        Otherwise they are those of the maximum itself, by the implicit function theorem.
    """
    if through_steps:
        for _ in range(steps):
            alpha = mm_step(alpha, mean_log)
        return alpha
    found: Tensor = _MostLikely.apply(mean_log, alpha, steps)
    return found


class _MostLikely(torch.autograd.Function):
    """At the maximum ``ψ(α_j) − ψ(Σα) = ȳ_j``, so that ``(diag ψ'(α) − ψ'(Σα) 1 1ᵀ) dα = dȳ``."""

    @staticmethod
    def forward(ctx: Any, mean_log: Tensor, alpha: Tensor, steps: int) -> Tensor:
        def update(
            number: int, state: tuple[Tensor, ...], fixed: tuple[Tensor, ...]
        ) -> tuple[tuple[Tensor, ...], Tensor]:
            moved = mm_step(state[0], fixed[0])
            if number % _CHECK_EVERY:
                return (moved,), torch.zeros(len(moved), dtype=torch.bool, device=moved.device)
            change = (moved - state[0]).square().sum((1, 2)) / state[0].square().sum((1, 2))
            return (moved,), change < _TOLERANCE

        fixed: tuple[Tensor, ...] = (mean_log,)
        (found,), _ = settle(update, (alpha,), fixed, steps, rows_of)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (alpha,) = ctx.saved_tensors
        (gradient,) = grads
        slope = torch.polygamma(1, alpha)
        whole = torch.polygamma(1, alpha.sum(-1, keepdim=True))
        scaled = gradient / slope
        # Sherman and Morrison's inverse of a diagonal minus a matrix of one value.
        rest = 1 - whole * (1 / slope).sum(-1, keepdim=True)
        return scaled + (whole * scaled.sum(-1, keepdim=True) / rest) / slope, None, None
