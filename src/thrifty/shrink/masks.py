"""Which weights of a matrix to prune: scores, and masks with as many zeros in each row or each block of m."""

from __future__ import annotations

import re

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError

NM = tuple[int, int]


def magnitude_score(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    r"""The magnitude of a weight, :math:`|W_{rj}|`."""
    return weight.float().abs()


def wanda_score(weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"]) -> Float[Tensor, "out in"]:
    r"""Magnitude times the norm of the input, :math:`|W_{rj}| \lVert X_j \rVert` (Sun et al., 2306.11695, eq. 1)."""
    return weight.float().abs() * norm


def sparsegpt_score(weight: Float[Tensor, "out in"], inverse_root: Float[Tensor, "in in"]) -> Float[Tensor, "out in"]:
    r"""The error of removing a weight, :math:`W_{rj}^2 / U_{jj}^2` (Frantar and Alistarh, 2301.00774, eq. 4).

    Parameters
    ----------
    weight
        The matrix.
    inverse_root
        :math:`U`, upper triangular, with :math:`U^\top U = H^{-1}`.
    """
    return weight.float().square() / inverse_root.diagonal().square()


def row_mask(score: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """True at the lowest scores of each row, ``floor(sparsity * in)`` of them.

    Parameters
    ----------
    score
        What a weight is worth.
    sparsity
        Share to prune, from 0 to 1.
    """
    count = int(score.shape[1] * sparsity + 1e-6)
    lowest = score.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, lowest, True)


def block_mask(score: Float[Tensor, "out in"], n_m: NM) -> Bool[Tensor, "out in"]:
    """True at the ``n`` lowest scores of each block of ``m`` inputs that follow upon each other.

    Raises
    ------
    InputError
        When ``m`` does not divide the number of inputs.
    """
    n, m = n_m
    if score.shape[1] % m:
        raise InputError(f"blocks of {m} do not divide the {score.shape[1]} inputs of a linear map: choose another n:m")
    lowest = score.unflatten(1, (-1, m)).topk(n, dim=2, largest=False, sorted=False).indices
    blocks = torch.zeros_like(score, dtype=torch.bool).unflatten(1, (-1, m))
    return blocks.scatter_(2, lowest, True).flatten(1)


def prune_mask(score: Float[Tensor, "out in"], sparsity: float, n_m: NM | None) -> Bool[Tensor, "out in"]:
    """:func:`block_mask` where a pattern is asked for, else :func:`row_mask`."""
    return row_mask(score, sparsity) if n_m is None else block_mask(score, n_m)


def parse_pattern(pattern: str | None) -> NM | None:
    """``n:m`` as two numbers: ``n`` of each ``m`` weights are pruned.

    Raises
    ------
    InputError
        When it is no such pattern.
    """
    if pattern is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    n, m = (int(number) for number in found.groups()) if found else (0, 0)
    if not 0 < n < m:
        raise InputError(f"pattern {pattern!r} is not n:m with 0 < n < m, such as 2:4 (2 of each 4 weights are pruned)")
    return n, m
