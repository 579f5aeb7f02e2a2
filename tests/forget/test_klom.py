from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from torch import nn

from thrifty.core.errors import InputError
from thrifty.forget.klom import klom, klom_scores, klom_summary, margins

P, Q = torch.tensor([0.0, 1, 2, 3])[:, None], torch.tensor([0.0, 1, 1, 4])[:, None]


def test_worked_example_of_the_margin():
    assert float(margins(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))) == pytest.approx(0.686738, abs=1e-6)


def test_margins_of_many_models_are_those_of_each():
    logits, y = torch.randn(3, 5, 4), torch.tensor([0, 3, 1, 2, 0])
    for model in range(3):
        torch.testing.assert_close(margins(logits, y)[model], margins(logits[model], y))
    p = logits.softmax(-1).gather(-1, y.expand(3, 5)[..., None])[..., 0]
    torch.testing.assert_close(margins(logits, y), (p / (1 - p)).log())  # the margin is the log-odds


@pytest.mark.parametrize(
    ("parity", "bins", "expected"),
    [
        ("official_v2", 4, 4.746208),
        ("official_v2", 20, 4.746208),
        ("official_v1", 5, 4.746218),
        ("official_v1", 20, 4.746368),
        # By hand: P is a quarter in each of four bins, Q is 1/4, 1/2, 0 and 1/4.
        (None, 4, 0.25 * (math.log(0.5) + math.log(0.25 / 1e-5)) + math.log(1 + 1e-5)),
    ],
)
def test_worked_example_of_klom(parity, bins, expected):
    assert float(klom(P, Q, bins=bins, parity=parity)) == pytest.approx(expected, abs=2e-6)


def test_equal_samples_are_at_zero_but_for_the_first_code():
    assert float(klom(P, P)) == 0
    assert float(klom(P, P, parity="official_v2")) == 0
    assert float(klom(P, P, parity="official_v1")) == pytest.approx(1.7e-4, abs=1e-5)
    same = torch.full((3, 1), 2.0)
    assert float(klom(same, same)) == 0
    assert klom(same, same, parity="official_v1").isnan().all()


def test_margins_that_never_meet_are_at_the_bound():
    value = float(klom(torch.zeros(10, 1), torch.full((10, 1), 5.0)))
    assert value == pytest.approx(math.log(1e5), abs=1e-4)


def test_extreme_margins_are_clipped():
    assert float(klom(torch.tensor([[1e6], [100.0]]), torch.tensor([[100.0], [1e9]]))) == 0


samples = arrays("float64", (6, 3), elements=st.floats(-1e3, 1e3))


@given(samples, samples, st.permutations(range(6)))
def test_klom_is_bounded_and_does_not_look_at_the_order_of_models(a, b, order):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    value = klom(a, b)
    assert (value >= 0).all()
    assert (value <= math.log(1e5) + 1e-3).all()
    torch.testing.assert_close(value, klom(a[order], b[order]))
    torch.testing.assert_close(value[1:2], klom(a[:, 1:2], b[:, 1:2]))
    assert (klom(a, a) < 1e-12).all()


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"\[2, 3\] and \[2, 4\]"),
        (torch.zeros(0, 3), torch.zeros(2, 3), "at least one"),
        (torch.zeros(2, 3), torch.tensor([[0.0, math.nan, 0.0]]), "oracle margins hold NaN at point 1"),
    ],
)
def test_wrong_margins_are_named(a, b, said):
    with pytest.raises(InputError, match=said):
        klom(a, b)


def test_scores_of_models_on_sets():
    torch.manual_seed(0)
    mine, theirs = ([nn.Linear(2, 3) for _ in range(4)] for _ in range(2))
    data = (torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    found = klom_scores(mine, theirs, {"forget": data})
    assert set(found) == {"forget_klom", "forget_klom_95", "forget_margin_error"}
    with torch.no_grad():
        a, b = (margins(torch.stack([m(data[0]) for m in models]), data[1]) for models in (mine, theirs))
    assert found["forget_klom"] == pytest.approx(float(klom(a, b).mean()))
    assert klom_summary(a, a + 1)["margin_error"] == pytest.approx(1)
    with pytest.raises(InputError, match="no labels"):
        klom_scores(mine, theirs, {"forget": data[0]})
