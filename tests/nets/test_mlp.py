"""Batched ensembles equal their members one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.nets.mlp import EnsembleCritic, EnsembleMLP, follow, orthogonal_, target_of


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def one_by_one(ensemble: EnsembleMLP, x: torch.Tensor, member: int) -> torch.Tensor:
    for i, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        x = x @ weight[member] + bias[member]
        x = x.relu() if i + 1 < len(ensemble.weights) else x
    return x


def test_each_member_is_a_perceptron_of_its_own():
    ensemble, x = EnsembleMLP(3, 4, 2, (8, 5)), torch.randn(6, 4)
    out = ensemble(x)
    assert out.shape == (3, 6, 2)
    for member in range(3):
        torch.testing.assert_close(out[member], one_by_one(ensemble, x, member))


def test_each_member_can_have_its_own_batch():
    ensemble, x = EnsembleMLP(2, 4, 1, (8,)), torch.randn(2, 6, 4)
    for member in range(2):
        torch.testing.assert_close(ensemble(x)[member], one_by_one(ensemble, x[member], member))


def test_first_members_alone_are_the_same():
    ensemble, x = EnsembleMLP(3, 4, 1, (8,)), torch.randn(6, 4)
    torch.testing.assert_close(ensemble(x, first=2), ensemble(x)[:2])


def test_frozen_passes_the_gradient_to_the_input_only():
    ensemble, x = EnsembleMLP(2, 4, 1, (8,)), torch.randn(6, 4, requires_grad=True)
    ensemble(x, frozen=True).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in ensemble.parameters())


def test_orthogonal_members_have_orthogonal_rows_and_zero_biases():
    ensemble = EnsembleMLP(2, 4, 4, (6,), init="orthogonal")
    for member in range(2):
        weight = ensemble.weights[0][member]
        torch.testing.assert_close(weight @ weight.T, torch.eye(4))
    assert all((bias == 0).all() for bias in ensemble.biases)
    assert not torch.equal(*ensemble.weights[0].unbind())
    assert torch.allclose(orthogonal_(torch.empty(1, 3, 3), gain=2.0)[0].det().abs(), torch.tensor(8.0), atol=1e-4)


def test_uniform_initial_weights_stay_within_one_over_root_fan_in():
    ensemble = EnsembleMLP(2, 16, 1, (9,))
    assert ensemble.weights[0].abs().max() <= 1 / 4
    assert ensemble.weights[1].abs().max() <= 1 / 3
    assert ensemble.weights[0].std() > 0.1


def test_dropout_acts_in_training_only():
    ensemble, x = EnsembleMLP(1, 4, 3, (64,), dropout=0.5), torch.randn(5, 4)
    assert not torch.equal(ensemble(x), ensemble(x))
    ensemble.eval()
    assert torch.equal(ensemble(x), ensemble(x))


def test_a_critic_sees_observation_and_action():
    critic = EnsembleCritic(2, 3, 2, (8,))
    observation, action = torch.randn(5, 3), torch.randn(5, 2)
    expected = one_by_one(critic, torch.cat([observation, action], -1), 1)[:, 0]
    values = critic.value(observation, action)
    assert values.shape == (2, 5)
    torch.testing.assert_close(values[1], expected)


def test_a_target_follows_by_its_rate_and_takes_no_gradient():
    online = nn.Linear(2, 2)
    target = target_of(online)
    before = target.weight.clone()
    with torch.no_grad():
        online.weight += 1
    follow(target, online, 0.25)
    torch.testing.assert_close(target.weight, before + 0.25)
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
