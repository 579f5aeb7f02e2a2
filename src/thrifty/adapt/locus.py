"""Which classes a Fréchet mean can predict at all, and which classes to observe so that it can predict more.

The locus of observed classes Λ holds each class that some probabilities over Λ make a Fréchet mean. Whether y is in it
is a linear program: are there probabilities p with ``Σ_i p_i (d²(λ_i, y) − d²(λ_i, y')) ≤ 0`` for all classes y'?
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.adapt.frechet import frechet_scores, tied

_SLACK = 1e-8
_DRAWS = 2000


def tree_locus(dist: Float[Tensor, "N N"], observed: Int[Tensor, " K"]) -> Bool[Tensor, " N"]:
    """The locus in a tree all of whose nodes are classes: what is between observed ones, ``d(i,y) + d(y,j) = d(i,j)``.

    Parameters
    ----------
    dist
        Distances between all nodes.
    observed
        Λ. A single class is its own locus (the authors' code makes it empty).
    """
    rows = dist[observed]
    found = torch.zeros(len(dist), dtype=torch.bool, device=dist.device)
    for i, row in enumerate(rows):
        ends = row[observed[i:]]
        found |= ((row + rows[i:] - ends[:, None]).abs() <= _SLACK * (1 + ends[:, None])).any(0)
    return found


def reachable(
    sq_dist: Float[Tensor, "K N"], known: Bool[Tensor, " N"] | None = None, *, seed: int = 0
) -> Bool[Tensor, " N"]:
    """The locus in any finite metric space: exact, by a linear program for each class that a few draws did not reach.

    Equal scores count as reached, as in the paper's definition.

    Parameters
    ----------
    sq_dist
        Squared distances from each observed class to all N.
    known
        Classes that are in it for certain.
    seed
        Of the draws, which save time and change nothing.
    """
    from scipy.optimize import linprog

    observed, classes = sq_dist.shape
    found = torch.zeros(classes, dtype=torch.bool) if known is None else known.clone()
    square = sq_dist.double().cpu()
    found |= _drawn(square, seed)
    matrix = square.numpy()
    scale = max(float(matrix.max()), 1e-300)
    equal = np.append(np.ones(observed), 0.0)[None]
    bounds = [(0.0, 1.0)] * observed + [(None, None)]
    for y in (~found).nonzero()[:, 0].tolist():
        # The least t with Σ p_i (d²(λ_i,y) − d²(λ_i,y')) ≤ t for all y': y is in the locus when it is 0.
        gaps = np.hstack([((matrix[:, y : y + 1] - matrix) / scale).T, -np.ones((classes, 1))])
        cost = np.append(np.zeros(observed), 1.0)
        solved = linprog(cost, A_ub=gaps, b_ub=np.zeros(classes), A_eq=equal, b_eq=[1.0], bounds=bounds)
        found[y] = bool(solved.success and solved.fun <= _SLACK)
    return found


def _drawn(sq_dist: Float[Tensor, "K N"], seed: int) -> Bool[Tensor, " N"]:
    """Classes that one-hot, two-point and random probabilities reach."""
    count = len(sq_dist)
    draw = torch.Generator().manual_seed(seed)
    sparse = torch.rand(_DRAWS, count, generator=draw, dtype=torch.float64)
    sparse *= torch.rand(_DRAWS, count, generator=draw) < torch.rand(_DRAWS, 1, generator=draw)
    pairs = torch.zeros(_DRAWS, count, dtype=torch.float64)
    ends, share = torch.randint(count, (2, _DRAWS), generator=draw), torch.rand(_DRAWS, generator=draw).double()
    rows = torch.arange(_DRAWS)
    pairs[rows, ends[0]] += share
    pairs[rows, ends[1]] += 1 - share
    probs = torch.cat([torch.eye(count, dtype=torch.float64), pairs, sparse[sparse.sum(1) > 0]])
    return tied(frechet_scores(probs / probs.sum(1, keepdim=True), sq_dist)).any(0)


def farthest(distance: Float[Tensor, " N"], allowed: Bool[Tensor, " N"]) -> int:
    """The class farthest from the locus: on a tree it adds the most classes, a whole path; of equal ones the first.

    Parameters
    ----------
    distance
        From each class to the nearest class of the locus, ``min_{b∈Π(Λ)} d(y, b)``.
    allowed
        Which classes may be chosen.
    """
    return int(torch.where(allowed, distance.double(), -1.0).argmax())


def next_class(
    dist: Float[Tensor, "N N"], observed: Int[Tensor, " K"], candidates: Int[Tensor, " M"] | None = None
) -> int:
    """The next class to label in a tree all of whose nodes are classes: ``argmax_{y∉Π} min_{b∈Π} d(y, b)``.

    Parameters
    ----------
    dist
        Distances between all nodes.
    observed
        Λ, the classes with labels.
    candidates
        The classes that can be labelled; all by default. Those in the locus come last, since they add nothing.
    """
    locus = tree_locus(dist, observed)
    allowed = torch.ones_like(locus) if candidates is None else torch.zeros_like(locus)
    if candidates is not None:
        allowed[candidates] = True
    allowed[observed] = False
    return farthest(dist[locus].amin(0), allowed)


def largest_locus(
    locus: Callable[[Int[Tensor, " K"]], Bool[Tensor, " N"]], observed: Int[Tensor, " K"], candidates: list[int]
) -> int:
    """The next class to label in any space, ``argmax_y |Π(Λ ∪ {y})|``, by trying each candidate."""
    sizes = [int(locus(torch.cat([observed, torch.tensor([y])])).sum()) for y in candidates]
    return candidates[int(np.argmax(sizes))]


def without_the_needless(locus: Callable[[Int[Tensor, " K"]], Bool[Tensor, " N"]], classes: int) -> Int[Tensor, " M"]:
    """Classes that identify all others (Π(Λ) = Y) and of which none can be left out.

    Leaves out one class after the other, the last first, while all can still be predicted. No smaller set is inside of
    it; another set may still be smaller.
    """
    kept = torch.arange(classes)
    for y in reversed(range(classes)):
        rest = kept[kept != y]
        if len(rest) and bool(locus(rest).all()):
            kept = rest
    return kept
