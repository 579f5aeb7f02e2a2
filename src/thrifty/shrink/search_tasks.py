"""Pools on which searches for architectures are compared, all with the same number of queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from thrifty.core.method import Task
from thrifty.data.convert_architectures import GRAPH_SETS
from thrifty.shrink.candidates import kept
from thrifty.shrink.cell_candidates import Candidates, parts
from thrifty.shrink.cell_space import cell_encoding
from thrifty.shrink.graph_tables import draw_codes, graph_metrics, pool_of
from thrifty.shrink.pools import (
    Pool,
    Search,
    bayesian,
    by_metric,
    equal_weights,
    evolution,
    random_search,
)
from thrifty.shrink.robot_nas import Found, RoBoT
from thrifty.shrink.zero_cost import PAPERS

METRICS = ("-rank", "-worst_rank", "-regret", "-graph_rank", "-cell_rank")


@dataclass(frozen=True, eq=False)
class Searches:
    """Pools to search in, one for each data set.

    Parameters
    ----------
    pools
        By name; those of cells are called ``cells ...``.
    budget
        Queries in each pool.
    seed
        Of the searches.
    """

    pools: Mapping[str, Pool]
    budget: int
    seed: int
    _found: dict[int, Found] = field(default_factory=dict)

    def robot(self, pool: Pool, budget: int, seed: int) -> int:
        """RoBoT at its defaults."""
        return self._search(pool, budget, seed).best

    def exploration_only(self, pool: Pool, budget: int, seed: int) -> int:
        """What RoBoT would have found without exploitation, with the queries that were then made."""
        found = self._search(pool, budget, seed)
        return max(found.history[: found.explored], key=lambda queried: queried[1])[0]

    def _search(self, pool: Pool, budget: int, seed: int) -> Found:
        # The same search for both, which is made once.
        if id(pool) not in self._found:
            self._found[id(pool)] = RoBoT(budget=budget).search(pool.values, pool.objective, seed=seed)
        return self._found[id(pool)]


def graphs_and_cells(seed: int, quick: bool, directory: Path) -> Searches:
    """The eight data sets of NAS-Bench-Graph, and cells that are trained on digits."""
    cells = cells_of_pictures(seed, quick, directory)
    return replace(cells, pools={**graph_tables(seed, quick, directory).pools, **cells.pools})


def graph_tables(seed: int, quick: bool, directory: Path) -> Searches:
    """Architectures of NAS-Bench-Graph, other ones for each seed, the same for all data sets."""
    del directory
    sets, count = (GRAPH_SETS[:2], 80) if quick else (GRAPH_SETS, 400)
    codes = draw_codes(sets[0], count, seed)
    values = graph_metrics(codes, PAPERS, seed)
    return Searches({name: pool_of(name, codes, values, PAPERS) for name in sets}, 6 if quick else 20, seed)


def cells_of_pictures(seed: int, quick: bool, directory: Path) -> Searches:
    """Cells of NAS-Bench-201, every one of them trained on digits, once for all seeds, as the benchmark's table is one.

    The metrics are those of other initial weights for each seed.
    """
    count, most, epochs = (16, 200, 1) if quick else (100, 1000, 3)
    data = parts("digits", most, seed=0)
    cells = Candidates.drawn(data, count, epochs, seed=0)
    results = kept(directory.parent / "cells.json", cells.results)
    values = replace(cells, seed=seed).metrics(PAPERS)
    pool = Pool(values, PAPERS, cell_encoding(cells.names), results[:, 0], results[:, 1])
    return Searches({"cells on digits": pool}, 6 if quick else 20, seed)


def scores(searches: Searches, search: Search) -> dict[str, float]:
    """How good the architectures are that a search finds.

    Returns
    -------
    dict
        ``rank``, the share of a pool that is better by the objective, in percent, as a mean over pools, and
        ``worst_rank``, its maximum; ``regret``, points of the test accuracy below the pool's best; ``graph_rank``
        and ``cell_rank``, the rank among graph networks and among cells.
    """
    found = {name: search(pool, searches.budget, searches.seed) for name, pool in searches.pools.items()}
    ranks = {name: searches.pools[name].rank(row) for name, row in found.items()}
    regrets = [searches.pools[name].regret(row) for name, row in found.items()]
    cells = [rank for name, rank in ranks.items() if name.startswith("cells")]
    graphs = [rank for name, rank in ranks.items() if not name.startswith("cells")]
    return {
        "rank": mean(ranks.values()),
        "worst_rank": max(ranks.values()),
        "regret": mean(regrets),
        "graph_rank": mean(graphs or ranks.values()),
        "cell_rank": mean(cells or ranks.values()),
    }


def metric_scores(searches: Searches) -> list[dict[str, float]]:
    """What one metric alone finds, for each metric."""
    count = len(next(iter(searches.pools.values())).metrics)
    return [scores(searches, partial(by_metric, metric=at)) for at in range(count)]


def average(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean over metrics."""
    return {name: mean(one[name] for one in found) for name in found[0]}


def best(found: list[dict[str, float]]) -> dict[str, float]:
    """The metric that turns out to be the best over all pools, which nobody knows beforehand."""
    return found[int(np.argmin([one["rank"] for one in found]))]


ARMS: Mapping[str, Callable[[Searches], Mapping[str, float]]] = {
    "robot": lambda searches: scores(searches, searches.robot),
    "exploration only": lambda searches: scores(searches, searches.exploration_only),
    "average metric": lambda searches: average(metric_scores(searches)),
    "best metric in hindsight": lambda searches: best(metric_scores(searches)),
    "equal weights": lambda searches: scores(searches, equal_weights),
    "random search": lambda searches: scores(searches, random_search),
    "evolution": lambda searches: scores(searches, evolution),
    "bayesian, architecture": lambda searches: scores(searches, bayesian),
}


def evaluate(method: RoBoT, searches: Searches) -> dict[str, float]:
    """What a method of the room finds, at the budget of the task."""

    def search(pool: Pool, budget: int, seed: int) -> int:
        return replace(method, budget=budget).search(pool.values, pool.objective, seed=seed).best

    return scores(searches, search)


def _task(summary: str, prepare: Callable[[int, bool, Path], Any]) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"images", "labels"}),
        prepare=prepare,
        evaluate=evaluate,
        baselines={name: arm for name, arm in ARMS.items() if name not in ("robot", "exploration only")},
        metrics=METRICS,
        axes=("rank", "regret"),
        variants={
            "exploration only": lambda: RoBoT(exploit=False),
            "expected improvement": lambda: RoBoT(acquisition="ei"),
        },
    )


TASKS: Mapping[str, Task] = {
    "cells": _task("cells of NAS-Bench-201, all trained on digits: which search finds the best", cells_of_pictures),
    "nas-bench-graph": _task("graph networks of NAS-Bench-Graph on eight data sets: the same", graph_tables),
}
