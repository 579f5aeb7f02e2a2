"""Random projection of gradients, which keeps their inner products, without its matrix ever being there as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.seeding import generator

# Entries of the part of the matrix that is there at a time.
_ROOM = 16 * 2**20


@dataclass(frozen=True)
class Projection:
    r""":math:`P^\top g` for a matrix P with independent entries of variance 1/k, so that
    :math:`E[(P^\top g)^\top (P^\top h)] = g^\top h`.

    The matrix is drawn anew, some rows at a time, whenever it is needed; each part depends on the seed and its place
    only, so all calls project alike.

    Parameters
    ----------
    dimensions
        k, what is left of a gradient.
    kind
        Entries of :math:`\pm 1/\sqrt k` (``"rademacher"``) or normal ones.
    seed
        Of the matrix.
    """

    dimensions: int
    kind: Literal["rademacher", "normal"] = "rademacher"
    seed: int = 0

    def __call__(self, gradients: Mapping[str, Float[Tensor, " batch *shape"]]) -> Float[Tensor, "batch dimensions"]:
        """Projects gradients that are given by parameter name, for each of a batch.

        Parameters
        ----------
        gradients
            Of every parameter, of its shape behind the batch's dimension.
        """
        first = next(iter(gradients.values()))
        found = torch.zeros(len(first), self.dimensions, device=first.device)
        rows = max(1, _ROOM // self.dimensions)
        for name, gradient in gradients.items():
            for place, part in enumerate(gradient.flatten(1).float().split(rows, 1)):
                found.addmm_(part, self._matrix(name, place, part.shape[1], first.device))
        return found / math.sqrt(self.dimensions)

    def _matrix(self, name: str, place: int, rows: int, device: torch.device) -> Tensor:
        draw = generator(self.seed, "projection", name, place, device=device)
        shape = (rows, self.dimensions)
        if self.kind == "normal":
            return torch.randn(shape, generator=draw, device=device)
        return torch.empty(shape, device=device).bernoulli_(0.5, generator=draw).mul_(2).sub_(1)
