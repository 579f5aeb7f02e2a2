"""The points of a batch of episodes, support and queries in one array, and what all methods do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from thrifty.adapt.episodes import Episodes

_JITTER = 1e-6  # of the mean squared length: what keeps the root of a singular product defined


@dataclass(frozen=True, eq=False)
class Points:
    """A batch of episodes as the solver sees it: all points of an episode in one array, the support first.

    Parameters
    ----------
    x
        ``[T, N, D]``.
    given
        The support's classes as one-hot rows, ``[T, S, K]``: they belong to the first S points.
    norms
        ``[T, N]``: squared lengths of the points.
    prepared
        By name, what an assignment step prepared once for each episode, ``[T, ...]``.
    """

    x: Float[Tensor, "T N D"]
    given: Float[Tensor, "T S K"]
    norms: Float[Tensor, "T N"]
    prepared: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, episodes: Episodes) -> Points:
        """The points of some episodes."""
        x = torch.cat([episodes.support, episodes.query], 1)
        given = functional.one_hot(episodes.support_labels, episodes.classes).to(x.dtype)
        return cls(x, given, torch.linalg.vector_norm(x, dim=2).square())

    @property
    def supports(self) -> int:
        """S, the number of support examples."""
        return self.given.shape[1]

    def take(self, rows: Tensor) -> Points:
        """Some of the episodes."""
        prepared = {name: value[rows] for name, value in self.prepared.items()}
        return Points(self.x[rows], self.given[rows], self.norms[rows], prepared)

    def squared_distances(self, prototypes: Float[Tensor, "T K D"]) -> Float[Tensor, "T N K"]:
        """``‖x_p − m_k‖²``, never below 0."""
        products = self.x @ prototypes.mT
        return (self.norms[..., None] - 2 * products + prototypes.square().sum(2)[:, None]).clamp(min=0)

    def compressed(self) -> tuple[Points, Callable[[Tensor], Tensor]]:
        """The same points in as many dimensions as there are points, and the way back for combinations of them.

        Whatever stays in the points' span costs N instead of D in every round. Distances are those before up to a
        millionth of the mean squared length.
        """
        count = self.x.shape[1]
        if self.x.shape[2] < 2 * count:
            return self, unchanged
        products = self.x @ self.x.mT
        products.diagonal(dim1=1, dim2=2).add_(_JITTER * self.norms.mean(1, keepdim=True))
        root, failed = torch.linalg.cholesky_ex(products)
        if failed.any():
            return self, unchanged

        def back(prototypes: Tensor) -> Tensor:
            weights: Tensor = torch.linalg.solve_triangular(root, prototypes, upper=False, left=False)
            return weights @ self.x

        return replace(self, x=root, norms=root.square().sum(2)), back

    def support_means(self) -> Float[Tensor, "T K D"]:
        """The mean of each class' support."""
        return weighted_means(self.x[:, : self.supports], self.given)

    def clamped(self, assignment: Float[Tensor, "T N K"]) -> Float[Tensor, "T N K"]:
        """The assignment with the support's own classes in its rows."""
        return torch.cat([self.given.to(assignment.dtype), assignment[:, self.supports :]], 1)


def weighted_means(x: Float[Tensor, "T N D"], weights: Float[Tensor, "T N K"]) -> Float[Tensor, "T K D"]:
    """``m_k = Σ_p w_pk x_p / Σ_p w_pk``."""
    weights = weights.to(x.dtype)
    return (weights.mT @ x) / weights.sum(1)[..., None].clamp(min=torch.finfo(x.dtype).tiny)


def unchanged(prototypes: Tensor) -> Tensor:
    """Prototypes that are where they belong already."""
    return prototypes


def hard(assignment: Float[Tensor, "T N K"]) -> Float[Tensor, "T N K"]:
    """One-hot rows of the largest entries, the first of equals."""
    return functional.one_hot(assignment.argmax(2), assignment.shape[2]).to(assignment.dtype)
