"""Ranking by variance, slope and chance; bands of difficulty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.select.history import AccuracyHistory
from thrifty.select.limr import lim_scores
from thrifty.select.rank import difficulty_band, linear_scores, pass_rate, rank_by_history, std_scores

WORKED = {"a": [0, 0.25, 0.5, 1], "b": [1, 1, 1, 1], "c": [0, 1, 0, 1]}
curve = st.lists(st.integers(0, 8).map(lambda k: k / 8), min_size=2, max_size=9)


def test_worked_example_of_the_variance() -> None:
    ranked = rank_by_history(WORKED)
    assert [name for name, _ in ranked] == ["c", "a", "b"]
    assert [score for _, score in ranked] == pytest.approx([0.5, 0.369755, 0.0], abs=1e-6)


def test_variance_takes_each_own_length_and_lim_the_shortest() -> None:
    longer = {**WORKED, "a": [0, 0.25, 0.5, 1, 0, 0, 0]}
    assert dict(rank_by_history(longer))["a"] == pytest.approx(np.std(longer["a"]))
    cut = torch.tensor([values[:4] for values in WORKED.values()])
    expected = dict(zip(WORKED, lim_scores(cut).scores.tolist(), strict=True))
    assert dict(rank_by_history(longer, method="lim")) == pytest.approx(expected)


@given(st.dictionaries(st.text(min_size=1, max_size=3), curve, min_size=1, max_size=6))
def test_scores_are_those_of_numpy(history: dict[str, list[float]]) -> None:
    for name, score in rank_by_history(history):
        assert score == pytest.approx(np.std(history[name]))
    for name, score in rank_by_history(history, method="linear"):
        values = history[name]
        slope = np.polyfit(range(len(values)), values, 1)[0]
        assert score == pytest.approx(slope * (len(values) - 1), abs=1e-9)


def test_matrix_forms_leave_out_what_was_not_observed() -> None:
    nan = math.nan
    history = torch.tensor([[0, nan, 0.5, 0.75], [0.5, nan, nan, nan], [nan] * 4, [0, 0.25, 0.5, 0.75]])
    found = std_scores(history)
    assert found[:2].tolist() == pytest.approx([np.std([0, 0.5, 0.75]), 0.0])
    assert found[2].isnan()
    # A line through points stays the same line when one is missing.
    assert linear_scores(history).tolist() == pytest.approx([0.75, 0.0, 0.0, 0.75])


def test_a_random_order_depends_on_the_seed_only() -> None:
    many = {str(at): [0.5] for at in range(50)}
    first = rank_by_history(many, method="random", seed=1)
    assert first == rank_by_history(many, method="random", seed=1)
    assert first != rank_by_history(many, method="random", seed=2)
    assert sorted(name for name, _ in first) == sorted(many)


def test_a_recorded_history_ranks_as_its_curves() -> None:
    history = AccuracyHistory()
    for name, values in WORKED.items():
        for epoch, value in enumerate(values):
            history.update([name], torch.tensor([value], dtype=torch.float64), epoch)
    assert rank_by_history(history) == rank_by_history(WORKED)


def test_wrong_histories_are_named() -> None:
    with pytest.raises(InputError, match="there is no prompt to rank"):
        rank_by_history({})
    with pytest.raises(InputError, match="prompt 'x' has no accuracy"):
        rank_by_history({"x": []})
    with pytest.raises(InputError, match=r"accuracy of prompt 'x' is outside \[0, 1\]"):
        rank_by_history({"y": [1.0], "x": [0.5, -1.0]})
    with pytest.raises(InputError, match="'var' is unknown: known: lim, linear, random, std"):
        rank_by_history(WORKED, method="var")  # type: ignore[arg-type]


def test_worked_example_of_the_band() -> None:
    rates = torch.tensor([0, 0.125, 0.25, 0.5, 0.625, 0.75, 1])
    assert rates[difficulty_band(rates)].tolist() == [0.25, 0.5, 0.625]
    with pytest.raises(InputError, match="0 <= low <= high <= 1"):
        difficulty_band(rates, 0.6, 0.4)
    with pytest.raises(InputError, match="pass rate nan of prompt 1"):
        difficulty_band(torch.tensor([0.5, math.nan]))


def test_pass_rate() -> None:
    right = torch.tensor([[True, False, True, True], [False] * 4])
    assert pass_rate(right).tolist() == [0.75, 0.0]
    assert pass_rate(right.float()).tolist() == [0.75, 0.0]
    with pytest.raises(InputError, match=r"prompt 0 holds -0\.5"):
        pass_rate(torch.tensor([[-0.5, 1.0]]))
    with pytest.raises(InputError, match=r"\[2, 0\]"):
        pass_rate(torch.zeros(2, 0))
