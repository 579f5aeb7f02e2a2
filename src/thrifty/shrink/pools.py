"""Pools of architectures with what is known of them, and the searches that need no training-free metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from thrifty.shrink.queries import Queries
from thrifty.shrink.robot_nas import RoBoT, checked, ranking, scale, weighted


@dataclass(frozen=True, eq=False)
class Pool:
    """Architectures whose worth has been measured, all of it, so that searches can be compared.

    Parameters
    ----------
    values
        Training-free metrics, [N, m], NaN where one could not be computed.
    metrics
        Their m names.
    encoding
        What each architecture is made of, as 0 and 1, [N, e].
    valid
        The objective that searches may ask for, [N].
    test
        What the architecture that was found is judged by as well, [N].
    """

    values: Float[np.ndarray, "architecture metric"]
    metrics: tuple[str, ...]
    encoding: Float[np.ndarray, "architecture choice"]
    valid: Float[np.ndarray, " architecture"]
    test: Float[np.ndarray, " architecture"]

    def rank(self, row: int) -> float:
        """The share of the pool that is better than a row by the objective, in percent: 0 is the best."""
        return 100 * float((self.valid > self.valid[row]).mean())

    def regret(self, row: int) -> float:
        """Points of the test score that a row lacks to the pool's best."""
        return 100 * float(self.test.max() - self.test[row])

    def objective(self, row: int) -> float:
        """What a search pays for."""
        return float(self.valid[row])


Search = Callable[[Pool, int, int], int]
"""``search(pool, budget, seed)``: the row of the architecture found with so many queries."""


def robot(pool: Pool, budget: int, seed: int, *, exploit: bool = True) -> int:
    """RoBoT at its defaults."""
    return RoBoT(budget=budget, exploit=exploit).search(pool.values, pool.objective, seed=seed).best


def by_metric(pool: Pool, budget: int, seed: int, *, metric: int) -> int:  # noqa: ARG001 (nothing is drawn)
    """The best of those that one metric ranks first, as many as the budget allows."""
    values = np.nan_to_num(checked(pool.values)[:, metric], nan=-np.inf)
    return _first(pool, budget, values)


def equal_weights(pool: Pool, budget: int, seed: int) -> int:  # noqa: ARG001 (nothing is drawn)
    """The best of those that the sum of all scaled metrics ranks first: exploitation without exploration."""
    scaled = scale(checked(pool.values))
    return _first(pool, budget, weighted(scaled, np.ones(scaled.shape[1])))


def _first(pool: Pool, budget: int, scores: Float[np.ndarray, " architecture"]) -> int:
    queries = Queries(pool.objective, len(pool.valid), budget)
    queries.ask_first(ranking(scores))
    return queries.best[0]


def random_search(pool: Pool, budget: int, seed: int) -> int:
    """The best of some drawn at random."""
    queries = Queries(pool.objective, len(pool.valid), budget)
    queries.ask_first(np.random.default_rng(seed).permutation(len(pool.valid)))
    return queries.best[0]


def evolution(pool: Pool, budget: int, seed: int) -> int:
    """Regularised evolution (Real et al. 2019, arXiv 1802.01548).

    The population is a third of the budget; the parent is the best of a random half of it; its child is, of the
    architectures of the pool that were not asked for, one that differs in the fewest choices; the oldest leaves.
    """
    random = np.random.default_rng(seed)
    queries = Queries(pool.objective, len(pool.valid), budget)
    size = max(2, budget // 3)
    queries.ask_first(random.permutation(len(pool.valid))[:size])
    population = [row for row, _ in queries.history]
    while not queries.exhausted:
        picked = random.choice(population, max(2, len(population) // 2), replace=False)
        parent = max(picked.tolist(), key=queries.ask)
        distance = (pool.encoding != pool.encoding[parent]).sum(1).astype(float)
        distance[~_unknown(pool, queries)] = np.inf
        child = int(random.choice(np.flatnonzero(distance == distance.min())))
        queries.ask(child)
        population = [*population[1:], child]
    return queries.best[0]


def bayesian(pool: Pool, budget: int, seed: int) -> int:
    """Bayesian optimisation over what the architectures are made of: Matern 2.5, upper confidence bound, as RoBoT's."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    random = np.random.default_rng(seed)
    queries = Queries(pool.objective, len(pool.valid), budget)
    queries.ask(int(random.integers(len(pool.valid))))
    while not queries.exhausted:
        rows, values = zip(*queries.history, strict=True)
        process = GaussianProcessRegressor(
            Matern(nu=2.5), alpha=1e-6, normalize_y=True, n_restarts_optimizer=5, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length scale at its bound, with few points
            process.fit(pool.encoding[list(rows)], np.array(values))
        mean, deviation = process.predict(pool.encoding, return_std=True)
        bound = np.where(_unknown(pool, queries), mean + 2.576 * deviation, -np.inf)
        queries.ask(int(random.choice(np.flatnonzero(bound == bound.max()))))
    return queries.best[0]


def _unknown(pool: Pool, queries: Queries) -> Bool[np.ndarray, " architecture"]:
    found = np.ones(len(pool.valid), dtype=np.bool_)
    found[[row for row, _ in queries.history]] = False
    return found
