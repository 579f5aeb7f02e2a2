from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from thrifty.adapt.affinity import bandwidth, nearest_neighbours, neighbour_sum
from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.laplacian import LaplacianAssignment, Modes, bound_step, mode_cost, relaxed_energy
from thrifty.adapt.points import Points
from thrifty.adapt.transductive_clustering import TransductiveClustering, k_means, k_modes, laplacian_shot
from thrifty.core.errors import InputError
from thrifty.core.method import load

# The worked example: two labelled points, two queries between them.
X = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.9, 0.0], [1.2, 0.0]]], dtype=torch.float64)
EXAMPLE = Episodes(X[:, :2], torch.tensor([[0, 1]]), X[:, 2:], torch.tensor([[0, 1]]), 2)
EVERY = [
    TransductiveClustering(),
    TransductiveClustering(prototype="mean"),
    TransductiveClustering(prototype="bound"),
    TransductiveClustering(clamp_support=False, symmetric=True),
    k_means(),
    k_modes(),
    laplacian_shot(),
]


def episodes(count: int = 10, *, shots: int = 1, queries: int = 30) -> Episodes:
    random = np.random.default_rng(2)
    labels = np.repeat(np.arange(8), 20)
    features = random.normal(size=(8, 10))[labels] + 0.9 * random.normal(size=(160, 10))
    design = Design(ways=3, shots=shots, queries=queries)
    return draw_episodes(features, labels, design, count, centre=torch.from_numpy(features.mean(0)))


def test_registered_under_its_id() -> None:
    assert load("transductive-clustering") is TransductiveClustering


def test_worked_example_graph_and_bandwidth() -> None:
    near, squared = nearest_neighbours(X, 2)
    assert near[0, :, 0].tolist() == [2, 3, 3, 2]
    assert squared[0, :, 0].tolist() == pytest.approx([0.81, 0.64, 0.09, 0.09])
    assert bandwidth(squared).item() == pytest.approx(0.638357, abs=1e-6)
    step = LaplacianAssignment(0.5, neighbours=2, modes=True, sigma_scale=(1 / 5) ** 0.5)  # the released code's 5 N
    assert step.prepare(Points.of(EXAMPLE))["sigma"].item() == pytest.approx(0.285482, abs=1e-6)


def test_worked_example_bound_step_and_energy() -> None:
    points = Points.of(EXAMPLE)
    cost = points.squared_distances(points.support_means())
    assert cost[0].tolist() == pytest.approx(
        torch.tensor([[0, 4], [4, 0], [0.81, 1.21], [1.44, 0.64]]).numpy(), abs=1e-6
    )
    graph, _ = nearest_neighbours(X, 2)
    first = points.clamped((-cost).softmax(2))
    torch.testing.assert_close(
        first[0, 2:].float(), torch.tensor([[0.598688, 0.401312], [0.310026, 0.689974]]), atol=1e-6, rtol=0
    )
    stepped = bound_step(cost, neighbour_sum(graph, first), 0.5)
    expected = [[0.983676, 0.016324], [0.014921, 0.985079], [0.552314, 0.447686], [0.331521, 0.668479]]
    torch.testing.assert_close(stepped[0].float(), torch.tensor(expected), atol=1e-6, rtol=0)
    energies = [relaxed_energy(cost, neighbour_sum(graph, shares), shares, 0.5).item() for shares in (first, stepped)]
    assert energies == pytest.approx([-0.540951, -0.553961], abs=1e-6)


def test_neighbours_are_scikit_learns() -> None:
    task = Points.of(episodes(3))
    found, squared = nearest_neighbours(task.x, 4)
    for x, near, distances in zip(task.x, found, squared, strict=True):
        peer = NearestNeighbors(n_neighbors=4).fit(x.numpy()).kneighbors(x.numpy())
        assert near.tolist() == peer[1][:, 1:].tolist()
        np.testing.assert_allclose(distances.sqrt(), peer[0][:, 1:], atol=1e-6)


def test_sums_over_neighbours_are_products_with_the_graph() -> None:
    near, _ = nearest_neighbours(Points.of(episodes(3)).x, 4)
    graph = torch.zeros(3, 33, 33, dtype=torch.float64).scatter_(2, near, 1.0)
    shares = torch.rand(3, 33, 3, dtype=torch.float64)
    torch.testing.assert_close(neighbour_sum(near, shares), graph @ shares)
    torch.testing.assert_close(neighbour_sum(near, shares, symmetric=True), (graph + graph.mT) / 2 @ shares)


def test_a_point_on_another_is_not_its_own_neighbour() -> None:
    near, squared = nearest_neighbours(torch.zeros(1, 3, 2), 2)
    assert (near[0, :, 0] != torch.arange(3)).all()
    assert bandwidth(squared).tolist() == [1.0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), weight=st.floats(0.05, 1.0))
def test_bound_steps_never_raise_the_energy_of_a_positive_semidefinite_graph(seed: int, weight: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    root = torch.rand(2, 9, 9, generator=draw, dtype=torch.float64)
    affinity = root @ root.mT
    cost = 4 * torch.rand(2, 9, 3, generator=draw, dtype=torch.float64)
    shares = (-cost).softmax(2)
    for _ in range(5):
        # The energy counts each pair twice, so that its exact bound takes twice the weight of the step.
        stepped = bound_step(cost, 2 * affinity @ shares, weight)
        before, after = (relaxed_energy(cost, affinity @ part, part, weight) for part in (shares, stepped))
        assert (after <= before + 1e-9).all()
        shares = stepped


@pytest.mark.parametrize("method", EVERY)
def test_a_batch_of_episodes_is_each_of_them(method: TransductiveClustering) -> None:
    task = episodes(8)
    together = method.solve(task)
    for at in range(8):
        alone = method.solve(task.take(slice(at, at + 1)))
        torch.testing.assert_close(together.probabilities[at], alone.probabilities[0], atol=1e-9, rtol=0)
        assert together.rounds[at] == alone.rounds[0]


@pytest.mark.parametrize("method", EVERY)
def test_the_order_of_queries_and_classes_does_not_matter(method: TransductiveClustering) -> None:
    task = episodes(4, shots=2)
    order, names = torch.randperm(30, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1])
    found, base = (
        method.solve(
            Episodes(task.support, names[task.support_labels], task.query[:, order], None, 3, None, task.centre)
        ),
        method.solve(task),
    )
    torch.testing.assert_close(found.probabilities[..., names], base.probabilities[:, order], atol=1e-9, rtol=0)


def test_k_means_without_clamping_is_scikit_learns_from_the_support() -> None:
    task = episodes(5)
    found = k_means(normalization="none", shift_query=False, clamp_support=False).solve(task)
    for at in range(5):
        x = torch.cat([task.support[at], task.query[at]]).numpy()
        start = task.support[at].numpy()
        peer = KMeans(3, init=start, n_init=1, max_iter=300, tol=0).fit(x)
        assert (peer.labels_[3:] == found.labels[at].numpy()).mean() > 0.95


def test_modes_are_fixed_points_of_the_kernel_mean() -> None:
    task = episodes(4)
    points = Points.of(task)
    step = LaplacianAssignment(0.0, modes=True)
    points = Points(points.x, points.given, points.norms, step.prepare(points))
    shares = step.start(points, points.support_means())
    modes = Modes().move(points, points.support_means(), shares)
    for at in range(4):
        sigma = points.prepared["sigma"][at]
        for k in range(3):
            members = points.x[at][shares[at, :, k] == 1]
            kernel = torch.exp(-(members - modes[at, k]).square().sum(1) / (2 * sigma**2))
            torch.testing.assert_close(
                (kernel[:, None] * members).sum(0) / kernel.sum(), modes[at, k], atol=1e-3, rtol=0
            )


def test_mode_cost_is_minus_the_kernel() -> None:
    assert mode_cost(torch.tensor([[[2.0]]]), torch.tensor([1.0])).item() == pytest.approx(-np.exp(-1))


def test_support_keeps_its_classes_only_when_clamped() -> None:
    # The labelled point of class 1 lies in the midst of class 0's queries, and the prototypes follow the queries.
    x = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [-0.1, 0.0], [5.0, 0.0], [5.0, 0.1]]])
    points = Points.of(Episodes(x[:, :2], torch.tensor([[0, 1]]), x[:, 2:], None, 2))
    prototypes = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
    for weight in (0.0, 0.5):
        found = []
        for clamp in (True, False):
            step = LaplacianAssignment(weight, clamp=clamp)
            ready = Points(points.x, points.given, points.norms, step.prepare(points))
            found.append(step.assign(ready, prototypes, step.start(ready, prototypes), 1)[0, :2])
        assert found[0].tolist() == [[1, 0], [0, 1]]
        assert found[1].argmax(1).tolist() == [0, 0]


def test_the_shift_helps_when_the_queries_are_elsewhere_and_harms_when_classes_are_missing() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 30)
    features = 2 * random.normal(size=(6, 5))[labels] + 0.5 * random.normal(size=(180, 5))
    all_there = draw_episodes(features, labels, Design(ways=4, shots=3, queries=40), 40)
    moved = all_there.with_features(all_there.support, all_there.query + 3)
    few = draw_episodes(features, labels, Design(ways=4, shots=3, queries=20, present=1), 40)

    def accuracy(task: Episodes, shift: bool) -> float:
        return task.accuracy(k_means(normalization="none", shift_query=shift).solve(task).labels).mean().item()

    assert accuracy(moved, True) > accuracy(moved, False) + 0.2
    assert accuracy(few, True) < accuracy(few, False) - 0.05


def test_laplacian_shot_leaves_prototypes_where_the_support_is() -> None:
    task = episodes(3, shots=2)
    found = laplacian_shot(normalization="none", shift_query=False).solve(task)
    torch.testing.assert_close(found.prototypes, Points.of(task).support_means())
    assert found.rounds.tolist() == [0, 0, 0]


def test_bound_prototypes_are_points() -> None:
    task = episodes(3)
    found = TransductiveClustering(prototype="bound", normalization="none", shift_query=False).solve(task)
    distances = torch.cdist(found.prototypes, torch.cat([task.support, task.query], 1))
    assert (distances.amin(2) < 1e-6).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prototype": "median"}, "prototype 'median' is unknown"),
        ({"laplacian": -1.0}, "0 or more"),
        ({"prototype": "bound", "laplacian": 0.0}, "needs a Laplacian"),
        ({"bandwidth": 0.0}, "bandwidth must be above 0"),
        ({"bandwidth_scale": -1.0}, "bandwidth_scale must be above 0"),
        ({"rounds": 0}, "at least 1 round"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TransductiveClustering(**settings)  # type: ignore[arg-type]


def test_too_many_neighbours_are_named() -> None:
    with pytest.raises(InputError, match=r"neighbours must be between 2 .* and 4, not 5"):
        TransductiveClustering(neighbours=5).solve(EXAMPLE)


def released_slk(x: Tensor, labels: Tensor, weight: float) -> list[int]:
    """SLK-Means of one task in NumPy as the released script runs it: no clamping, hard labels between rounds."""
    points, given = x.numpy(), labels.numpy()
    classes, supports = given.max() + 1, len(given)
    near = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    graph = np.zeros((len(points), len(points)))
    for p, row in enumerate(near):
        graph[p, row] = 1
    means = np.stack([points[:supports][given == k].mean(0) for k in range(classes)])
    label = ((points[:, None] - means) ** 2).sum(2).argmin(1)
    label[:supports] = given
    before = np.inf
    for outer in range(100):
        kept = label
        means = np.stack([points[label == k].mean(0) for k in range(classes)])
        cost = ((points[:, None] - means) ** 2).sum(2)
        share = np.exp(-cost) / np.exp(-cost).sum(1, keepdims=True)
        share[:supports] = np.eye(classes)[given]
        inner = np.inf
        for step in range(600):
            share = np.exp(weight * graph @ share - cost)
            share /= share.sum(1, keepdims=True)
            energy = (share * np.log(share) + share * (cost - weight * graph @ share)).sum()
            if step > 1 and abs(energy - inner) <= 1e-7 * abs(inner):
                break
            inner = energy
        label = share.argmax(1)
        if len(np.unique(label)) < classes:
            return kept[supports:].tolist()
        total = (share * cost).sum() - weight * (share * (graph @ share)).sum()
        if outer > 1 and abs(total - before) <= 1e-4 * abs(before):
            break
        before = total
    return label[supports:].tolist()


def test_without_clamping_it_is_the_released_algorithm() -> None:
    task = episodes(12, shots=2)
    method = TransductiveClustering(prototype="mean", clamp_support=False, normalization="none", shift_query=False)
    found = method.solve(task)
    for at in range(12):
        x = torch.cat([task.support[at], task.query[at]])
        assert found.labels[at].tolist() == released_slk(x, task.support_labels[at], 0.7)
