"""Pools of NAS-Bench-Graph: what became of graph networks on eight data sets, with metrics of untrained ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from thrifty.core.errors import InputError
from thrifty.core.progress import track
from thrifty.core.seeding import derive_seed
from thrifty.data.architectures import nas_bench_graph
from thrifty.shrink.candidates import initialised
from thrifty.shrink.graph_space import Graph, GraphNet, graph_encoding
from thrifty.shrink.pools import Pool
from thrifty.shrink.text_graph import news_graph
from thrifty.shrink.zero_cost import zero_cost_metrics

# As wide as there are nodes: with a smaller width the Jacobian of the nodes has no full rank.
NODES, WORDS, NEIGHBOURS, WIDTH = 128, 256, 4, 128


def graph_pool(name: str, count: int, metrics: Sequence[str], seed: int) -> tuple[tuple[str, ...], Pool]:
    """Some architectures of one data set, drawn at random, with their codes.

    The benchmark has no graphs, only results, so the metrics are those of the networks on a graph of news articles.

    Parameters
    ----------
    name
        The data set.
    count
        How many architectures.
    metrics
        Names of the training-free metrics.
    seed
        Of the draws and of initial weights.
    """
    codes = draw_codes(name, count, seed)
    values = graph_metrics(codes, metrics, seed)
    return tuple(str(code) for code in codes), pool_of(name, codes, values, metrics)


def draw_codes(name: str, count: int, seed: int) -> Int[np.ndarray, " architecture"]:
    """Architectures that the data set's table has.

    Raises
    ------
    InputError
        When it has not so many.
    """
    every = nas_bench_graph(name).code
    if not 1 <= count <= len(every):
        raise InputError(f"the table of {name} has {len(every)} architectures: draw from 1 to so many, not {count}")
    return np.sort(np.random.default_rng(derive_seed(seed, "graph networks")).choice(every, count, replace=False))


def graph_metrics(
    codes: Int[np.ndarray, " architecture"], metrics: Sequence[str], seed: int, graph: Graph | None = None
) -> Float[np.ndarray, "architecture metric"]:
    """Training-free metrics of graph networks on one graph, a :func:`thrifty.shrink.text_graph.news_graph` if none."""
    given = graph or news_graph(NODES, WORDS, NEIGHBOURS, seed)
    found = []
    for code in track(codes.tolist(), "training-free metrics"):
        net = initialised(lambda code=code: GraphNet(code, given, WIDTH), seed, code)  # type: ignore[misc]
        found.append(list(zero_cost_metrics(net, given.x, given.y, metrics, coupled=True).values()))
    return np.array(found)


def pool_of(
    name: str,
    codes: Int[np.ndarray, " architecture"],
    values: Float[np.ndarray, "architecture metric"],
    metrics: Sequence[str],
) -> Pool:
    """What became of some architectures on a data set."""
    table = nas_bench_graph(name)
    rows = np.searchsorted(table.code, codes)
    return Pool(values, tuple(metrics), graph_encoding(codes), table.valid[rows], table.test[rows])
