from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thrifty.core.errors import NonFiniteError
from thrifty.forget.baselines import (
    BadTeacher,
    FineTune,
    GradientAscent,
    Retrain,
    descend,
    imitation,
    one_cycle,
    untrained,
)
from thrifty.forget.data import Labelled
from thrifty.forget.evaluate import predict


def fresh():
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(3, 4)[y] * 3 + torch.randn(300, 4)
    model = Retrain(fresh, epochs=5).train((x, y), torch.device("cpu"))
    forget, retain = (x[y == 0], y[y == 0]), (x[y != 0], y[y != 0])
    return model, forget, retain


def accuracy(model, data):
    return float(predict(model, data).correct.mean())


@pytest.mark.parametrize(
    ("method", "most_forgotten", "least_kept"),
    [
        (Retrain(fresh, epochs=5), 0.1, 0.9),
        (GradientAscent(learning_rate=2.0, epochs=10), 0.2, 0.8),
        (FineTune(learning_rate=0.1, epochs=3), 1.0, 0.95),
    ],
)
def test_each_baseline_does_its_work_on_a_copy(problem, method, most_forgotten, least_kept):
    model, forget, retain = problem
    before = copy.deepcopy(model.state_dict())
    sets = {"forget_set": forget, "retain_set": retain}
    after = method.forget(model, **{name: sets[name] for name in method.needs})
    assert accuracy(model, forget) > 0.95
    assert accuracy(after, forget) <= most_forgotten
    assert accuracy(after, retain) >= least_kept
    assert not after.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_bad_teacher_takes_the_confidence_on_what_is_forgotten(problem):
    model, forget, retain = problem
    after = BadTeacher(learning_rate=0.01, epochs=20, share=1.0, batch_size=32).forget(model, forget, retain)
    assert predict(model, forget).nll.mean() < 0.1
    assert predict(after, forget).nll.mean() > 0.5
    assert accuracy(after, retain) > 0.9


def test_the_same_seed_gives_the_same_model(problem):
    model, forget, retain = problem
    method = BadTeacher(learning_rate=1e-3, batch_size=32)
    first, second = (method.forget(model, forget, retain) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_ascent_leaves_the_statistics_of_batch_normalisation(problem):
    model, forget, _ = problem
    after = GradientAscent(learning_rate=0.1).forget(model, forget)
    assert torch.equal(model[1].running_mean, after[1].running_mean)
    assert not torch.equal(model[0].weight, after[0].weight)


def test_an_untrained_copy_knows_nothing_of_the_weights(problem):
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.full((64,), 3.0))
            self.layer = nn.Linear(4, 3)

    model = WithToken()
    copied = untrained(model, seed=1)
    assert copied.token.abs().max() < 0.2
    assert not torch.equal(copied.layer.weight, model.layer.weight)
    assert torch.equal(copied.layer.weight, untrained(model, seed=1).layer.weight)
    state = torch.random.get_rng_state()
    untrained(model)
    assert torch.equal(state, torch.random.get_rng_state())


def test_imitation_listens_to_the_teacher_of_each_example(problem):
    model, (x, y), _ = problem
    other, batch = untrained(model).eval(), Labelled(x[:8], y[:8])
    keep, gone = torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    with torch.no_grad():
        assert float(imitation(model, model, other, batch, keep)) == pytest.approx(0, abs=1e-6)
        assert float(imitation(other, model, other, batch, gone)) == pytest.approx(0, abs=1e-6)
        half = torch.arange(8) < 4
        mixed = float(imitation(model, model, other, batch, half))
        assert mixed == pytest.approx(float(imitation(model, model, other, batch.rows(torch.arange(4)), gone[:4])) / 2)


def test_the_schedule_rises_for_a_third_and_falls_to_zero():
    assert one_cycle(0.0) == 0
    assert one_cycle(0.3) == pytest.approx(1)
    assert one_cycle(1.0) == pytest.approx(0, abs=1e-12)
    assert one_cycle(0.15) == pytest.approx(0.5)


def test_a_gradient_that_is_not_finite_ends_training():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteError, match="step 0"):
        descend(model, lambda m, _: m(torch.full((1, 1), float("inf"))).sum(), optimizer, 3)
