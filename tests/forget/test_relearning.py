from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.forget.baselines import Retrain, untrained
from thrifty.forget.relearning import Relearning


def fresh() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(3, 4)[y] * 3 + torch.randn(300, 4)
    model = Retrain(fresh, epochs=5).train((x, y), torch.device("cpu"))
    return model, (x[y == 1], y[y == 1])


def test_the_original_has_nothing_to_relearn(trained) -> None:
    model, gone = trained
    found = Relearning().measure(model, gone, model)
    assert (found.steps, found.seconds, found.back) == (0, 0.0, True)


def test_what_is_hidden_is_back_sooner_than_what_was_never_learnt(trained) -> None:
    model, gone = trained
    hidden = copy.deepcopy(model)
    with torch.no_grad():
        hidden[3].bias[1] -= 1.2 * float((model(gone[0])[:, 1] - model(gone[0])[:, [0, 2]].amax(1)).max())
    before = {name: value.clone() for name, value in hidden.state_dict().items()}
    method = Relearning(learning_rate=0.003, tolerance=0.05)
    blank = untrained(model)
    with torch.no_grad():
        blank[3].bias.copy_(hidden[3].bias)
    quick, slow = (method.measure(other, gone, model) for other in (hidden, blank))
    assert quick.steps > 0
    assert quick.back
    assert quick.accuracy >= 0.9
    assert all(torch.equal(before[name], value) for name, value in hidden.state_dict().items()), "only a copy learns"
    assert method.measure(hidden, gone, model).steps == quick.steps
    assert slow.steps > quick.steps


def test_it_gives_up_after_so_many_steps(trained) -> None:
    model, gone = trained
    blank = untrained(model, 0)
    with torch.no_grad():
        blank[3].bias.copy_(torch.tensor([0.0, -50.0, 0.0]))
    found = Relearning(learning_rate=1e-6, most_steps=3).measure(blank, gone, model)
    assert (found.steps, found.accuracy, found.back) == (3, 0.0, False)
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"tolerance": 1.0}, "tolerance must be from 0 to below 1"),
        ({"most_steps": 0}, "must be at least 1, not 0 and 32"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        Relearning(**settings)


def test_wrong_sets_and_broken_models_are_named(trained) -> None:
    model, (x, y) = trained
    with pytest.raises(InputError, match="forget set is empty"):
        Relearning().measure(model, (x[:0], y[:0]), model)
    with pytest.raises(InputError, match="no labels"):
        Relearning().measure(model, x, model)
    broken = untrained(model)
    with torch.no_grad():
        broken[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="relearning at step 0"):
        Relearning().measure(broken, (x, y), model)
