from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from thrifty.adapt import transductive
from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.few_shot import Prototypes, preprocess
from thrifty.adapt.nmc import NMC
from thrifty.adapt.points import Points, hard, weighted_means
from thrifty.adapt.settling import rows_of, settle
from thrifty.adapt.transductive import AssignmentStep, Fixed, Means, PrototypeStep, SoftAssignment, TransductiveSolver
from thrifty.core.errors import InputError


def episodes(count: int = 12, present: int | None = None, *, spread: float = 1.0) -> Episodes:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 24)
    means = random.normal(size=(9, 6))
    features = means[labels] + spread * random.normal(size=(len(labels), 6))
    return draw_episodes(features, labels, Design(ways=4, shots=2, queries=20, present=present), count)


def test_distances_and_means_are_what_they_say() -> None:
    points = Points.of(episodes(3))
    prototypes = points.support_means()
    expected = torch.cdist(points.x, prototypes).square()
    torch.testing.assert_close(points.squared_distances(prototypes), expected)
    weights = torch.rand(3, 28, 4, dtype=torch.float64)
    by_hand = torch.stack([(w.T @ x) / w.sum(0)[:, None] for w, x in zip(weights, points.x, strict=True)])
    torch.testing.assert_close(weighted_means(points.x, weights), by_hand)


def test_support_rows_are_put_back() -> None:
    points = Points.of(episodes(2))
    clamped = points.clamped(torch.zeros(2, 28, 4))
    assert torch.equal(clamped[:, :8], points.given)
    assert not clamped[:, 8:].any()


@pytest.mark.parametrize("tolerance", [None, 1e-4])
def test_a_batch_of_episodes_is_each_of_them(tolerance: float | None) -> None:
    whole = episodes(12)
    solver = TransductiveSolver(SoftAssignment(0.7), Means(), rounds=9, tolerance=tolerance)
    together = solver.solve(whole)
    for at in range(12):
        alone = solver.solve(whole.take(slice(at, at + 1)))
        torch.testing.assert_close(together.probabilities[at], alone.probabilities[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(together.prototypes[at], alone.prototypes[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(together.energy[at], alone.energy[0])
        assert together.rounds[at] == alone.rounds[0]


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, solver = episodes(10), TransductiveSolver(SoftAssignment(), Means())
    expected = solver.solve(whole)
    monkeypatch.setattr(transductive, "_NUMBERS", 400)
    found = solver.solve(whole)
    torch.testing.assert_close(found.probabilities, expected.probabilities)
    assert torch.equal(found.rounds, expected.rounds)


def test_an_episode_stops_at_its_own_time_with_its_last_state() -> None:
    @dataclass(frozen=True)
    class Counting(AssignmentStep):
        """Its energy rests at the round that the first point says."""

        def assign(self, points: Points, prototypes: Tensor, previous: Tensor, step: int) -> Tensor:
            return previous + step

        def energy(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:
            until = points.x[:, 0, 0]
            return torch.minimum(assignment[:, 0, 0], until * (until + 1) / 2)

    features = torch.tensor([2.0, 5.0, 3.0, 40.0])[:, None, None].expand(4, 2, 1)
    labels = torch.tensor([[0, 1]]).expand(4, 2)
    task = Episodes(features, labels, features, None, 2)
    found = TransductiveSolver(Counting(), Fixed(), rounds=20, tolerance=0.0, least_rounds=1).solve(task)
    assert found.rounds.tolist() == [3, 6, 4, 20]
    assert (found.probabilities[:, 0, 0] - 0.5).tolist() == [6, 21, 10, 210]


def test_settling_keeps_a_rows_state_when_it_was_done() -> None:
    def halve(number: int, state: tuple[Tensor, ...], fixed: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        return (state[0] / 2,), state[0] / 2 < fixed[0]

    start, below = torch.full((5,), 64.0), torch.tensor([40.0, 1.5, 40.0, 9.0, 0.0])
    (found,), counts = settle(halve, (start,), (below,), 10, rows_of)
    assert found.tolist() == [32, 1, 32, 8, 0.0625]
    assert counts.tolist() == [1, 6, 1, 3, 10]


def test_a_round_that_empties_a_class_is_taken_back() -> None:
    @dataclass(frozen=True)
    class Collapsing(SoftAssignment):
        def assign(self, points: Points, prototypes: Tensor, previous: Tensor, step: int) -> Tensor:
            shares = super().assign(points, prototypes, previous, step)
            return (
                shares
                if step < 2
                else torch.nn.functional.one_hot(torch.zeros_like(shares[..., 0]).long(), 4).to(shares)
            )

    task = episodes(3)
    kept = TransductiveSolver(Collapsing(), Means(), tolerance=1e-9, least_rounds=9, keep_classes=True).solve(task)
    assert kept.rounds.tolist() == [2, 2, 2]
    one = TransductiveSolver(SoftAssignment(), Means(), rounds=1, tolerance=None).solve(task)
    torch.testing.assert_close(kept.probabilities, one.probabilities)
    torch.testing.assert_close(kept.prototypes, one.prototypes)


def test_gradients_flow_when_all_episodes_take_all_rounds() -> None:
    task = episodes(3)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def loss(scale: Tensor) -> Tensor:
        scaled = task.with_features(scale * task.support, scale * task.query)
        return (
            TransductiveSolver(SoftAssignment(), Means(), rounds=4, tolerance=None).solve(scaled).probabilities[0, 0, 0]
        )

    assert torch.autograd.gradcheck(loss, (scale,))


def test_soft_k_means_lowers_its_free_energy() -> None:
    points = Points.of(episodes(5, spread=2.0))
    step, prototypes = SoftAssignment(), points.support_means()
    free = []
    for _ in range(6):
        shares = step.assign(points, prototypes, torch.empty(0), 0)
        free.append(step.energy(points, prototypes, shares) + torch.xlogy(shares, shares).sum((1, 2)))
        prototypes = Means().move(points, prototypes, shares)
    changes = torch.stack(free).diff(dim=0)
    assert (changes <= 1e-9).all()


class SpanningMeans(Means):
    in_span = True


@pytest.mark.parametrize("prototype", [SpanningMeans(), SpanningMeans(of_labels=True)])
def test_many_dimensions_are_solved_in_as_few_as_there_are_points(prototype: PrototypeStep) -> None:
    draw = torch.Generator().manual_seed(0)
    means, noise = torch.randn(3, 100, generator=draw), 2 * torch.randn(4, 24, 100, generator=draw)
    labels = torch.arange(24).remainder(3).expand(4, -1)
    x = (means[labels] + noise) / 10
    task = Episodes(x[:, :6], labels[:, :6], torch.cat([x[:, 6:], x[:, 6:8]], 1), None, 3)  # two points twice
    points = Points.of(task)
    small, back = points.compressed()
    assert small.x.shape == (4, 26, 26)
    torch.testing.assert_close(small.squared_distances(small.x), points.squared_distances(points.x), atol=3e-5, rtol=0)
    torch.testing.assert_close(back(small.support_means()), points.support_means(), atol=1e-4, rtol=0)
    solver = TransductiveSolver(SoftAssignment(), prototype, rounds=5, tolerance=None)
    found = solver.solve(task)
    needs_gradient = task.with_features(task.support.requires_grad_(), task.query)
    plain = solver.solve(needs_gradient)
    torch.testing.assert_close(found.probabilities, plain.probabilities.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.prototypes, plain.prototypes.detach(), atol=1e-3, rtol=0)


def test_hard_takes_the_first_of_equals() -> None:
    assert hard(torch.tensor([[[0.5, 0.5], [0.2, 0.8]]])).tolist() == [[[1, 0], [0, 1]]]


def test_prototypes_are_nmc_on_each_episode() -> None:
    task = episodes(4)
    found = Prototypes(normalization="unit").solve(task)
    for at in range(4):
        head = NMC(renormalize_means=False).fit(task.support[at], task.support_labels[at])
        assert torch.equal(head.predict(task.query[at]), found.labels[at])


def test_centring_takes_the_given_mean_or_the_episodes_own() -> None:
    task = episodes(2)
    own = preprocess(task, "centred")
    everything = torch.cat([task.support, task.query], 1)
    moved = everything - everything.mean(1, keepdim=True)
    torch.testing.assert_close(torch.cat([own.support, own.query], 1), moved / moved.norm(dim=2, keepdim=True))
    task = Episodes(task.support, task.support_labels, task.query, None, 4, centre=torch.ones(6))
    given = preprocess(task, "centred", shift_query=True)
    torch.testing.assert_close(given.support.norm(dim=2), torch.ones(2, 8, dtype=torch.float64))
    torch.testing.assert_close(given.query.mean(1), given.support.mean(1))
    assert torch.equal(preprocess(task, "none").query, task.query)


def test_results_speak_the_users_names() -> None:
    task = Episodes.single([[0.0, 1.0], [1.0, 0.0]], ["north", "east"], [[0.1, 0.9], [0.8, 0.3]])
    found = Prototypes("none").solve(task)
    assert found.named(task).tolist() == [["north", "east"]]
    drawn = episodes(2)
    assert drawn.names is not None
    result = Prototypes().solve(drawn)
    assert result.named(drawn)[1, 3] == drawn.name(1, int(result.labels[1, 3]))


def test_a_vector_of_zeros_warns_and_an_unknown_normalization_is_named() -> None:
    task = Episodes.single([[0.0, 0.0], [1.0, 0.0]], [0, 1], [[0.1, 0.9]])
    with pytest.warns(UserWarning, match="1 feature vectors are all zero"):
        preprocess(task, "unit")
    with pytest.raises(InputError, match="normalization 'l2' is unknown"):
        preprocess(task, "l2")  # type: ignore[arg-type]
