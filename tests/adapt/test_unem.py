from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from thrifty.adapt.design import Design
from thrifty.adapt.dirichlet import curvature, dirichlet_log_density, mm_step, most_likely
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.generalised_em import (
    BalancedAssignment,
    GeneralisedEM,
    e_step,
    em_dirichlet,
    em_objective,
    log_balance,
    paddle,
    prepared,
    soft_k_means,
)
from thrifty.adapt.points import Points
from thrifty.adapt.transductive import Means
from thrifty.adapt.unem import UNEM, class_scores, query_loss
from thrifty.adapt.unrolled import UnrolledConfig, UnrolledEM, unrolled_temperatures, unrolled_weights
from thrifty.core.errors import InputError
from thrifty.core.method import load
from thrifty.core.run import Run
from thrifty.nets.vision import load_net, save_net

SUPPORT, QUERY = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[0.9, 0.0], [1.5, 0.0], [2.2, 0.0]]])
EXAMPLE = Episodes(SUPPORT, torch.tensor([[0, 1]]), QUERY, torch.tensor([[0, 1, 1]]), 2)


def episodes(count: int = 8, *, seed: int = 0, ways: int = 6, present: int = 2, scale: float = 1.0) -> Episodes:
    random = np.random.default_rng(4)
    labels = np.repeat(np.arange(12), 40)
    features = scale * (0.6 * random.normal(size=(12, 16))[labels] + random.normal(size=(480, 16)))
    design = Design(ways=ways, shots=1, queries=24, present=present, balance="pooled")
    return draw_episodes(features.astype(np.float32), labels, design, count, seed=seed)


def test_registered_under_its_id() -> None:
    assert load("unem") is UNEM


def test_first_values_are_those_of_the_paper() -> None:
    net = UnrolledEM(UnrolledConfig())
    assert net.balances.tolist() == pytest.approx([1.313262] * 10, abs=1e-6)
    assert net.temperatures.tolist() == pytest.approx([2.313262] * 10, abs=1e-6)
    assert net.scale.item() == pytest.approx(1.313262, abs=1e-6)
    assert sum(part.numel() for part in net.parameters()) == 21
    assert unrolled_weights(torch.tensor(0.0)).item() == pytest.approx(math.log(2))
    assert unrolled_temperatures(torch.tensor(-50.0)).item() == pytest.approx(1.0)


def test_worked_example_of_two_gaussian_layers() -> None:
    net = UnrolledEM(UnrolledConfig(layers=1))
    first = net.solve(EXAMPLE).probabilities[0]
    expected = [[0.537209, 0.462791], [0.321791, 0.678209], [0.143156, 0.856844]]
    torch.testing.assert_close(first, torch.tensor(expected), atol=1e-6, rtol=0)
    balance = log_balance(first[None], 1e-6)
    torch.testing.assert_close(balance, torch.tensor([[-0.096456, 0.593458]]), atol=2e-6, rtol=0)
    points = Points.of(prepared(EXAMPLE, "gaussian", net.scale.detach(), "none"))
    shares = points.clamped(torch.cat([torch.zeros(1, 2, 2), first[None]], 1))
    moved = Means().move(points, points.support_means(), shares)
    torch.testing.assert_close(moved, torch.tensor([[[0.840315, 0.0], [2.330036, 0.0]]]), atol=1e-5, rtol=0)
    two = UnrolledEM(UnrolledConfig(layers=2)).solve(EXAMPLE).probabilities
    expected = [[0.467051, 0.532949], [0.345376, 0.654624], [0.225930, 0.774070]]
    torch.testing.assert_close(two[0], torch.tensor(expected), atol=2e-6, rtol=0)
    assert EXAMPLE.query_labels is not None
    assert query_loss(two, EXAMPLE.query_labels, "released").item() == pytest.approx(0.577748, abs=1e-6)
    assert query_loss(two, EXAMPLE.query_labels).item() == pytest.approx(0.480368, abs=2e-6)


def test_worked_example_of_a_dirichlet_step() -> None:
    mean = torch.tensor([[0.6, 0.3, 0.1], [0.7, 0.2, 0.1]], dtype=torch.float64).log().mean(0)[None, None]
    ones = torch.ones(1, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(
        mm_step(ones, mean)[0, 0], torch.tensor([1.752989, 1.051940, 0.660019]).double(), atol=1e-6, rtol=0
    )
    found = most_likely(ones, mean, 20_000)[0, 0]
    torch.testing.assert_close(found, torch.tensor([92.9, 35.4, 14.8]).double(), atol=0.4, rtol=0)
    rest = torch.digamma(found) - torch.digamma(found.sum()) - mean[0, 0]
    assert rest.abs().max() < 1e-5


def test_curvature_is_continuous_at_zero() -> None:
    at = curvature(torch.tensor([0.0, 1e-3], dtype=torch.float64))
    assert at[0].item() == pytest.approx(math.pi**2 / 6)
    assert at[1].item() == pytest.approx(math.pi**2 / 6, abs=3e-3)


def test_density_is_torchs() -> None:
    alpha = 3 * torch.rand(2, 4, 3, dtype=torch.float64) + 0.2
    z = torch.rand(2, 5, 3, dtype=torch.float64).softmax(2)
    peer = torch.distributions.Dirichlet(alpha[:, None]).log_prob(z[:, :, None])
    torch.testing.assert_close(dirichlet_log_density(z.log(), alpha), peer)


def test_mm_steps_never_lower_the_likelihood() -> None:
    alpha, mean = (
        torch.ones(3, 4, 5, dtype=torch.float64),
        torch.randn(3, 4, 5, dtype=torch.float64).log_softmax(2) - 0.3,
    )
    before = torch.full((3, 4), -torch.inf, dtype=torch.float64)
    for _ in range(30):
        alpha = mm_step(alpha, mean)
        after = torch.lgamma(alpha.sum(2)) - torch.lgamma(alpha).sum(2) + ((alpha - 1) * mean).sum(2)
        assert (after >= before - 1e-12).all()
        before = after


def test_implicit_gradients_are_those_through_all_steps() -> None:
    mean = (torch.rand(2, 2, 3, dtype=torch.float64).log_softmax(2) - 0.4).requires_grad_()
    ones, weight = torch.ones(2, 2, 3, dtype=torch.float64), torch.rand(2, 2, 3, dtype=torch.float64)
    found = [
        torch.autograd.grad((most_likely(ones, mean, 800, through_steps=through) * weight).sum(), mean)[0]
        for through in (False, True)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_one_layer_without_balance_is_a_softmax_over_distances() -> None:
    task = episodes(3)
    found = GeneralisedEM(balance=0.0, rounds=1).solve(task).probabilities
    distances = torch.cdist(task.query.double(), task.support.double()).square()
    torch.testing.assert_close(found.double(), (-distances / 2).softmax(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["gaussian", "dirichlet"])
def test_permuting_classes_or_queries_permutes_the_shares(form: str) -> None:
    task = episodes(3)
    order, names = torch.randperm(24, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = replace(
        task, support_labels=names[task.support_labels], query=task.query[:, order], query_labels=None, names=None
    )
    net = UnrolledEM(UnrolledConfig(form=form, layers=4, mm_steps=60))  # type: ignore[arg-type]
    base, found = (
        net.solve(class_scores(part) if form == "dirichlet" else part).probabilities for part in (task, moved)
    )
    torch.testing.assert_close(found[..., names], base[:, order], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "method", [UNEM(), paddle(), UNEM(form="dirichlet", layers=3, mm_steps=60), em_dirichlet(3.0, mm_steps=20)]
)
def test_a_batch_of_tasks_is_each_of_them(method: UNEM | GeneralisedEM) -> None:
    task = episodes(4)
    task = class_scores(task) if method.form == "dirichlet" else task
    together = method.solve(task)
    for at in range(4):
        alone = method.solve(task.take(slice(at, at + 1)))
        torch.testing.assert_close(together.probabilities[at], alone.probabilities[0], atol=1e-5, rtol=0)


def test_the_scale_multiplies_the_features() -> None:
    task = episodes(3)
    net = UnrolledEM(UnrolledConfig())
    scaled = UnrolledEM(UnrolledConfig(learn_scale=False))
    factor = net.scale.detach()
    by_hand = scaled.solve(task.with_features(factor * task.support, factor * task.query))
    torch.testing.assert_close(net.solve(task).probabilities, by_hand.probabilities, atol=1e-5, rtol=0)


def test_em_lowers_its_objective() -> None:
    points = Points.of(episodes(5))
    step = BalancedAssignment("gaussian", torch.tensor([1.0]), torch.tensor([1.5]))
    prototypes = points.support_means()
    shares = step.start(points, prototypes)
    before = step.energy(points, prototypes, shares)
    for number in range(1, 8):
        prototypes = Means().move(points, prototypes, shares)
        shares = step.assign(points, prototypes, shares, number)
        after = step.energy(points, prototypes, shares)
        assert (after <= before + 1e-3).all()
        before = after


def test_objective_by_hand() -> None:
    shares = torch.tensor([[[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]])
    density = torch.tensor([[[-1.0, -9.0], [-2.0, -3.0], [-4.0, -5.0]]])
    share = [0.375, 0.625]
    by_hand = 1 + 0.25 * 2 + 0.75 * 3 + 0.5 * 4 + 0.5 * 5
    by_hand -= 2.0 * 2 * sum(p * math.log(p) for p in share)
    by_hand += 3.0 * (0.25 * math.log(0.25) + 0.75 * math.log(0.75) + math.log(0.5))
    assert em_objective(density, shares, 1, 2.0, 3.0).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_larger_balance_prefers_fewer_classes() -> None:
    task = episodes(20)

    def used(balance: float) -> float:
        labels = GeneralisedEM(balance=balance).solve(task).labels
        return float(np.mean([len(set(row.tolist())) for row in labels]))

    assert used(0.0) > used(1.0) > used(8.0) >= 1


def test_plain_em_is_e_step_with_log_shares() -> None:
    density, shares = torch.randn(1, 3, 2), torch.tensor([[[0.3, 0.7], [0.4, 0.6], [0.2, 0.8]]])
    found = e_step(density, log_balance(shares, 0.0), 1.0, 1.0)
    expected = density.exp() * shares.mean(1, keepdim=True)
    torch.testing.assert_close(found, expected / expected.sum(2, keepdim=True))


def run(path: Path) -> Run:
    return Run(path, seed=0, device="cpu")


@pytest.mark.parametrize("loss", ["likelihood", "released"])
def test_unrolling_learns_what_helps_on_other_tasks(loss: str, tmp_path: Path) -> None:
    validation, test = episodes(30, seed=1, scale=0.3), episodes(40, seed=2, scale=0.3)
    with run(tmp_path / "run") as job:
        learnt = UNEM(layers=4, steps=30, loss=loss).learn(validation, job)  # type: ignore[arg-type]
    assert test.query_labels is not None
    first, last = (
        query_loss(method.solve(test).probabilities, test.query_labels, loss).item()  # type: ignore[arg-type]
        for method in (UNEM(layers=4), learnt)
    )
    assert last < first - 0.01
    assert test.accuracy(learnt.solve(test).labels).mean() > test.accuracy(soft_k_means().solve(test).labels).mean()
    assert len(learnt.values()) == 4
    save_net(learnt, tmp_path / "net")
    again = load_net(tmp_path / "net")
    assert isinstance(again, UnrolledEM)
    assert torch.equal(again.solve(test).labels, learnt.solve(test).labels)


def test_learning_is_the_same_twice_and_shared_parameters_are_few(tmp_path: Path) -> None:
    nets = []
    for name in "ab":
        with run(tmp_path / name) as job:
            nets.append(UNEM(layers=3, steps=5, per_layer=False, batch_episodes=4).learn(episodes(8), job))
    assert torch.equal(nets[0].raw_balance, nets[1].raw_balance)
    assert nets[0].raw_balance.shape == (1,)
    only = UnrolledEM(UnrolledConfig(learn_temperature=False, learn_scale=False))
    assert [name for name, _ in only.named_parameters()] == ["raw_balance"]
    assert only.temperatures.tolist() == [1.0]


def test_dirichlet_form_learns_and_begins_at_the_ratio_of_classes(tmp_path: Path) -> None:
    validation = class_scores(episodes(12, seed=1, present=2))
    method = UNEM(form="dirichlet", layers=3, steps=4, mm_steps=50, batch_episodes=6)
    with run(tmp_path / "run") as job:
        learnt = method.learn(validation, job)
    # K = 6 of which 2 are there: a begins at 3, and moves by at most a step size each time.
    assert (learnt.raw_balance.detach() - 3).abs().max() <= 4 * 0.5
    assert (learnt.raw_balance.detach() - 3).abs().max() > 0
    assert learnt.solve(validation).probabilities.sum(2).allclose(torch.tensor(1.0, dtype=torch.float64))


def test_class_scores_are_cosines_to_anchors() -> None:
    task = episodes(2)
    anchors = torch.randn(6, 16)
    found = class_scores(task, anchors)
    expected = torch.nn.functional.cosine_similarity(task.query[1, 3], anchors, dim=1)
    torch.testing.assert_close(found.query[1, 3], expected, atol=1e-5, rtol=1e-4)
    own = class_scores(task)
    at = own.support.gather(2, task.support_labels[..., None])
    torch.testing.assert_close(at, torch.ones_like(at))  # one shot: each example is its own class' anchor


def bare(task: Episodes) -> Episodes:
    return replace(task, query_labels=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "poisson"}, "form 'poisson' is unknown"),
        ({"loss": "mse"}, "loss 'mse' is unknown"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"balance_init": math.nan}, "balance_init must be a finite number"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        UNEM(**settings)  # type: ignore[arg-type]


def test_wrong_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a score for each of the 6 classes, not 16 features"):
        UNEM(form="dirichlet").solve(episodes(2))
    with run(tmp_path / "run") as job, pytest.raises(InputError, match="have no labels: there is nothing to learn"):
        UNEM().learn(bare(episodes(2)), job)
    with pytest.raises(InputError, match="temperature above 0"):
        GeneralisedEM(temperature=0.0)


def test_released_gaussian_layers_in_plain_numpy() -> None:
    """The layers of one task written out, beside the network at its first values."""
    task = episodes(3)
    net = UnrolledEM(UnrolledConfig(layers=6))
    found = net.solve(task).probabilities
    scale, weight, heat = net.scale.item(), net.balances[0].item(), net.temperatures[0].item()
    for at in range(3):
        support, query = (scale * part[at].double().numpy() for part in (task.support, task.query))
        given = np.eye(6)[task.support_labels[at]]
        centroid, balance = given.T @ support / given.sum(0)[:, None], np.ones(6)
        shares = np.zeros((24, 6))
        for _ in range(6):
            logits = query @ centroid.T - 0.5 * (centroid**2).sum(1) - 0.5 * (query**2).sum(1, keepdims=True)
            logits = (logits + weight * balance) / heat
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            balance = np.log(shares.mean(0) + 1e-6) + 1
            centroid = (shares.T @ query + given.T @ support) / (shares.sum(0) + given.sum(0))[:, None]
        np.testing.assert_allclose(found[at].numpy(), shares, atol=1e-4)


def test_gradient_reaches_every_parameter() -> None:
    task = episodes(3)
    net = UnrolledEM(UnrolledConfig(layers=3))
    assert task.query_labels is not None
    query_loss(net(task), task.query_labels).backward()

    def moves(part: Tensor | None) -> bool:
        return part is not None and part.grad is not None and bool(part.grad.abs().min() > 0)

    # The first layer's weight multiplies even shares, which a softmax does not see.
    assert net.raw_balance.grad is not None
    assert net.raw_balance.grad[0] == pytest.approx(0, abs=1e-7)
    assert (net.raw_balance.grad[1:].abs() > 0).all()
    assert moves(net.raw_temperature)
    assert moves(net.raw_scale)
