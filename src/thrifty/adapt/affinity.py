"""Neighbours within an episode: who is near whom among support and queries, and the scale of their distances."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError


def nearest_neighbours(
    x: Float[Tensor, "T N D"], neighbours: int
) -> tuple[Int[Tensor, "T N M"], Float[Tensor, "T N M"]]:
    """The nearest other points of each point, and their squared distances.

    Parameters
    ----------
    x
        The points of each episode.
    neighbours
        Counting the point itself: 3 finds M = 2 others.

    Raises
    ------
    InputError
        When there are not so many points.
    """
    count = x.shape[1]
    if not 2 <= neighbours <= count:
        raise InputError(f"neighbours must be between 2 (the point itself and one more) and {count}, not {neighbours}")
    norms = x.square().sum(2)
    squared = (norms[..., None] - 2 * (x @ x.mT) + norms[:, None]).clamp(min=0)
    # A point is never its own neighbour, even where another lies on it.
    squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    found = squared.topk(neighbours - 1, dim=2, largest=False)
    return found.indices, found.values


def neighbour_sum(
    near: Int[Tensor, "T N M"], shares: Float[Tensor, "T N K"], *, symmetric: bool = False
) -> Float[Tensor, "T N K"]:
    """``Σ_q w_pq s_q`` with ``w_pq = 1`` where q is a neighbour of p, rows not normalised.

    Parameters
    ----------
    near
        The neighbours of each point.
    shares
        What is summed.
    symmetric
        With ``(W + Wᵀ) / 2``: an edge counts in both directions, a half where only one end chose the other.
    """
    size = (*near.shape, shares.shape[2])
    index = near.flatten(1)[..., None].expand(-1, -1, size[3])
    chosen = shares.gather(1, index).view(size).sum(2)
    if not symmetric:
        return chosen
    given = shares[:, :, None].expand(size).flatten(1, 2)
    return (chosen + torch.zeros_like(shares).scatter_add_(1, index, given)) / 2


def bandwidth(squared: Float[Tensor, "T N M"]) -> Float[Tensor, " T"]:
    """The root mean square distance of neighbours, for each episode; 1 where all of them coincide."""
    found = squared.mean((1, 2)).sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))
