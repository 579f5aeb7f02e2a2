"""SimCLR: views of the same picture attract, those of others repel (Chen et al., 2020, arXiv 2002.05709)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.loop import Loss
from thrifty.nets.self_supervised import ViewLearner, mlp_head


def nt_xent(z: Float[Tensor, "views features"], temperature: float) -> Float[Tensor, ""]:
    """The normalised temperature-scaled cross-entropy: each view has to find the other of its picture among all views.

    Parameters
    ----------
    z
        Projections: the first view of each picture, then the second of each.
    temperature
        What cosines are divided by.
    """
    unit = functional.normalize(z, dim=1)
    logits = unit @ unit.T / temperature
    logits.fill_diagonal_(-torch.inf)
    half = len(z) // 2
    other = torch.arange(len(z), device=z.device).roll(half)
    return functional.cross_entropy(logits, other)


class SimCLR(ViewLearner):
    """An encoder and a projector trained by :func:`nt_xent`.

    Parameters
    ----------
    encoder
        Maps pictures to features ``[B, D]``; what is kept in the end.
    features
        D.
    projection
        Features of the projections.
    temperature
        What cosines are divided by.
    """

    def __init__(self, encoder: nn.Module, features: int, projection: int = 64, temperature: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, mlp_head((features, features, projection))
        self.temperature = temperature

    def loss(self, views: Float[Tensor, "views channels height width"]) -> Loss:
        """The loss of a batch of views."""
        return Loss(nt_xent(self.projector(self.encoder(views).flatten(1)), self.temperature))
