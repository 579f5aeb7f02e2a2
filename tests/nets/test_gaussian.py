"""The tanh-squashed Normal against independent computations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from thrifty.nets.gaussian import (
    DeterministicPolicy,
    GaussianPolicy,
    bounded_log_std,
    squashed_log_prob,
    squashed_sample,
    squashed_std,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_worked_example():
    action, mean, std = torch.tensor([0.2, -0.5]), torch.tensor([0.3, -0.1]), torch.tensor([0.5, 1.0])
    first = squashed_log_prob(action[:1], mean[:1], std[:1].log())
    assert first.item() == pytest.approx(-0.2038912702, abs=1e-6)
    assert squashed_log_prob(action, mean, std.log()).item() == pytest.approx(-0.9360857366, abs=1e-6)
    assert torch.tanh(mean).tolist() == pytest.approx([0.2913126, -0.0996680], abs=1e-6)


@settings(deadline=None)
@given(st.floats(-0.99, 0.99), st.floats(-2, 2), st.floats(-3, 1))
def test_log_likelihood_agrees_with_torch_distributions(action, mean, log_std):
    a, m, s = (torch.tensor([v], dtype=torch.float64) for v in (action, mean, log_std))
    expected = TransformedDistribution(Normal(m, s.exp()), TanhTransform()).log_prob(a)
    torch.testing.assert_close(squashed_log_prob(a, m, s), expected.sum(-1), rtol=1e-6, atol=1e-6)


def test_density_integrates_to_one():
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1, None]
    mean, log_std = torch.tensor([0.4], dtype=torch.float64), torch.tensor([-0.7], dtype=torch.float64)
    density = squashed_log_prob(grid, mean.expand_as(grid), log_std.expand_as(grid)).exp()
    assert density.sum().item() * 1e-5 == pytest.approx(1, abs=1e-4)


def test_an_action_on_the_border_has_a_finite_likelihood():
    border = torch.tensor([[1.0], [-1.0]])
    assert torch.isfinite(squashed_log_prob(border, torch.zeros(2, 1), torch.zeros(2, 1))).all()


def test_samples_carry_their_own_likelihood():
    mean, log_std = torch.randn(50, 3) * 0.3, torch.full((50, 3), -1.0)
    action, log_prob = squashed_sample(mean, log_std, 4)
    assert action.shape == (4, 50, 3)
    expected = squashed_log_prob(action.double(), mean.double().expand(4, 50, 3), log_std.double().expand(4, 50, 3))
    torch.testing.assert_close(log_prob, expected.float(), rtol=1e-3, atol=1e-3)


def test_far_samples_stay_finite():
    action, log_prob = squashed_sample(torch.tensor([[50.0, -50.0]]), torch.zeros(1, 2))
    assert torch.isfinite(log_prob).all()
    assert action.abs().max() <= 1


@settings(deadline=None)
@given(st.floats(-1e3, 1e3))
def test_log_std_is_bounded(raw):
    assert -5 <= bounded_log_std(torch.tensor([raw])).item() <= 2
    assert bounded_log_std(torch.zeros(1)).item() == pytest.approx(-1.5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.1), (0.5, 0.5), (2.0, 1.0)])
def test_squashed_std_agrees_with_sampling(mean, std):
    torch.manual_seed(0)
    drawn = torch.tanh(mean + std * torch.randn(400_000, dtype=torch.float64))
    m, s = torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64).log()
    assert squashed_std(m, s).item() == pytest.approx(drawn.std().item(), rel=0.01)


def test_policies_have_actions_inside_the_unit_box():
    observation = torch.randn(7, 3) * 10
    mean, log_std = GaussianPolicy(3, 2, (16,))(observation)
    assert mean.shape == log_std.shape == (7, 2)
    action = DeterministicPolicy(3, 2, (16,))(observation)
    assert action.shape == (7, 2)
    assert action.abs().max() <= 1
