"""SparseGPT: what is pruned in one column is made up for by the weights of the columns behind it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import NonFiniteError
from thrifty.shrink.masks import NM, block_mask, sparsegpt_score

_BLOCK = 128  # columns among which weights compete, and after which the rest of the matrix is brought up to date


def inverse_root(hessian: Float[Tensor, "in in"], dampening: float = 0.01) -> Float[Tensor, "in in"]:
    r""":math:`U`, upper triangular, with :math:`U^\top U = (H + \lambda I)^{-1}`.

    Parameters
    ----------
    hessian
        :math:`X^\top X` up to a factor; inputs that are always 0 count as if they were 1.
    dampening
        :math:`\lambda`, in means of the diagonal.

    Raises
    ------
    NonFiniteError
        When the matrix can't be inverted even with a hundred times the dampening.
    """
    h = hessian.clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    mean = diagonal.mean()
    for factor in (dampening, 10 * dampening, 100 * dampening):
        damped = h + torch.eye(len(h), device=h.device) * (factor * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(root).all():
                return root
    raise NonFiniteError("the inputs' second moments can't be inverted: take more calibration text")


def sparsegpt(
    weight: Float[Tensor, "out in"],
    root: Float[Tensor, "in in"],
    sparsity: float,
    n_m: NM | None = None,
) -> Float[Tensor, "out in"]:
    """The matrix with a share of each block of 128 columns pruned and the rest adjusted.

    Parameters
    ----------
    weight
        The dense matrix, in float32.
    root
        See :func:`inverse_root`.
    sparsity
        Share to prune.
    n_m
        A pattern instead: ``n`` of each ``m`` inputs.

    Returns
    -------
    Tensor
        Zero where pruned.

    References
    ----------
    Frantar and Alistarh, SparseGPT, ICML 2023, arXiv 2301.00774, algorithm 1.
    """
    w = weight.clone()
    for start in range(0, w.shape[1], _BLOCK):
        part = slice(start, min(start + _BLOCK, w.shape[1]))
        local, u = w[:, part], root[part, part]
        mask = (
            _lowest(sparsegpt_score(local, u), sparsity) if n_m is None else torch.zeros_like(local, dtype=torch.bool)
        )
        errors = torch.zeros_like(local)
        for column in range(local.shape[1]):
            if n_m is not None and column % n_m[1] == 0:
                ahead = slice(column, column + n_m[1])
                mask[:, ahead] = block_mask(sparsegpt_score(local[:, ahead], u[ahead, ahead]), n_m)
            error = local[:, column] * mask[:, column] / u[column, column]
            local[:, column:] -= error[:, None] * u[column, column:]
            errors[:, column] = error
        local[mask] = 0
        w[:, part.stop :] -= errors @ root[part, part.stop :]
    return w


def _lowest(score: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """True at that share of all scores, the lowest: rows compete, as in the paper's code."""
    count = int(score.numel() * sparsity + 1e-6)
    flat = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    flat[score.flatten().argsort(stable=True)[:count]] = True
    return flat.view_as(score)
