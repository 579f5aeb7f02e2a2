"""LIMR's score against numbers from the authors' functions, and against what its equation implies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.select.history import AccuracyHistory
from thrifty.select.limr import LIMR, fill_missing, lim_scores

NAN = float("nan")
WORKED = torch.tensor([[0, 0.5, 1], [1, 1, 1], [0, 0, 0], [0, 1, 1]])


def matrices(most: int = 6) -> st.SearchStrategy[Tensor]:
    shapes = st.tuples(st.integers(1, most), st.integers(1, most))
    eighths = st.integers(0, 8).map(lambda k: k / 8)
    return shapes.flatmap(
        lambda shape: st.lists(
            st.lists(eighths, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    ).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


def test_worked_example() -> None:
    result = lim_scores(WORKED)
    torch.testing.assert_close(result.average, torch.tensor([0.25, 0.625, 0.75], dtype=torch.float64))
    expected = torch.tensor([0.816327, 0.0, -0.326531, 0.653061], dtype=torch.float64)
    torch.testing.assert_close(result.scores, expected, atol=1e-6, rtol=0)
    assert (result.dropped, result.filled, result.scores.dtype) == (0, 0, torch.float64)
    assert LIMR(threshold=0.6).select(WORKED).tolist() == [0, 3]


def test_raw_rewards_are_refused() -> None:
    """With them, a never-solved prompt would beat an always-solved one: 0.230 to 0."""
    raw = torch.tensor([[-1, 0.25, 1], [1, 1, 1], [-0.5, -0.5, -0.5]])
    with pytest.raises(InputError, match=r"history of prompt 0 holds -1 at epoch 0.*\[0, 1\].*reward == 1"):
        lim_scores(raw)
    for wrong in (1.01, float("inf")):
        with pytest.raises(InputError, match="prompt 1"):
            lim_scores(torch.tensor([[0.5], [wrong]]))


def test_backward_fill_copies_one_step_and_drops_the_rest() -> None:
    row = torch.tensor([[0.5, NAN, NAN, 0.75], [0.5, NAN, 0.25, 0.75], [0, 0.5, 1, NAN], [0, 0.25, 0.5, 0.75]])
    filled, known = fill_missing(row.double(), ~row.isnan(), "backward_one")
    assert filled[0].tolist() == [0.5, 0, 0.75, 0.75]
    assert known[0].tolist() == [True, False, True, True]
    assert filled[1].tolist() == [0.5, 0.25, 0.25, 0.75]
    result = lim_scores(row)
    assert result.kept.tolist() == [False, True, False, True]
    assert result.scores.isnan().tolist() == [True, False, True, False]
    assert (result.dropped, result.filled) == (2, 2)
    assert result.average.tolist() == [0.25, 0.25, 0.375, 0.75]


def test_the_other_fills() -> None:
    row = torch.tensor([[0.5, NAN, NAN, 0.75, NAN], [NAN, 0.25, 0.5, 0.5, 0.5]])
    filled, known = fill_missing(row.double(), ~row.isnan(), "forward")
    assert filled[0].tolist() == [0.5, 0.5, 0.5, 0.75, 0.75]
    assert known.all(1).tolist() == [True, False]
    assert fill_missing(row.double(), ~row.isnan(), "none")[1].tolist() == (~row.isnan()).tolist()
    with pytest.raises(InputError, match="backward_one, forward or none, not 'backward'"):
        lim_scores(row, fill="backward")  # type: ignore[arg-type]


@given(matrices(), st.randoms())
def test_order_of_prompts_does_not_matter(history: Tensor, shuffler: object) -> None:
    if bool((history == 1).all()):
        return
    order = torch.randperm(len(history))
    torch.testing.assert_close(lim_scores(history[order]).scores, lim_scores(history).scores[order])


@given(matrices())
def test_invariants(history: Tensor) -> None:
    solved = torch.cat([history, torch.ones(1, history.shape[1], dtype=torch.float64)])
    never = torch.cat([solved, torch.zeros(1, history.shape[1], dtype=torch.float64)])
    result = lim_scores(never)
    assert (result.scores <= 1).all()
    assert float(result.scores[len(history)]) == 0.0
    distance = (never - never.mean(0)).square().sum(1)
    assert (result.scores[distance.argmin()] >= result.scores - 1e-12).all()
    # A prompt that is the average curve scores 1.
    with_average = torch.cat([never, never.mean(0, keepdim=True)])
    assert float(lim_scores(with_average).scores[-1]) == pytest.approx(1)


@given(matrices())
def test_a_mask_and_nan_say_the_same(history: Tensor) -> None:
    never = torch.cat([history, torch.zeros(1, history.shape[1], dtype=torch.float64)])
    gaps = torch.rand(never.shape) < 0.2
    gaps[-1] = False
    by_nan = lim_scores(never.masked_fill(gaps, NAN))
    # What stands in a gap is not looked at.
    by_mask = lim_scores(never.masked_fill(gaps, -7.0), ~gaps)
    torch.testing.assert_close(by_nan.scores, by_mask.scores, equal_nan=True)


def test_threshold_is_strict_and_budget_replaces_it() -> None:
    assert LIMR(threshold=0.0).select(WORKED).tolist() == [0, 3]
    assert LIMR(threshold=-0.01).select(WORKED).tolist() == [0, 3, 1]
    assert LIMR(threshold=0.9).select(WORKED).tolist() == []
    assert LIMR(threshold=0.9, budget=3).select(WORKED).tolist() == [0, 3, 1]
    assert LIMR(budget=3).select(WORKED, 1).tolist() == [0]
    assert LIMR(budget=99).select(WORKED).tolist() == [0, 3, 1, 2]


def test_the_cut_is_made_before_filling() -> None:
    history = torch.tensor([[0, NAN, 0.5], [0, 0.5, 1.0]])
    assert LIMR().score(history).dropped == 0
    assert LIMR(epochs=2).score(history).dropped == 1
    assert LIMR(epochs=1).score(history).average.tolist() == [0.0]


def test_a_history_object_is_a_pool() -> None:
    history = AccuracyHistory()
    for epoch in range(3):
        history.update(["a", "b", "c", "d"], WORKED[:, epoch], epoch)
    assert LIMR().select(history).tolist() == [0, 3]


def test_what_has_no_score_is_said() -> None:
    with pytest.raises(InputError, match=r"all 2 prompts lack an epoch.*epoch 1 was observed for none"):
        lim_scores(torch.tensor([[0.5, NAN, NAN], [0.5, NAN, NAN]]), fill="none")
    with pytest.raises(InputError, match="every prompt is solved in every epoch"):
        lim_scores(torch.ones(3, 2))
    with pytest.raises(InputError, match=r"not \[0, 3\]"):
        lim_scores(torch.ones(0, 3))
    with pytest.raises(InputError, match=r"booleans of the history's shape \[4, 3\]"):
        lim_scores(WORKED, torch.ones(4, 2, dtype=torch.bool))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="threshold must be below 1"):
        LIMR(threshold=1.0)
    with pytest.raises(InputError, match="budget must be at least 1, not 0"):
        LIMR(budget=0)
    with pytest.raises(InputError, match="epochs must be at least 1"):
        LIMR(epochs=0)
    with pytest.raises(InputError, match="budget"):
        LIMR().select(WORKED, 0)
