from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt import class_tree
from thrifty.adapt.class_graph import Graph
from thrifty.adapt.class_metric import ClassMetric, Complete, Distances
from thrifty.adapt.class_metric_files import named_metric
from thrifty.adapt.class_spaces import Euclidean, Grid
from thrifty.adapt.class_tree import Tree, tree_distances
from thrifty.adapt.frechet import frechet_predict
from thrifty.adapt.letter_tree import letter_path, letter_tree
from thrifty.core.errors import InputError

seeds = st.integers(0, 2**31)


def random_tree(random: np.random.Generator, count: int, weighted: bool) -> tuple[Any, Any, nx.Graph]:
    names = random.permutation(count)
    edges = np.array([[names[node], names[random.integers(node)]] for node in range(1, count)])
    weights = random.integers(0, 4, count - 1).astype(float) if weighted else None
    graph = nx.Graph()
    for at, (a, b) in enumerate(edges.tolist()):
        graph.add_edge(a, b, weight=1.0 if weights is None else weights[at])
    return edges, weights, graph


def matrix_of(graph: nx.Graph, labels: list[Any]) -> torch.Tensor:
    found = dict(nx.all_pairs_dijkstra_path_length(graph))
    return torch.tensor([[found[a][b] for b in labels] for a in labels], dtype=torch.float64)


def probabilities(random: np.random.Generator, count: int) -> torch.Tensor:
    """Smooth ones, and ones of small whole numbers, which make equal scores."""
    whole = random.integers(0, 3, (10, count)).astype(float)
    whole[whole.sum(1) == 0] = 1
    return torch.from_numpy(np.concatenate([random.dirichlet(np.ones(count), 20), whole / whole.sum(1)[:, None]]))


def agrees(metric: ClassMetric, distances: torch.Tensor, random: np.random.Generator) -> None:
    """The space's own rule gives what its matrix gives: rows, objectives and predictions, ties included."""
    count = int(random.integers(1, len(metric) + 1))
    observed = torch.from_numpy(random.permutation(len(metric))[:count])
    torch.testing.assert_close(metric.rows(observed), distances[observed])
    probs, rule = probabilities(random, count), metric.rule(observed)
    torch.testing.assert_close(rule.costs(probs), probs @ distances[observed] ** 2, atol=1e-9, rtol=1e-9)
    assert torch.equal(rule.nearest(probs), frechet_predict(probs, distances[observed] ** 2, observed))


@settings(max_examples=40)
@given(seeds, st.booleans(), st.sampled_from(["all", "leaves"]), st.booleans())
def test_a_tree_needs_no_matrix(seed: int, weighted: bool, which: Any, deep: bool) -> None:
    random = np.random.default_rng(seed)
    edges, weights, graph = random_tree(random, int(random.integers(2, 30)), weighted)
    tree = Tree(edges, weights, which)
    assert which == "leaves" or tree.all_nodes
    with pytest.MonkeyPatch.context() as patch:
        if deep:
            patch.setattr(class_tree, "_LEVELS", 0)
        agrees(tree, matrix_of(graph, tree.labels.tolist()), random)


@settings(max_examples=20)
@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_grid_needs_marginals_only(seed: int, shape: list[int]) -> None:
    graph = nx.grid_graph(list(reversed(shape)))
    nodes = sorted(graph.nodes) if len(shape) > 1 else list(range(shape[0]))
    agrees(Grid(shape), matrix_of(graph, nodes), np.random.default_rng(seed))


@settings(max_examples=20)
@given(seeds)
def test_points_and_equal_distances_need_no_matrix(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = torch.from_numpy(random.normal(size=(12, 3)))
    agrees(Euclidean(points), (points[:, None] - points).norm(dim=-1), random)
    agrees(Complete(np.arange(7)), 1 - torch.eye(7, dtype=torch.float64), random)


@settings(max_examples=20)
@given(seeds)
def test_a_graph_takes_shortest_paths(seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = nx.connected_watts_strogatz_graph(12, 4, 0.3, seed=seed % 1000)
    for _, _, edge in graph.edges(data=True):
        edge["weight"] = float(random.integers(1, 5))
    edges = list(graph.edges)
    metric = Graph(edges, [graph.edges[edge]["weight"] for edge in edges])
    agrees(metric, matrix_of(graph, list(range(12))), random)


@settings(max_examples=25)
@given(seeds, st.floats(0.01, 100))
def test_invariants(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    edges, _, graph = random_tree(random, 15, weighted=False)
    squares = matrix_of(graph, list(range(15))) ** 2
    observed = torch.from_numpy(random.permutation(15)[:6])
    probs = probabilities(random, 6)
    predicted = frechet_predict(probs, squares[observed], observed)
    # Units of the metric do not matter, nor does the size of the chunks.
    assert torch.equal(predicted, frechet_predict(probs, scale**2 * squares[observed], observed, chunk=7))
    # A class that is certain is predicted.
    assert torch.equal(frechet_predict(torch.eye(6, dtype=torch.float64), squares[observed], observed), observed)
    # Every prediction lies between observed classes.
    assert Tree(edges).locus(observed)[predicted].all()
    # 0/1 distances between observed classes are the argmax, ties included.
    zero_one = 1 - torch.eye(6, dtype=torch.float64)
    assert torch.equal(frechet_predict(probs, zero_one, torch.arange(6)), probs.argmax(1))


def test_tree_distances() -> None:
    found = tree_distances([(0, 1), (1, 2)], 3, torch.tensor([2.0, 0.5]))
    assert found.tolist() == [[0, 2, 2.5], [2, 0, 0.5], [2.5, 0.5, 0]]
    with pytest.raises(InputError, match=r"the edges join 3 nodes, not 0 \.\.\. 3"):
        tree_distances([(0, 1), (1, 2)], 4)


@pytest.mark.parametrize(
    ("edges", "weights", "said"),
    [
        ([[0, 1], [1, 2], [2, 0]], None, "3 of them join 3 nodes, so there is a circle; give them as a graph"),
        ([[0, 1], [2, 3]], None, "nothing connects 0 and 2"),
        ([["a", "a"]], None, "edge 0 joins 'a' with itself"),
        ([[0, 1]], [-1.0], "the edge 0 - 1 has length -1: lengths are finite and not negative"),
        ([[0, 1]], [1.0, 2.0], "1 edges came with weights"),
        ([], None, r"edges must be pairs of nodes, \[E, 2\]"),
    ],
)
def test_edges_that_are_no_tree_are_named(edges: Any, weights: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Tree(edges, weights)


def test_classes_that_nothing_connects_are_named() -> None:
    with pytest.raises(InputError, match="nothing connects 'a' and 'c'"):
        Graph([["a", "b"], ["c", "d"]]).rows(torch.tensor([0]))
    with pytest.raises(InputError, match="class 'e' is no node of the edges"):
        Tree([["a", "b"]], labels=["a", "e"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((0, 1, 5.0), r"d\('a', 'b'\) is 5, but 1 the other way round"),
        ((0, 0, 1.0), r"d\('a', 'a'\) is 1: a class is at distance 0 from itself"),
        ((1, 2, float("inf")), r"d\('b', 'c'\) is inf: distances must be finite"),
        ((1, 2, -1.0), r"d\('b', 'c'\) is -1: distances can't be negative"),
    ],
)
def test_distances_that_are_no_metric_are_named(change: tuple[int, int, float], said: str) -> None:
    matrix = 1 - np.eye(3)
    matrix[change[:2]] = change[2]
    with pytest.raises(InputError, match=said):
        Distances(matrix, ["a", "b", "c"])


def test_a_broken_triangle_is_a_warning_that_names_it() -> None:
    matrix = np.array([[0.0, 1, 5], [1, 0, 2], [5, 2, 0]])
    with pytest.warns(UserWarning, match=r"d\('a', 'c'\) = 5 > d\('a', 'b'\) \+ d\('b', 'c'\) = 3"):
        metric = Distances(matrix, ["a", "b", "c"])
    assert metric.rule(torch.tensor([0, 2])).nearest(torch.tensor([[0.5, 0.5]]).double()).tolist() == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Distances(np.array([[0.0, 1, 3], [1, 0, 2], [3, 2, 0]]))


def test_wrong_shapes_and_names_are_told() -> None:
    with pytest.raises(InputError, match=r"square matrix \[N, N\], not \[2, 3\]"):
        Distances(np.zeros((2, 3)))
    with pytest.raises(InputError, match="class 'a' occurs twice in the metric"):
        Distances(1 - np.eye(2), ["a", "a"])
    with pytest.raises(InputError, match=r"the metric does not know class 'dgo'.*did you mean 'dog'"):
        Complete(["cat", "dog"]).positions(["cat", "dgo"])
    with pytest.raises(InputError, match="knows classes like 'cat', not like 3"):
        Complete(["cat", "dog"]).positions([3])
    with pytest.raises(InputError, match="points must be finite"):
        Euclidean([[0.0], [np.nan]])
    with pytest.raises(InputError, match="came with a grid of 6 points"):
        Grid([2, 3], ["a", "b"])


def test_metrics_from_files(tmp_path: Path) -> None:
    classes = np.array(["a", "c"])
    (tmp_path / "tree.csv").write_text("parent,child,weight\nroot,a,1\nroot,b,2\nb,c,1\n")
    tree = named_metric(tmp_path / "tree.csv", classes, leaves=True)
    assert isinstance(tree, Tree)
    assert tree.labels.tolist() == ["a", "c"]
    assert tree.rows(torch.tensor([0])).tolist() == [[0, 4]]
    (tmp_path / "graph.csv").write_text("source,target\na,b\nb,c\nc,a\n")
    assert isinstance(named_metric(tmp_path / "graph.csv", classes), Graph)
    (tmp_path / "square.csv").write_text("class,a,b,c\nb,1,0,1\na,0,1,2\nc,2,1,0\n")
    square = named_metric(tmp_path / "square.csv", classes)
    assert square.labels.tolist() == ["b", "a", "c"]
    assert square.rows(square.positions(["a"])).tolist() == [[1, 0, 2]]
    np.savez(tmp_path / "points.npz", points=[[0.0], [3.0]])
    assert named_metric(tmp_path / "points.npz", classes).labels.tolist() == ["a", "c"]
    np.savez(tmp_path / "edges.npz", edges=[[0, 1], [1, 2]], labels=[0, 2])
    assert named_metric(tmp_path / "edges.npz", classes).labels.tolist() == [0, 2]
    np.savez(tmp_path / "none.npz", x=[1])
    with pytest.raises(InputError, match=r"none\.npz must have one of the arrays distances, edges, points: it has x"):
        named_metric(tmp_path / "none.npz", classes)
    (tmp_path / "odd.csv").write_text("class,a,b\na,0,1\nc,1,0\n")
    with pytest.raises(InputError, match="'b' is not both a row and a column"):
        named_metric(tmp_path / "odd.csv", classes)
    with pytest.raises(InputError, match="a line needs classes that are whole numbers, not"):
        named_metric("line", classes)


def test_letters_make_a_tree_of_their_names() -> None:
    assert letter_path("LATIN SMALL LETTER A WITH RING ABOVE AND ACUTE") == (
        "LATIN",
        "A",
        "SMALL",
        "RING ABOVE",
        "ACUTE",
    )
    tree = letter_tree("aáàAb\N{GREEK SMALL LETTER ALPHA}")
    assert sorted(tree.labels.tolist())[0] == "GREEK SMALL LETTER ALPHA"
    assert len(tree) == 6
    at = {name: int(tree.positions([name])) for name in tree.labels.tolist()}
    rows = tree.rows(torch.arange(6))
    small, acute = at["LATIN SMALL LETTER A"], at["LATIN SMALL LETTER A WITH ACUTE"]
    assert rows[small, acute] == 1
    assert rows[acute, at["LATIN SMALL LETTER A WITH GRAVE"]] == 2
    assert rows[small, at["LATIN CAPITAL LETTER A"]] == 2
    # Up from a to A/a and to Latin, down to b.
    assert rows[small, at["LATIN SMALL LETTER B"]] == 3
