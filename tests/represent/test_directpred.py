from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.represent.conftest import bars
from torch import nn

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.core.loop import Shuffled
from thrifty.core.run import Run
from thrifty.nets.self_supervised import ViewTraining, byol_loss, train_views
from thrifty.represent.directpred import (
    DirectPred,
    DirectPredictor,
    correlation,
    direct_copy,
    direct_predictor,
    dynamics_optimum,
    least_squares,
)
from thrifty.represent.spectra import SPECTRA
from thrifty.represent.two_view_baselines import BYOL, SimSiam

F = torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, 2.0], [0.0, 0.0]])
C = torch.tensor([[1.5, 1.0], [1.0, 1.5]])


def pair(diagonal: float, beside: float) -> torch.Tensor:
    return torch.tensor([[diagonal, beside], [beside, diagonal]])


def test_worked_example_of_the_correlation() -> None:
    torch.testing.assert_close(correlation(F, F), C)


@pytest.mark.parametrize(
    ("spectrum", "expected"), [("paper", pair(1.394123, 0.437016)), ("relative", pair(0.823607, 0.276393))]
)
def test_worked_example_of_the_matrix(spectrum, expected) -> None:
    torch.testing.assert_close(direct_predictor(C, 0.1, spectrum=spectrum), expected, atol=2e-6, rtol=0)
    predictor = DirectPredictor(2, DirectPred(spectrum=spectrum))
    predictor.update(F)
    torch.testing.assert_close(predictor.weight, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(predictor(F[:1]), (expected @ F[0])[None], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        ("relative-inside", (0.3**0.5, 1.1**0.5)),
        ("mean", (1.0, 2.0)),
        ("clamp", (0.5, 0.8)),
        ("scale", (0.5 / 2.7, 2.5 / 2.7)),
    ],
)
def test_other_spectra_of_the_eigenvalues_a_half_and_two_and_a_half(spectrum, expected) -> None:
    found = SPECTRA[spectrum](torch.tensor([0.5, 2.5]), 0.1, 0.5, 0.2)
    scale = 0.8 if spectrum == "relative-inside" else 1.0
    torch.testing.assert_close(found, scale * torch.tensor(expected))


def test_scale_leaves_small_eigenvalues_and_clamp_negative_ones_at_zero() -> None:
    small = torch.tensor([-0.1, 0.4])
    torch.testing.assert_close(SPECTRA["scale"](small, 0.1, 0.5, 0.2), small)
    torch.testing.assert_close(SPECTRA["clamp"](small, 0.1, 0.5, 0.2), torch.tensor([0.0, 0.4]))
    torch.testing.assert_close(SPECTRA["paper"](small, 0.1, 0.5, 0.0), torch.tensor([0.04, 0.4**0.5 + 0.04]))


def test_direct_copy_needs_no_eigenvectors() -> None:
    torch.testing.assert_close(direct_copy(C, 0.3), pair(0.9, 0.4))


def test_the_diagonal_alone_gives_a_diagonal_matrix() -> None:
    torch.testing.assert_close(direct_predictor(C, 0.1, diagonal=True), (1.5**0.5 + 0.15) * torch.eye(2))


def covariance(dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    f = torch.randn(3 * dim, dim, generator=draw, dtype=torch.float64)
    return f, torch.randn(3 * dim, dim, generator=draw, dtype=torch.float64)


dims, seeds = st.integers(2, 7), st.integers(0, 99)


@given(dims, seeds, st.sampled_from(sorted(SPECTRA)))
def test_the_matrix_is_symmetric_has_no_negative_eigenvalue_and_commutes(dim, seed, spectrum) -> None:
    f, _ = covariance(dim, seed)
    f_hat = correlation(f, f)
    w = direct_predictor(f_hat, 0.1, spectrum=spectrum)
    torch.testing.assert_close(w, w.T)
    assert torch.linalg.eigvalsh(w).min() > -1e-9
    torch.testing.assert_close(w @ f_hat, f_hat @ w)


@given(dims, seeds, st.floats(0.01, 100))
def test_the_loss_does_not_know_the_scale_of_the_matrix(dim, seed, scale) -> None:
    f, t = covariance(dim, seed)
    w = direct_predictor(correlation(f, f), 0.1)
    p, q, a, b = f[:dim], f[dim : 2 * dim], t[:dim], t[dim : 2 * dim]
    torch.testing.assert_close(byol_loss(p @ (scale * w), q @ (scale * w), a, b), byol_loss(p @ w, q @ w, a, b))


@given(dims, seeds)
def test_paper_and_code_agree_where_the_largest_eigenvalue_is_one(dim, seed) -> None:
    f, _ = covariance(dim, seed)
    f_hat = correlation(f, f)
    f_hat = f_hat / torch.linalg.eigvalsh(f_hat).max()
    torch.testing.assert_close(direct_predictor(f_hat, 0.1), direct_predictor(f_hat, 0.1, spectrum="relative"))


@given(dims, seeds)
def test_the_dynamics_rest_at_their_optimum_and_least_squares_is_that_of_torch(dim, seed) -> None:
    f, t = covariance(dim, seed)
    f_hat, cross = correlation(f, f), correlation(t, f)
    w = dynamics_optimum(f_hat, cross, 0.3)
    still = -f_hat @ w - w @ f_hat + cross + cross.T - 0.3 * w
    torch.testing.assert_close(still, torch.zeros_like(still), atol=1e-9, rtol=0)
    torch.testing.assert_close(least_squares(f_hat, cross, 0.0), torch.linalg.lstsq(f, t).solution.T)
    s, u = torch.linalg.eigh(f_hat)
    aligned = u.T @ dynamics_optimum(f_hat, cross, 0.0, diagonal=True) @ u
    torch.testing.assert_close(aligned, ((u.T @ cross @ u).diagonal() / s).diag())


def test_rho_is_the_share_of_the_old_and_the_first_is_taken_whole() -> None:
    predictor, other = DirectPredictor(2, DirectPred(rho=0.3)), torch.tensor([[0.0, 2.0]])
    predictor.update(F)
    torch.testing.assert_close(predictor.correlation, C)
    predictor.update(other)
    torch.testing.assert_close(predictor.correlation, 0.3 * C + 0.7 * torch.tensor([[0.0, 0.0], [0.0, 4.0]]))


def test_centred_correlations_leave_out_the_mean_direction() -> None:
    predictor = DirectPredictor(2, DirectPred(center=True))
    predictor.update(F)
    mean = F.mean(0)
    torch.testing.assert_close(predictor.weight, direct_predictor(C - torch.outer(mean, mean), 0.1))


def test_the_matrix_is_set_every_so_often_and_held_or_trained_in_between() -> None:
    held = DirectPredictor(2, DirectPred(freq=2))
    held.update(F)
    first = held.weight.clone()
    held.update(torch.randn(8, 2))
    assert torch.equal(held.weight, first)
    held.update(torch.randn(8, 2))
    assert not torch.equal(held.weight, first)
    assert not list(held.parameters())
    trained = DirectPredictor(2, DirectPred(freq=2, between="train", symmetric=True))
    trained.update(F)
    with torch.no_grad():
        trained.weight[0, 1] += 1
    trained.update(F)
    torch.testing.assert_close(trained.weight, first + torch.tensor([[0.0, 0.5], [0.5, 0.0]]))
    assert [name for name, _ in trained.named_parameters()] == ["weight"]
    assert not list(DirectPredictor(2, DirectPred(freq=1, between="train")).parameters()), "a step would be for nothing"


def test_rules_that_look_at_the_targets() -> None:
    for rule in ("dynamics", "solve"):
        predictor = DirectPredictor(2, DirectPred(rule=rule))
        predictor.update(F, 2 * F)
        torch.testing.assert_close(predictor.weight, 2 * torch.eye(2))
        with pytest.raises(InputError, match=f"the rule {rule} needs the targets"):
            predictor.update(F)


def test_a_projection_that_is_not_finite_is_said() -> None:
    with pytest.raises(NonFiniteError, match="a projection is not finite"):
        DirectPredictor(2).update(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rho": 1.0}, "rho must be at least 0 and below 1, not 1"),
        ({"freq": -1}, "freq must be a number of steps"),
        ({"freq": 0}, "never set"),
        ({"power": 0.0}, "power must be above 0"),
        ({"shrinkage": -0.1}, "shrinkage must be at least 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"teacher_momentum": 1.0}, "teacher_momentum must be at least 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        DirectPred(**settings)


SMALL = DirectPred(epochs=2, batch_size=16, hidden=16, projection=8, views="none", teacher_momentum=0.9)


def encoder() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU())


def test_no_gradient_reaches_the_teacher_or_the_statistics() -> None:
    learner = SMALL.learner(encoder(), 24, 4)
    learner.loss(torch.randn(12, 1, 8, 8)).value.backward()
    assert all(weight.grad is None for weight in learner.teacher.parameters())
    assert all(weight.grad is not None for weight in learner.online.parameters())
    learner.after_step()
    assert not learner.predictor.correlation.requires_grad
    assert not learner.predictor.weight.requires_grad


def test_a_step_is_forward_then_optimizer_then_matrix_and_teacher(run: Run) -> None:
    learner, (x, _) = SMALL.learner(encoder(), 24, 1), bars()
    pictures = torch.from_numpy(x)[:, None]
    before = copy.deepcopy(learner).train()
    train_views(learner, pictures, lambda views: views, run, ViewTraining(epochs=1, batch_size=80))
    assert int(learner.steps_taken) == 1
    with torch.no_grad():
        view = before.online(pictures[Shuffled(80, 80, run.seed)(0)].float() / 127.5 - 1)
    torch.testing.assert_close(learner.predictor.correlation, view.T @ view / 80, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(learner.predictor.weight, direct_predictor(learner.predictor.correlation, 0.1))
    start, now, teacher = (list(net.parameters()) for net in (before.online, learner.online, learner.teacher))
    for a, b, c in zip(start, now, teacher, strict=True):
        assert not torch.equal(a, b) or a.ndim == 1
        torch.testing.assert_close(c, 0.9 * a + 0.1 * b)


def test_training_spreads_the_classes_and_gives_an_encoder_in_evaluation_mode(run: Run) -> None:
    x, _ = bars()
    net = SMALL.fit(x, run, encoder())
    assert not net.training
    features = net(torch.from_numpy(x)[:, None].float() / 127.5 - 1)
    assert features.shape == (80, 24)


@pytest.mark.parametrize("method", [BYOL(), BYOL(head="linear"), BYOL(head="none"), SimSiam()])
def test_baselines_share_the_loop(method, run: Run) -> None:
    small = replace(method, epochs=1, batch_size=16, hidden=16, projection=8, views="none")
    learner = small.train(bars()[0], run, encoder())
    assert int(learner.steps_taken) == 5
    assert (learner.teacher is None) == isinstance(method, SimSiam)


def test_wrong_pictures_and_encoders_are_named(run: Run) -> None:
    with pytest.raises(InputError, match="pictures must be uint8"):
        SMALL.fit(torch.rand(8, 1, 8, 8), run, encoder())
    with pytest.raises(InputError, match="the encoder can't take pictures"):
        SMALL.fit(bars()[0], run, nn.Linear(3, 2))
    with pytest.raises(InputError, match="at least 2 pictures"):
        SMALL.fit(bars(1)[0], run, encoder())
