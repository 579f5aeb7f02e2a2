"""What the eigenvalues of a correlation are turned into, for the matrix of DirectPred."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Spectrum = Literal["paper", "relative", "relative-inside", "mean", "clamp", "scale"]
Eigenvalues = Float[Tensor, " dim"]
_LEAST = 1e-4


def paper(s: Eigenvalues, eps: float, power: float, shrinkage: float) -> Eigenvalues:
    """``s^power + eps max s`` (the paper's equation 18)."""
    del shrinkage
    s = s.clamp(min=0)
    return s**power + eps * s.max()


def _share(s: Eigenvalues) -> Eigenvalues:
    return s.clamp(min=0) / s.max().clamp(min=1e-12)


def relative(s: Eigenvalues, eps: float, power: float, shrinkage: float) -> Eigenvalues:
    """``(s / max s)^power + eps``, at least 1e-4 (``boost_scale`` of the authors' code)."""
    return (_share(s) ** power + eps).clamp(min=_LEAST) * (1 - shrinkage)


def relative_inside(s: Eigenvalues, eps: float, power: float, shrinkage: float) -> Eigenvalues:
    """``(s / max s + eps)^power``, of at least 1e-4 before the power."""
    return (_share(s) + eps).clamp(min=_LEAST) ** power * (1 - shrinkage)


def half_way_to_the_mean(s: Eigenvalues, eps: float, power: float, shrinkage: float) -> Eigenvalues:
    """``(s + mean s) / 2``."""
    del eps, power, shrinkage
    return (s + s.mean()) / 2


def clamped(s: Eigenvalues, eps: float, power: float, shrinkage: float) -> Eigenvalues:
    """s, from 0 to ``1 - shrinkage``."""
    del eps, power
    return s.clamp(0, 1 - shrinkage)


def scaled_down(s: Eigenvalues, eps: float, power: float, shrinkage: float) -> Eigenvalues:
    """s, divided by ``max s + shrinkage`` where the largest is above ``1 - shrinkage``."""
    del eps, power
    return torch.where(s.max() > 1 - shrinkage, s / (s.max() + shrinkage), s)


SPECTRA: Mapping[Spectrum, Callable[[Tensor, float, float, float], Tensor]] = {
    "paper": paper,
    "relative": relative,
    "relative-inside": relative_inside,
    "mean": half_way_to_the_mean,
    "clamp": clamped,
    "scale": scaled_down,
}
"""Each makes the predictor's eigenvalues of the correlation's, eps, the power and the shrinkage."""
