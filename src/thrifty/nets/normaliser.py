"""Features brought to mean 0 and standard deviation 1, with the statistics kept among the weights."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn


class Normaliser(nn.Module):
    """``(x - mean) / (std + eps)`` with fixed statistics.

    Parameters
    ----------
    mean, std
        One number a feature; ``std`` is what is divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " features"], std: Float[Tensor, " features"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())

    @classmethod
    def identity(cls, features: int) -> Self:
        """One that changes nothing."""
        return cls(torch.zeros(features), torch.ones(features))

    @classmethod
    def of(cls, values: NDArray[np.floating], eps: float = 1e-6) -> Self:
        """One with the statistics of ``values``.

        Parameters
        ----------
        values
            ``[N, features]``; the statistics are taken in float64, where a large offset costs no digits.
        eps
            Added to the standard deviation, so that a constant feature becomes 0.
        """
        wide = np.asarray(values, dtype=np.float64)
        return cls(torch.from_numpy(wide.mean(0)), torch.from_numpy(wide.std(0) + eps))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """The normalised features."""
        return (x - self.mean) / self.std

    def inverse(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Normalised features in their own unit again."""
        return x * self.std + self.mean
