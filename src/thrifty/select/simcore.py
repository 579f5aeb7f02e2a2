"""SimCore: the part of an open set that is closest to a small target set, "Coreset Sampling from Open-Set for
Fine-Grained Self-Supervised Learning" (Kim, Bae & Yun, CVPR 2023, arXiv 2303.11101)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.nets.nearest import CHUNK, SimilarityLists, unit_rows
from thrifty.select.base import check_budget

_FIRST_LIST = 128


class OpenSet(NamedTuple):
    """What there is to select for, and from.

    Attributes
    ----------
    target, pool
        Features ``[n, D]`` and ``[N, D]`` by one encoder, NumPy or torch; the pool may be mapped from a file.
    """

    target: Any
    pool: Any


class CoresetSelection(NamedTuple):
    """What :func:`simcore_select` finds.

    Attributes
    ----------
    indices
        Rows of the pool, by round, within a round the most similar first.
    round
        The round, from 1, in which each was picked.
    similarities
        Cosine of each to the centroid that picked it.
    values
        ``f̂_t``, the mean cosine of the picks of each round that was kept.
    centroids
        Unit vectors ``[k, D]``.
    stopped
        Why it ended: ``dissimilar`` (the stopping rule), ``budget`` or ``pool`` (nothing left).
    """

    indices: Int[Tensor, " M"]
    round: Int[Tensor, " M"]
    similarities: Float[Tensor, " M"]
    values: Float[Tensor, " T"]
    centroids: Float[Tensor, "k D"]
    stopped: str


@register("simcore")
@dataclass(frozen=True)
class SimCore:
    r"""Selects the examples of a large unlabelled pool that are nearest to a small unlabelled target set.

    .. math:: \max_{S \subset U} \sum_{x \in X} \max_{u \in S} w(x, u), \qquad w(x, u) = \cos(z_x, z_u)

    X is reduced to k-means centroids. In each round every centroid picks its most similar example that no earlier round
    picked; rounds end when their mean similarity falls below a share of the first one's. Pretraining on the target and
    the selection together then learns better features for the target than either alone. The encoder that gives the
    features should be trained on the target alone, without labels, as in the paper: one trained with labels leaks them.

    It is repeated nearest-neighbour search, not greedy maximisation, which would stop once each centroid has a
    neighbour. What the target and the pool have in common is picked first: leave duplicates out beforehand.

    Parameters
    ----------
    n_centroids
        k; 0 makes each target example its own centroid, as does any number not below that of the examples. More of them
        make a larger coreset.
    stop_threshold
        tau: the round whose mean similarity is below tau times the reference round's is discarded, and is the last.
        ``None`` for no such rule, as in the paper's comparisons at a fixed budget.
    reference_round
        The round that sets the reference: 1 (the paper), 20 (the authors' code, which keeps the rounds before it
        whatever they bring, as long as their mean similarity is not negative).
    budget
        Keep at most so many.
    budget_share
        Keep at most this share of the pool.
    cap
        Keep at most so many times the number of target examples (50, as the authors' code); ``None`` for no cap.
    centroid_seed
        Of k-means.
    chunk
        Examples of the pool that are compared at a time.

    Raises
    ------
    InputError
        When a number is out of its range.

    References
    ----------
    arXiv 2303.11101, section 3.2 and algorithm 1.
    """

    n_centroids: int = 100
    stop_threshold: float | None = 0.95
    reference_round: int = 1
    budget: int | None = None
    budget_share: float | None = None
    cap: float | None = 50.0
    centroid_seed: int = 0
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        check_budget(self.budget)
        if self.n_centroids < 0 or self.reference_round < 1 or self.chunk < 1:
            raise InputError("n_centroids must be at least 0, reference_round and chunk at least 1")
        if self.stop_threshold is not None and not 0 < self.stop_threshold <= 1:
            raise InputError(f"stop_threshold is a share above 0 and at most 1, not {self.stop_threshold:g}")
        if self.budget_share is not None and not 0 < self.budget_share <= 1:
            raise InputError(f"budget_share is a share above 0 and at most 1, not {self.budget_share:g}")
        if self.cap is not None and not self.cap > 0:
            raise InputError(f"cap must be above 0, not {self.cap:g}")

    def select(self, pool: OpenSet | tuple[Any, Any], budget: int | None = None) -> Int[Tensor, " M"]:
        """The rows of the pool that are worth keeping, the best first.

        Parameters
        ----------
        pool
            The features of the target and of the pool.
        budget
            Keep at most so many; the method's own limits hold too.

        Raises
        ------
        InputError
            When features are missing, are of two kinds or hold NaN, or nothing in the pool resembles the target.
        """
        return self.explain(pool, budget).indices

    def explain(self, pool: OpenSet | tuple[Any, Any], budget: int | None = None) -> CoresetSelection:
        """As :meth:`select`, with rounds and similarities."""
        check_budget(budget)
        given = OpenSet(*pool)
        limits = [budget, self.budget]
        if self.budget_share is not None:
            limits.append(max(int(self.budget_share * len(given.pool)), 1))
        return simcore_select(
            given.target,
            given.pool,
            n_centroids=self.n_centroids or None,
            budget=min((limit for limit in limits if limit is not None), default=None),
            stop_threshold=self.stop_threshold,
            reference_round=self.reference_round,
            max_size=None if self.cap is None else max(int(self.cap * len(given.target)), 1),
            chunk=self.chunk,
            centroid_seed=self.centroid_seed,
            # From the global generator, which the run has seeded.
            generator=torch.Generator().manual_seed(int(torch.randint(2**31, ()))),
        )

    def demonstrate(self, inputs: Any, run: Any) -> dict[str, Any]:
        """What ``thrifty run simcore`` does (see :mod:`thrifty.select.open_set`)."""
        from thrifty.select.open_set import demonstrate

        return demonstrate(self, inputs, run)


def centroids_of(target: Float[Tensor, "n D"], k: int | None, seed: int = 0) -> Float[Tensor, "k D"]:
    """k-means centroids of unit vectors, scaled to length one again; the vectors themselves where k is not below n."""
    if k is None or k >= len(target):
        return target
    from sklearn.cluster import KMeans

    found = KMeans(k, random_state=seed).fit(target.cpu().numpy()).cluster_centers_
    return unit_rows(torch.from_numpy(found), "centroid").to(target)


def simcore_select(
    target: Any,
    pool: Any,
    *,
    n_centroids: int | None = 100,
    budget: int | float | None = None,
    stop_threshold: float | None = 0.95,
    reference_round: int = 1,
    max_size: int | None = None,
    chunk: int = CHUNK,
    centroid_seed: int = 0,
    generator: torch.Generator | None = None,
) -> CoresetSelection:
    """Rounds in which each centroid of the target picks its most similar example of the pool.

    Parameters
    ----------
    target, pool
        As for :class:`OpenSet`; scaled to length one here.
    n_centroids, stop_threshold, reference_round, chunk, centroid_seed
        As for :class:`SimCore`.
    budget
        How many at most; a fraction below 1 is a share of the pool. The last round is cut at random to fit exactly.
    max_size
        How many at most, beside the budget.
    generator
        Of that cut.

    Raises
    ------
    InputError
        As for :meth:`SimCore.select`.
    """
    z = unit_rows(target, "target")
    if not len(z) or not len(pool):
        raise InputError(f"there are {len(z)} target and {len(pool)} pool examples: both are needed")
    anchors = centroids_of(z, n_centroids, centroid_seed)
    if isinstance(budget, float) and budget < 1:
        budget = int(budget * len(pool))
    limits = [int(limit) for limit in (budget, max_size) if limit is not None]
    lists = SimilarityLists(anchors, pool, chunk, _FIRST_LIST)
    found = peel(lists, min([*limits, len(pool)]), stop_threshold, reference_round, generator)
    if not len(found.indices):
        raise InputError(
            "nothing in the pool resembles the target: the mean cosine of the nearest examples is negative; use "
            "another encoder or another pool"
        )
    stopped = "pool" if found.stopped == "budget" and len(found.indices) == len(pool) else found.stopped
    return found._replace(centroids=anchors, stopped=stopped)


def peel(
    lists: SimilarityLists,
    most: int,
    stop_threshold: float | None,
    reference_round: int,
    generator: torch.Generator | None,
) -> CoresetSelection:
    """The rounds of algorithm 1.

    Parameters
    ----------
    lists
        The pool in the order of each centroid.
    most
        How many examples at most, not above the size of the pool.
    stop_threshold, reference_round, generator
        As for :func:`simcore_select`.
    """
    taken = torch.zeros(len(lists.pool), dtype=torch.bool)
    place = torch.zeros(len(lists.queries), dtype=torch.int64)
    picked: list[Tensor] = []
    similar: list[Tensor] = []
    values: list[float] = []
    size, threshold, stopped = 0, 0.0 if stop_threshold is not None else -math.inf, "budget"
    while size < most:
        value, index = lists.at(place)
        # Only what earlier rounds took is passed over: within a round two centroids may pick the same.
        while (passed := taken[index]).any():
            place += passed
            value, index = lists.at(place)
        mean = float(value.double().mean())
        if stop_threshold is not None and len(values) + 1 == reference_round:
            threshold = stop_threshold * mean
        if mean < threshold:
            stopped = "dissimilar"
            break
        order = torch.argsort(value, descending=True, stable=True)
        index, value = index[order], value[order]
        first = _first_occurrences(index)
        if size + len(first) > most:
            chosen = torch.randperm(len(first), generator=generator)[: most - size].sort().values
            first = first[chosen]
        picked.append(index[first])
        similar.append(value[first])
        values.append(mean)
        taken[index[first]] = True
        size += len(first)
    rounds = [torch.full((len(part),), number) for number, part in enumerate(picked, start=1)]
    empty = torch.zeros(0, dtype=torch.int64)
    return CoresetSelection(
        torch.cat([empty, *picked]),
        torch.cat([empty, *rounds]),
        torch.cat([lists.values[:0, 0], *similar]),
        torch.tensor(values, dtype=torch.float64),
        lists.queries,
        stopped,
    )


def _first_occurrences(index: Int[Tensor, " k"]) -> Int[Tensor, " M"]:
    """Where each value occurs first, in order."""
    order = torch.argsort(index, stable=True)
    values = index[order]
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    return order[new].sort().values
