from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt.class_metric import Complete, Distances
from thrifty.adapt.class_spaces import Euclidean, Grid
from thrifty.adapt.class_tree import Tree, tree_distances
from thrifty.adapt.frechet_training import decode, frechet_logits, project_simplex
from thrifty.adapt.locus import next_class, reachable, tree_locus
from thrifty.core.errors import InputError

PATH = [[node, node + 1] for node in range(6)]


def random_edges(random: np.random.Generator, count: int) -> list[tuple[int, int]]:
    return [(node, int(random.integers(node))) for node in range(1, count)]


def test_the_locus_of_two_ends_is_the_path_and_of_one_class_itself() -> None:
    dist = tree_distances(PATH, 7)  # type: ignore[arg-type]
    assert tree_locus(dist, torch.tensor([1, 4])).nonzero()[:, 0].tolist() == [1, 2, 3, 4]
    assert tree_locus(dist, torch.tensor([3])).nonzero()[:, 0].tolist() == [3]
    assert Tree(PATH).locus(torch.tensor([3])).nonzero()[:, 0].tolist() == [3]
    assert Tree(PATH).locus(torch.tensor([0, 6])).all()


@settings(max_examples=15)
@given(st.integers(0, 2**31))
def test_paths_and_linear_programs_and_the_tree_agree(seed: int) -> None:
    random = np.random.default_rng(seed)
    edges = random_edges(random, 12)
    dist = tree_distances(edges, 12)
    observed = torch.from_numpy(random.permutation(12)[: random.integers(1, 6)])
    paths = tree_locus(dist, observed)
    assert torch.equal(paths, Tree(edges).locus(observed))
    assert torch.equal(paths, reachable(dist[observed].square()))


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_linear_programs_find_what_draws_find_and_not_more(seed: int) -> None:
    """On points in the plane the locus is the classes whose cells meet the hull of the observed points."""
    random = np.random.default_rng(seed)
    points = torch.from_numpy(random.normal(size=(10, 2)))
    metric, observed = Euclidean(points), torch.arange(3)
    found = metric.locus(observed)
    probs = torch.from_numpy(random.dirichlet(np.full(3, 0.7), 20_000))
    drawn = torch.zeros(10, dtype=torch.bool)
    drawn[metric.rule(observed).nearest(probs).unique()] = True
    assert (found | ~drawn).all()
    # A class that only the programs found has a small region: drawing near its point in the triangle reaches it.
    for y in (found & ~drawn).nonzero()[:, 0].tolist():
        spread = (probs @ points[observed] - points[y]).norm(dim=1)
        others = torch.cdist(probs @ points[observed], points)
        assert float((spread - others.amin(1)).min()) < 0.05


def test_equal_distances_predict_nothing_new() -> None:
    metric = Complete(np.arange(5))
    assert metric.locus(torch.tensor([1, 3])).nonzero()[:, 0].tolist() == [1, 3]
    assert torch.equal(metric.locus(torch.tensor([1, 3])), reachable(metric.rows(torch.tensor([1, 3]))))
    assert metric.identifying_set().tolist() == list(range(5))
    assert metric.next_class(torch.tensor([0, 1])) == 2


def test_identifying_sets() -> None:
    star = Tree([[0, leaf] for leaf in range(1, 5)])
    assert star.identifying_set().tolist() == [1, 2, 3, 4]
    assert Tree(PATH).identifying_set().tolist() == [0, 6]
    assert Euclidean([3.0, 1.0, 2.0]).identifying_set().tolist() == [0, 1]
    grid = Grid([3, 4])
    assert grid.identifying_set().tolist() == [0, 11]
    for metric in (star, Tree(PATH), Euclidean([3.0, 1.0, 2.0]), grid):
        assert reachable(metric.rows(metric.identifying_set()).square()).all()
    # A tree whose leaves alone are classes takes the general way.
    leaves = Tree([["a", "r"], ["b", "r"], ["r", "s"], ["c", "s"]], labels="leaves")
    kept = leaves.identifying_set()
    assert leaves.locus(kept).all()
    assert all(not leaves.locus(kept[kept != y]).all() for y in kept.tolist() if len(kept) > 1)


def test_next_class_on_a_path_is_the_far_end() -> None:
    dist = tree_distances(PATH, 7)  # type: ignore[arg-type]
    assert next_class(dist, torch.tensor([0, 1])) == 6
    assert next_class(dist, torch.tensor([0, 1]), torch.tensor([2, 5])) == 5
    assert Tree(PATH).next_class(torch.tensor([0, 1])) == 6
    assert Tree(PATH).next_class(torch.tensor([0, 1]), [2, 5]) == 5
    # Distances alone: the class that makes the most classes predictable, by linear programs.
    assert Distances(dist).next_class(torch.tensor([0, 1])) == 6
    with pytest.raises(InputError, match="every class is observed already"):
        Tree(PATH).next_class(torch.arange(7))


def test_the_farthest_class_of_a_tree_adds_the_most() -> None:
    """The paper's rule: |Π(Λ ∪ {y})| is largest for the class farthest from the locus."""
    random = np.random.default_rng(0)
    for _ in range(10):
        edges = random_edges(random, 25)
        tree = Tree(edges)
        observed = torch.from_numpy(random.permutation(25)[:3])
        sizes = [int(tree.locus(torch.cat([observed, torch.tensor([y])])).sum()) for y in range(25)]
        assert sizes[tree.next_class(observed)] == max(sizes)


def test_active_selection_reaches_more_than_chance() -> None:
    """The card: of trees with 100 nodes and 3 first classes, 15 selections reach three quarters; chance half."""
    random = np.random.default_rng(1)
    active, chance = [], []
    for _ in range(5):
        tree = Tree(random_edges(random, 100))
        order = torch.from_numpy(random.permutation(100))
        observed = order[:3]
        for _ in range(15):
            observed = torch.cat([observed, torch.tensor([tree.next_class(observed)])])
        active.append(int(tree.locus(observed).sum()))
        chance.append(int(tree.locus(order[:18]).sum()))
    assert np.mean(active) > np.mean(chance) + 10


def test_projection_on_the_simplex() -> None:
    inside = torch.tensor([[0.2, 0.8]])
    torch.testing.assert_close(project_simplex(inside), inside)
    torch.testing.assert_close(project_simplex(torch.tensor([[1.2, 0.4, -1.0]])), torch.tensor([[0.9, 0.1, 0.0]]))
    x = torch.randn(50, 6, dtype=torch.float64)
    found = project_simplex(x)
    torch.testing.assert_close(found.sum(1), torch.ones(50, dtype=torch.float64))
    # The nearest point: no other point of the simplex makes an acute angle with x from it.
    corners = torch.eye(6, dtype=torch.float64)
    angles = ((x - found)[:, None] * (corners - found[:, None])).sum(-1)
    assert (found >= 0).all()
    assert (angles < 1e-12).all()


def test_gradients_through_the_decision() -> None:
    squares = torch.tensor([[0.0, 1, 4], [4, 1, 0]])
    g = torch.tensor([[0.3, -0.2, 0.1]])

    def gradient(estimator: str, skip: bool) -> torch.Tensor:
        probs = torch.tensor([[0.5, 0.3, 0.2]], requires_grad=True) if skip else torch.tensor([[0.5, 0.5]])
        probs = probs.requires_grad_()
        matrix = torch.eye(3) if skip else squares
        through = probs if skip else None
        z = decode(frechet_logits(probs, matrix), estimator, eta=0.5, through=through)  # type: ignore[arg-type]
        assert z.sum() == 1
        z.backward(g)
        assert probs.grad is not None
        return probs.grad

    torch.testing.assert_close(gradient("straight-through", True), g)
    torch.testing.assert_close(gradient("negative-identity", True), -g)
    # z is the last class (the smallest objective p D² is that of p = 0.2): z - Proj(z - g/2) by hand.
    # z - g/2 = (-0.15, 0.1, 0.95); on the simplex (0, 0.075, 0.925).
    torch.testing.assert_close(gradient("polytope", True), torch.tensor([[0.0, -0.075, 0.075]]))
    torch.testing.assert_close(gradient("straight-through", False), -(g @ squares.T))
