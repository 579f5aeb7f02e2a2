"""Training-free metrics: by hand on a linear map, and what holds for any network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.nets.vision import ResNet, ResNetConfig
from thrifty.shrink.zero_cost import (
    METRICS,
    PAPERS,
    channel_fisher,
    fisher,
    grad_norm,
    grasp,
    jacob_cov,
    jacobian_score,
    naswot,
    parameters,
    pattern_volume,
    snip,
    synflow,
    zero_cost_metrics,
)


def linear(weight):
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


# Logits 1 and 2 for class 0: the gradient is d = (-s, s) with s = sigmoid(1) times the input (1, 2).
IDENTITY, X, Y = linear([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([0])
S = 1 / (1 + math.exp(-1))


def test_gradients_by_hand():
    assert grad_norm(IDENTITY, X, Y) == pytest.approx(S * math.sqrt(10), rel=1e-6)
    assert snip(IDENTITY, X, Y) == pytest.approx(3 * S, rel=1e-6)
    # The activations are 1 and 2, their gradients -s and s.
    assert fisher(IDENTITY, X, Y) == pytest.approx((1 + 4) * S * S / 2, rel=1e-6)
    assert fisher(IDENTITY, X, Y, released=True) == pytest.approx(5 * S * S, rel=1e-6)  # two weights to a channel
    # H g = s (1 - s) (-2 s, 2 s) |x|^2 x^T, of which the identity takes the diagonal.
    assert grasp(IDENTITY, X, Y) == pytest.approx(-10 * S * S * (1 - S), rel=1e-6)


def test_fisher_sums_over_places_before_it_squares():
    a = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])
    g = torch.tensor([[[0.5, 1.0]], [[1.0, 1.0]]])
    torch.testing.assert_close(channel_fisher(a, g), torch.tensor([(2.5**2 + 2**2) / 4]))


def test_fisher_of_maps_over_sequences_has_the_features_as_channels():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 2)

        def forward(self, x):
            return self.map(x).mean(1)

    torch.manual_seed(0)
    net, x, y = Sequence(), torch.randn(5, 4, 3), torch.tensor([0, 1, 0, 1, 1])
    out = net.map(x)
    out.retain_grad()
    functional.cross_entropy(out.mean(1), y).backward()
    assert fisher(net, x, y) == pytest.approx(((out * out.grad).sum(1).square().mean(0).sum() / 2).item(), rel=1e-5)


def test_synflow_counts_paths():
    assert synflow(linear([[1.0, -2.0], [3.0, 4.0]]), torch.randn(3, 2)) == pytest.approx(10)
    # All paths through both layers are (1 + 2) (3 + 4), and each layer's weights add up to them.
    deep = nn.Sequential(linear([[1.0, -2.0]]), nn.ReLU(), linear([[-3.0], [4.0]]))
    assert synflow(deep, torch.randn(3, 2)) == pytest.approx(2 * 21)
    assert synflow(deep, torch.randn(3, 2), examples=3) == pytest.approx(3 * 2 * 21)


def test_synflow_leaves_batch_normalisation_out():
    plain = nn.Sequential(linear([[1.0, -2.0]]), linear([[-3.0], [4.0]]))
    normed = nn.Sequential(plain[0], nn.BatchNorm1d(1), plain[1])
    x = torch.randn(3, 2)
    assert synflow(normed, x) == pytest.approx(synflow(plain, x))
    assert synflow(normed, x, examples=3, bypass_norm=False) != pytest.approx(synflow(plain, x, examples=3))


def test_jacobian_score_by_hand():
    apart = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    assert float(jacobian_score(apart)) == pytest.approx(-2 * (math.log(1.00001) + 1 / 1.00001), rel=1e-9)
    opposite = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], dtype=torch.float64)  # eigenvalues 0 and 2
    assert float(jacobian_score(opposite)) == pytest.approx(-99989.68022, abs=1e-2)


def test_a_network_that_ignores_its_input_has_no_jacobian_score():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(x * 0)

    assert math.isnan(jacob_cov(Constant(), torch.randn(4, 2)))


def test_pattern_volume_by_hand():
    patterns = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)  # K = [[3, 2], [2, 3]]
    assert float(pattern_volume(patterns)) == pytest.approx(math.log(5))


def test_rectifiers_are_found_as_modules_and_as_functions():
    class Functions(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body, self.other = body[0], body[2]

        def forward(self, x):
            return self.other(functional.relu(self.body(x)))

    torch.manual_seed(0)
    modules, x = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)), torch.randn(6, 4)
    expected = pattern_volume((modules[0](x) > 0).double())
    assert naswot(modules, x) == pytest.approx(float(expected))
    assert naswot(Functions(modules), x) == pytest.approx(float(expected))


def test_examples_that_look_alike_have_no_volume():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert math.isnan(naswot(net, torch.ones(3, 4)))


def test_a_network_stays_as_it_is_and_all_metrics_are_finite():
    torch.manual_seed(0)
    net = ResNet(ResNetConfig(3, width=4)).eval()
    before, x, y = copy.deepcopy(net.state_dict()), torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    found = zero_cost_metrics(net, x, y, list(METRICS))
    assert all(math.isfinite(value) for value in found.values())
    assert found["parameters"] == parameters(net) == sum(p.numel() for p in net.parameters())
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not x.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert tuple(zero_cost_metrics(net, x, y)) == PAPERS
    # Nothing but the weights' values is drawn: the same again.
    assert zero_cost_metrics(net, x, y, list(METRICS)) == found


def test_in_place_rectifiers_change_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    other = nn.Sequential(net[0], nn.ReLU(inplace=True), *net[2:])
    x, y = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 0, 1, 1])
    for name in PAPERS:
        assert METRICS[name](net, x, y) == pytest.approx(METRICS[name](other, x, y), rel=1e-6)


def test_wrong_models_and_labels_are_named():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    with pytest.raises(InputError, match="no convolution or linear layer"):
        grad_norm(nn.ReLU(), x, y)
    with pytest.raises(InputError, match=r"logits \[4, classes\] for 4 labels, not \[4, 2, 1\]"):
        snip(nn.Sequential(nn.Linear(3, 2), nn.Unflatten(1, (2, 1))), x, y)
    with pytest.raises(InputError, match="labels must lie between 0 and 1, not 0 to 5"):
        grasp(nn.Linear(3, 2), x, torch.tensor([0, 1, 5, 0]))
    with pytest.raises(InputError, match="rectifiers"):
        naswot(nn.Linear(3, 2), x)
    with pytest.raises(InputError, match=r"floating-point numbers, not torch\.int64"):
        jacob_cov(nn.Linear(3, 2), torch.ones(4, 3, dtype=torch.long))
    with pytest.raises(InputError, match="did you mean 'synflow'"):
        zero_cost_metrics(nn.Linear(3, 2), x, y, ["synflo"])
    with pytest.raises(InputError, match="must be different ones"):
        zero_cost_metrics(nn.Linear(3, 2), x, y, ["snip", "snip"])
