from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.core.checkpoint import save_tree
from thrifty.core.errors import InputError, NonFiniteError
from thrifty.forget import importance as module
from thrifty.forget.base import cross_entropy, squared_logits
from thrifty.forget.data import Labelled, stream
from thrifty.forget.importance import Importances, importance
from thrifty.nets.vision import ResNet, ResNetConfig


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.stack([self.w * x, torch.zeros_like(x)], 1)


def half_square(model, batch):
    return 0.5 * model(batch.x)[:, 0].square().mean()


X = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 8.5), (2, 6.25)])
def test_worked_example_of_the_batch_size(batch_size, expected):
    found = importance(Product(), stream(X, batch_size), half_square)
    assert found.values["w"].item() == pytest.approx(expected)
    assert (found.examples, found.batch_size) == (2, batch_size)


def test_per_sample_does_not_depend_on_the_batch_size():
    for batch_size in (1, 2):
        found = importance(Product(), stream(X, batch_size), half_square, per_sample=True)
        assert found.values["w"].item() == pytest.approx(8.5)


def test_a_short_last_batch_has_full_weight():
    found = importance(Product(), stream(torch.tensor([1.0, 2.0, 3.0]), 2), half_square)
    assert found.values["w"].item() == pytest.approx((2.5**2 + 9.0**2) / 2)


def test_magnitude_is_the_mean_of_absolute_gradients():
    found = importance(Product(), stream(torch.tensor([1.0, 2.0, 3.0]), 2), half_square, power=1)
    assert found.values["w"].item() == pytest.approx((2.5 + 9.0) / 2)


def pictures(count=10):
    generator = torch.Generator().manual_seed(0)
    return Labelled(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(3, width=4, blocks=(1, 1)))
    model(torch.randn(16, 1, 8, 8))
    return model.eval()


@pytest.mark.parametrize("objective", [cross_entropy, squared_logits])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("group", [None, 3, 1])
def test_per_sample_equals_batches_of_one(net, objective, power, group, monkeypatch):
    if group is not None:
        bytes_of_one = 4 * sum(p.numel() for p in net.parameters())
        monkeypatch.setattr(module, "_ROOM", group * bytes_of_one)
    together = importance(net, stream(pictures(), 5), objective, power=power, per_sample=True)
    alone = importance(net, stream(pictures(), 1), objective, power=power)
    for name, value in alone.values.items():
        torch.testing.assert_close(together.values[name], value, rtol=2e-4, atol=1e-9)


def test_inputs_by_name_work_per_sample_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, values, scale):
            return self.layer(values) * scale

    torch.manual_seed(0)
    data = Labelled({"values": torch.randn(6, 4), "scale": torch.rand(6, 1)}, torch.arange(6) % 3)
    model = Named()
    together = importance(model, stream(data, 3), cross_entropy, per_sample=True)
    alone = importance(model, stream(data, 1), cross_entropy)
    torch.testing.assert_close(together.values, alone.values)


def test_it_measures_in_evaluation_mode_and_restores(net):
    expected = importance(net, stream(pictures(), 5), cross_entropy).values
    net.train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    found = importance(net, stream(pictures(), 5), cross_entropy).values
    assert net.training
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_the_loss_does_not_reach_has_no_importance():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(2, 2), "frozen": nn.Linear(4, 3)})
    model["frozen"].requires_grad_(False)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["used"](x) + self.parts["frozen"](x)

    found = importance(Both(), stream((torch.randn(6, 4), torch.arange(6) % 3), 2), cross_entropy).values
    assert (found["parts.used.weight"] > 0).any()
    assert not found["parts.idle.weight"].any()
    assert not found["parts.frozen.weight"].any()


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    found = importance(Tied(), stream((torch.randn(4, 3), torch.arange(4) % 3), 2), cross_entropy).values
    assert list(found) == ["first.weight"]


def test_small_gradients_in_half_precision_do_not_underflow():
    model = Product().to(torch.float16)
    x = torch.tensor([2.0**-6], dtype=torch.float16)  # the gradient's square, 2**-24, is the smallest float16
    found = importance(model, stream(x, 1), half_square)
    assert found.values["w"].item() == pytest.approx(2.0**-24, rel=1e-3)
    assert found.values["w"].dtype == torch.float32


def test_a_label_that_is_no_class_is_named(net):
    data = pictures()
    assert data.y is not None
    data.y[7] = 3
    with pytest.raises(InputError, match="label 3 of example 7 is no class of the model, which has 3"):
        importance(net, stream(data, 4), cross_entropy)
    data.y[7] = -1
    with pytest.raises(InputError, match="label -1 of example 7"):
        importance(net, stream(data, 4), cross_entropy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named(net, bad):
    data = pictures()
    data.x[6, 0, 2, 2] = bad
    with pytest.raises(InputError, match="example 6 holds NaN or infinity"):
        importance(net, stream(data, 4), cross_entropy)


def test_weights_that_are_not_finite_are_noticed():
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="importance of a weight"):
        importance(model, stream((torch.randn(4, 4), torch.arange(4) % 3), 2), cross_entropy)


def test_a_model_without_trainable_parameters_is_refused():
    model = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of this Linear requires a gradient"):
        importance(model, stream(torch.randn(4, 4), 2), squared_logits)


@pytest.mark.parametrize(
    ("model", "said"),
    [(nn.Linear(4, 1), r"returns \[1, 1\]"), (nn.Flatten(0), r"returns \[4\]"), (nn.LSTM(4, 3), "without logits")],
)
def test_what_is_no_classifier_is_refused(model, said):
    model.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(InputError, match=said):
        importance(model, stream((torch.randn(4, 4), torch.arange(4) % 3), 2), cross_entropy)


def test_inputs_of_another_shape_are_described():
    with pytest.raises(InputError, match=r"can't take inputs of this kind \(x float32 \[1, 5\]\)"):
        importance(nn.Linear(4, 3), stream((torch.randn(4, 5), torch.arange(4) % 3), 2), cross_entropy)


def test_labels_are_asked_for_where_they_are_needed():
    with pytest.raises(InputError, match="no labels"):
        importance(nn.Linear(4, 3), stream(torch.randn(4, 4), 2), cross_entropy)
    assert importance(nn.Linear(4, 3), stream(torch.randn(4, 4), 2), squared_logits).examples == 4


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="empty"):
        importance(nn.Linear(4, 3), iter([]), cross_entropy)


def test_importances_are_kept_on_disk(tmp_path):
    found = importance(nn.Linear(4, 3), stream((torch.randn(5, 4), torch.arange(5) % 3), 2), cross_entropy)
    found.save(tmp_path / "i.safetensors")
    again = Importances.load(tmp_path / "i.safetensors")
    assert (again.examples, again.batch_size, again.measure) == (5, 2, found.measure)
    assert all(torch.equal(again.values[name], value) for name, value in found.values.items())
    save_tree(tmp_path / "other.safetensors", {"step": 3})
    with pytest.raises(InputError, match="holds no importances"):
        Importances.load(tmp_path / "other.safetensors")
