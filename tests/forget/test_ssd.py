from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch import nn

from thrifty.core.errors import InputError
from thrifty.forget.importance import Importances
from thrifty.forget.ssd import SSD, dampen_, dampening_factor, select

FULL = torch.tensor([0.01, 0.2, 0.0, 0.05])
FORGET = torch.tensor([0.2, 0.5, 0.3, 0.05])


class Four(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))


def blobs(count=480, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    centres = torch.randn(classes, 6, generator=generator) * 3
    return centres[y] + torch.randn(count, 6, generator=generator), y


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x, y = blobs()
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), (x, y)


def part(data, wanted):
    x, y = data
    return x[wanted], y[wanted]


def test_worked_example_of_the_selection():
    assert select(FULL, FORGET, 10.0).tolist() == [True, False, True, False]


@pytest.mark.parametrize(("dampening", "expected"), [(1.0, [0.05, -2.0, 0.0, 0.5]), (30.0, [1.0, -2.0, 0.0, 0.5])])
def test_worked_example_of_the_dampening(dampening, expected):
    model = Four()
    counts = dampen_(model, {"theta": FULL}, {"theta": FORGET}, selection=10.0, dampening=dampening)
    torch.testing.assert_close(model.theta.data, torch.tensor(expected))
    assert counts == {"theta": 2}


def test_selection_is_strict():
    assert not select(torch.tensor([1.0]), torch.tensor([10.0]), 10.0).any()


def test_exponent_acts_before_the_bound():
    factor = dampening_factor(torch.tensor([1.0, 9.0]), torch.tensor([4.0, 3.0]), exponent=2.0, upper_bound=0.5)
    torch.testing.assert_close(factor, torch.tensor([1 / 16, 0.5]))


def test_without_any_importance_nothing_happens():
    model = Four()
    zero = {"theta": torch.zeros(4)}
    assert dampen_(model, zero, zero) == {"theta": 0}
    assert model.theta.tolist() == [1.0, -2.0, 3.0, 0.5]
    assert dampening_factor(torch.zeros(1), torch.zeros(1)).tolist() == [1.0]


importances = arrays("float32", 5, elements=st.floats(0, 1e6, width=32))
weights = arrays("float32", 5, elements=st.floats(-100, 100, width=32))


@given(importances, importances, weights, st.floats(0.1, 1e4), st.floats(0.01, 1e4), st.floats(0.25, 3))
def test_dampening_only_ever_shrinks_what_is_selected(full, forget, theta, selection, dampening, exponent):
    full, forget, theta = map(torch.from_numpy, (full, forget, theta))
    model = Four()
    model.theta = nn.Parameter(theta.clone())
    dampen_(model, {"theta": full}, {"theta": forget}, selection=selection, dampening=dampening, exponent=exponent)
    after = model.theta.data
    chosen = select(full, forget, selection)
    assert torch.isfinite(after).all()
    assert (after.abs() <= theta.abs()).all()
    assert (after * theta >= 0).all()
    assert torch.equal(after[~chosen], theta[~chosen])
    assert torch.equal(after[forget == 0], theta[forget == 0])


@given(importances, importances)
def test_at_unit_dampening_what_is_left_is_below_one_over_alpha(full, forget):
    full, forget = torch.from_numpy(full), torch.from_numpy(forget)
    chosen = select(full, forget, 10.0)
    assert (dampening_factor(full, forget)[chosen] <= 0.1 * (1 + 1e-6)).all()


def test_an_infinite_alpha_changes_nothing(trained):
    model, data = trained
    after = SSD(selection=1e30).forget(model, part(data, data[1] == 0), data)
    # What has no importance for all data is still selected, and such weights do not matter to the forget set either.
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))


def test_a_class_is_forgotten_and_the_rest_kept(trained):
    model, (x, y) = trained
    after = SSD(selection=4.0, batch_size=16).forget(model, part((x, y), y == 0), (x, y))
    said = after(x).argmax(1)
    assert (said[y == 0] == 0).float().mean() < 0.2
    assert (said[y != 0] == y[y != 0]).float().mean() > 0.9
    assert (model(x).argmax(1) == y).float().mean() > 0.95


def test_label_free_forgets_without_labels(trained):
    model, (x, y) = trained
    method = SSD(selection=2.0, label_free=True, batch_size=16)
    assert not method.needs_labels
    after = method.forget(model, x[y == 0], x)
    said = after(x).argmax(1)
    assert (said[y == 0] == 0).float().mean() < 0.5
    assert (said[y != 0] == y[y != 0]).float().mean() > 0.9
    with_labels = method.forget(model, part((x, y), y == 0), (x, y))
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), with_labels.parameters(), strict=True))


def test_the_given_model_is_left_alone_unless_asked(trained):
    model, (x, y) = trained
    forget_set = part((x, y), y == 1)
    before = copy.deepcopy(model.state_dict())
    copied = SSD(selection=2.0).forget(model, forget_set, (x, y))
    assert type(copied) is type(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    mine = copy.deepcopy(model)
    assert SSD(selection=2.0).forget(mine, forget_set, (x, y), inplace=True) is mine
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), mine.parameters(), strict=True))


def test_buffers_and_training_modes_stay(trained):
    model = copy.deepcopy(trained[0]).train()
    model[1].eval()  # frozen statistics within a model in training
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x, y = trained[1]
    after = SSD(selection=2.0).forget(model, part((x, y), y == 1), (x, y))
    for changed in (model, after):
        assert changed.training
        assert not changed[1].training
        assert changed[3].training
        assert all(torch.equal(buffers[name], buffer) for name, buffer in changed.named_buffers())


def test_frozen_parameters_do_not_change(trained):
    model = copy.deepcopy(trained[0])
    model[0].requires_grad_(False)
    x, y = trained[1]
    after = SSD(selection=1.5).forget(model, part((x, y), y == 1), (x, y))
    assert torch.equal(model[0].weight, after[0].weight)
    assert not torch.equal(model[4].weight, after[4].weight)


def test_stored_importances_stand_for_the_data(trained, tmp_path):
    model, (x, y) = trained
    method, forget_set = SSD(selection=4.0, batch_size=20), part((x, y), y == 2)
    method.importance(model, (x, y)).save(tmp_path / "full.safetensors")
    stored = Importances.load(tmp_path / "full.safetensors")
    direct = method.forget(model, forget_set, (x, y))
    for given_as in (stored, stored.values):
        after = method.forget(model, forget_set, given_as)
        assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), after.parameters(), strict=True))


def test_half_precision_weights_keep_their_dtype(trained):
    model = copy.deepcopy(trained[0]).to(torch.bfloat16)
    x, y = trained[1]
    x = x.to(torch.bfloat16)
    after = SSD(selection=2.0).forget(model, part((x, y), y == 1), (x, y))
    assert {p.dtype for p in after.parameters()} == {torch.bfloat16}
    assert {i.dtype for i in SSD().importance(model, (x, y)).values.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("selection", 0.0), ("dampening", -1.0), ("exponent", 0.0), ("upper_bound", 1.5), ("batch_size", 0)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(InputError, match=setting):
        SSD(**{setting: value})


def test_a_forget_set_of_another_batch_size_is_warned_about(trained, caplog):
    model, (x, y) = trained
    SSD(batch_size=64).forget(model, (x[:10], y[:10]), (x, y))
    assert "largest batch of the forget set has 10 examples, that of the full set 64" in caplog.text
    caplog.clear()
    SSD(batch_size=8).forget(model, (x[:10], y[:10]), (x, y))
    assert not caplog.text


def test_per_sample_ratios_are_bounded_by_the_sizes_of_the_sets(trained, caplog):
    model, (x, y) = trained
    forget_set = part((x, y), y == 0)
    method = SSD(selection=6.0, per_sample=True)  # a sixth of the data is forgotten
    after = method.forget(model, forget_set, (x, y))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))
    assert "selection 6 selects nothing" in caplog.text
    whole, gone = (method.importance(model, data).values for data in ((x, y), forget_set))
    assert all((gone[name] <= 6 * whole[name] * (1 + 1e-4) + 1e-12).all() for name in whole)


def test_everything_is_not_forgotten(trained):
    model, data = trained
    with pytest.raises(InputError, match="480 examples and the full set 480"):
        SSD().forget(model, data, data)
    with pytest.raises(InputError, match="must hold what is kept"):
        SSD().forget(model, data, SSD().importance(model, data))
    with pytest.raises(InputError, match="must hold what is kept"):
        SSD().forget(model, [data], [data])


def test_importances_measured_otherwise_do_not_compare(trained):
    model, (x, y) = trained
    stored = SSD(label_free=True).importance(model, (x, y))
    with pytest.raises(InputError, match="squared logits"):
        SSD().forget(model, (x[:64], y[:64]), stored)


def test_importances_of_another_model_change_nothing():
    model = Four()
    for wrong in ({}, {"theta": torch.ones(3)}):
        with pytest.raises(InputError, match="do not belong to this model: theta"):
            dampen_(model, wrong, {"theta": FORGET})
    assert model.theta.tolist() == [1.0, -2.0, 3.0, 0.5]


@pytest.mark.parametrize("label_free", [False, True])
def test_alpha_chooses_itself_without_labels(trained, label_free, caplog):
    model, (x, y) = trained
    with caplog.at_level("INFO", logger="thrifty"):
        after = SSD(label_free=label_free, batch_size=16, auto=True).forget(model, [part((x, y), y == 0)], (x, y))
    said = after(x).argmax(1)
    assert (said[y == 0] == 0).float().mean() < 0.5
    assert (said[y != 0] == y[y != 0]).float().mean() > 0.9
    assert "was chosen" in caplog.text
    with pytest.raises(InputError, match="can't be chosen from stored importances"):
        SSD(auto=True).forget(model, part((x, y), y == 0), SSD().importance(model, (x, y)))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2), st.floats(1.0, 50.0))
def test_without_importance_for_the_forget_set_a_weight_stays(trained, forgotten, selection):
    model, (x, y) = trained
    method = SSD(selection=selection, batch_size=16)
    gone = method.importance(model, part((x, y), y == forgotten)).values
    after = method.forget(model, part((x, y), y == forgotten), (x, y))
    for name, parameter in model.named_parameters():
        untouched = gone[name] == 0
        assert torch.equal(parameter[untouched], after.get_parameter(name)[untouched])
        assert (after.get_parameter(name).abs() <= parameter.abs()).all()
