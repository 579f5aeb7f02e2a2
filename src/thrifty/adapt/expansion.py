"""Fixed expansions of frozen features into more of them, in which classes are easier to tell apart by a line."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def random_directions(dimension: int, size: int, draw: torch.Generator) -> Float[Tensor, "M D"]:
    """float64 weights as PyTorch begins a linear layer with: uniform between ``±1 / √D``.

    Parameters
    ----------
    dimension
        D, of the features.
    size
        M, of the expansion.
    draw
        Where the random numbers come from.
    """
    limit = 1 / math.sqrt(dimension)
    return torch.empty(size, dimension, dtype=torch.float64).uniform_(-limit, limit, generator=draw)


def random_relu(features: Float[Tensor, "N D"], directions: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """``ReLU(x W_Bᵀ)``, the buffer layer of ACIL and G-ACIL."""
    return (features @ directions.T).relu_()


def random_tanh(features: Float[Tensor, "N D"], directions: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """``tanh(x W_Bᵀ)``, what the second stream of DS-AL sees."""
    return (features @ directions.T).tanh_()


def gaussian_kernel(
    features: Float[Tensor, "N D"], centres: Float[Tensor, "M D"], width: float
) -> Float[Tensor, "N M"]:
    """``exp(−‖x − c‖² / (2 σ²))`` for each centre c, the buffer layer of GKEAL.

    Parameters
    ----------
    features
        x.
    centres
        Feature vectors.
    width
        σ, in the unit of the features.
    """
    return torch.cdist(features, centres).square_().div_(-2 * width**2).exp_()
