"""Normaliser, LAMB and the causal transformer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.nets.lamb import Lamb
from thrifty.nets.normaliser import Normaliser
from thrifty.nets.transformer import CausalTransformer


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(-1e4, 1e4), st.floats(0.1, 100))
def test_normalised_features_have_mean_zero_and_deviation_one(seed, offset, scale):
    values = (np.random.default_rng(seed).standard_normal((200, 2)) * scale + offset).astype(np.float64)
    normaliser = Normaliser.of(values).double()
    x = torch.from_numpy(values)
    out = normaliser(x)
    assert out.mean(0).abs().max() < 1e-2
    assert (out.std(0, unbiased=False) - 1).abs().max() < 1e-2
    torch.testing.assert_close(normaliser.inverse(out), x)


def test_a_constant_feature_becomes_zero():
    values = np.stack([np.full(10, 3.0), np.arange(10.0)], 1)
    assert (Normaliser.of(values)(torch.tensor(values))[:, 0] == 0).all()


def test_the_identity_changes_nothing():
    x = torch.randn(4, 3)
    assert torch.equal(Normaliser.identity(3)(x), x)


def test_lamb_first_step_has_length_rate_times_weight_norm():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lamb([weight], lr=0.1)
    weight.grad = torch.tensor([0.5, -0.5])
    optimizer.step()
    # Adam's first direction is the gradient's sign; LAMB gives it the weights' norm.
    expected = torch.tensor([3.0, 4.0]) - 0.1 * 5 / math.sqrt(2) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-4)


def test_lamb_leaves_zero_weights_an_unscaled_step():
    weight, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(1))
    optimizer = Lamb([weight, unused], lr=0.1)
    weight.grad = torch.ones(2)
    assert optimizer.step(lambda: 7) == 7
    torch.testing.assert_close(weight.detach(), torch.full((2,), -0.1), rtol=1e-4, atol=1e-4)
    assert unused.item() == 1


def test_lamb_does_nothing_without_gradients():
    weight = torch.nn.Parameter(torch.ones(2))
    Lamb([weight]).step()
    assert weight.tolist() == [1, 1]


def test_lamb_finds_a_minimum():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer, goal = Lamb([weight], lr=0.01), torch.tensor([1.0, 1.0])
    for _ in range(500):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert (weight.detach() - goal).abs().max() < 0.05


def test_tokens_do_not_see_the_future():
    model = CausalTransformer(16, 2, 2, dropout=0.0)
    x, valid = torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool)
    changed = x.clone()
    changed[:, 4] = torch.randn(16)
    before, after = model(x, valid), model(changed, valid)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("pads", [1, 3])
def test_what_stands_in_a_pad_changes_nothing_and_nothing_is_nan(pads):
    model = CausalTransformer(16, 2, 2, dropout=0.0)
    x, valid = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    valid[:, :pads] = False
    changed = x.clone()
    changed[:, :pads] = 100.0
    torch.testing.assert_close(model(x, valid)[:, pads:], model(changed, valid)[:, pads:])
    assert torch.isfinite(model(changed, valid)).all()
    torch.testing.assert_close(model(x, valid)[:, pads:], model(x[:, pads:], valid[:, pads:]))
