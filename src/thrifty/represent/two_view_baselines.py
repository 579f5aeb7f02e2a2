"""Two-view methods whose predictor is trained, on the same loop as DirectPred: BYOL and SimSiam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from thrifty.nets.self_supervised import mlp_head
from thrifty.represent.two_view_method import TwoViewMethod


@dataclass(frozen=True)
class BYOL(TwoViewMethod):
    """A trained predictor of the teacher's projections.

    Parameters
    ----------
    head
        ``mlp``: two layers with batch normalisation between them, as BYOL has it; ``linear``: one, without bias;
        ``none``: no predictor at all.
    predictor_hidden
        Units of the hidden layer.

    References
    ----------
    Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, arXiv 2006.07733.
    """

    head: Literal["mlp", "linear", "none"] = "mlp"
    predictor_hidden: int = 512

    def predictor(self, dim: int) -> nn.Module:
        """The head."""
        if self.head == "none":
            return nn.Identity()
        if self.head == "linear":
            return nn.Linear(dim, dim, bias=False)
        return mlp_head((dim, self.predictor_hidden, dim))


@dataclass(frozen=True)
class SimSiam(TwoViewMethod):
    """A trained predictor with a bottleneck, and no teacher: the other view's projections are the targets.

    References
    ----------
    Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv 2011.10566.
    """

    teacher_momentum: float = 0.0

    def projector(self, features: int) -> nn.Module:
        """Three layers, batch normalisation behind the last too."""
        return mlp_head((features, self.hidden, self.hidden, self.projection), last_norm=True)

    def predictor(self, dim: int) -> nn.Module:
        """A bottleneck of a quarter of the width."""
        return mlp_head((dim, max(dim // 4, 1), dim))
