"""Clip, Delta and Clip-Delta against the numbers of the card, and the two properties that make them safe."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.reward.reward_clip_delta import ClipDelta, Refinement, quantile_threshold, shape_process_reward
from thrifty.reward.steps import StepRewards, rewards_to_go

ETA = 0.85
WORKED = [0.9, 0.95, 0.4, 0.8]


def shape(scores: list[float], method: Refinement, padding: int = 0, **more: float) -> tuple[list[float], list[float]]:
    """Step rewards and returns of one response."""
    score = torch.tensor([[*scores, *[7.0] * padding]], dtype=torch.float64)
    mask = torch.tensor([[True] * len(scores) + [False] * padding])
    shaped = shape_process_reward(score, mask, method=method, **{"eta": ETA, **more})
    assert (shaped[:, len(scores) :] == 0).all()
    return shaped[0, : len(scores)].tolist(), rewards_to_go(shaped, mask)[0, : len(scores)].tolist()


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("method", "rewards", "reached"),
    [
        ("clip", [0, 0, -0.45, -0.05], [-0.5, -0.5, -0.5, -0.05]),
        ("delta", [-0.05, 0.55, 0.4, 0], [0.9, 0.95, 0.4, 0]),
        ("clip-delta", [0, 0.45, -0.45, 0], [0, 0, -0.45, 0]),
        ("none", WORKED, [3.05, 2.15, 1.2, 0.8]),
        ("length-normalised", [0.225, 0.2375, 0.1, 0.2], [0.7625, 0.5375, 0.3, 0.2]),
        ("length-penalty", [0.8, 0.85, 0.3, 0.7], [2.65, 1.85, 1.0, 0.7]),
    ],
)
def test_worked_example(method: Refinement, rewards: list[float], reached: list[float], padding: int) -> None:
    found, sums = shape(WORKED, method, padding)
    assert found == pytest.approx(rewards, abs=1e-9)
    assert sums == pytest.approx(reached, abs=1e-9)


def test_short_responses() -> None:
    assert shape([0.7], "delta")[0] == [0]
    assert shape([0.7], "clip-delta")[0] == [0]
    assert shape([0.7, 0.2], "delta")[0] == pytest.approx([0.7, 0])
    assert shape([0.7, 0.2], "clip-delta")[0] == pytest.approx([-0.15, 0])


SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(st.lists(SCORES, min_size=1, max_size=5))
def test_delta_telescopes_to_all_scores_but_the_last(rows: list[list[float]]) -> None:
    steps = StepRewards.from_lists(rows)
    shaped = shape_process_reward(steps.score, steps.step_mask, method="delta")
    expected = torch.zeros_like(steps.score)
    for number, row in enumerate(rows):
        expected[number, : len(row) - 1] = torch.tensor(row[:-1])
    torch.testing.assert_close(rewards_to_go(shaped, steps.step_mask), expected, atol=1e-5, rtol=0)


@given(SCORES, st.floats(ETA, 1), st.integers(1, 4), st.data())
def test_repeating_a_good_step_raises_no_bounded_return(
    scores: list[float], easy: float, copies: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(scores) - 1))  # before the last step at the latest
    padded = [*scores[:at], *[easy] * copies, *scores[at:]]
    for method in ("clip", "clip-delta"):
        before, after = shape(scores, method)[1], shape(padded, method)[1]
        assert after[:at] == pytest.approx(before[:at], abs=1e-9)
    before, after = shape(scores, "none")[1], shape(padded, "none")[1]
    assert after[:at] == pytest.approx([value + copies * easy for value in before[:at]], abs=1e-9)


@given(SCORES, st.floats(0, 1))
def test_clip_returns_are_never_above_zero(scores: list[float], eta: float) -> None:
    for method in ("clip", "clip-delta"):
        rewards, reached = shape(scores, method, eta=eta)
        assert max(reached) <= 1e-12
        assert all(-eta - 1e-12 <= reward <= eta + 1e-12 for reward in rewards)


@pytest.mark.parametrize("method", ["none", "clip", "delta", "clip-delta"])
def test_an_unfinished_last_step_gets_nothing(method: Refinement) -> None:
    score = torch.tensor([[0.9, 0.4, 0.8], [0.9, 0.4, 0.8]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    kept = shape_process_reward(score, mask, method=method, eta=ETA)
    cut = shape_process_reward(score, mask, method=method, eta=ETA, truncated=torch.tensor([True, True]))
    assert cut[0, 2] == 0
    assert cut[1, 1:].tolist() == [0, 0]
    torch.testing.assert_close(cut[0, :2], kept[0, :2])


def test_the_threshold_leaves_the_wanted_share_at_zero() -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert quantile_threshold(scores, 0.7) == pytest.approx(0.4)
    assert quantile_threshold(scores, 0.75) == pytest.approx(0.3)
    with pytest.raises(InputError, match="no step scores"):
        quantile_threshold(torch.zeros(0))


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40), st.floats(0.05, 0.95))
def test_the_threshold_is_the_largest_such_score(scores: list[float], share: float) -> None:
    tensor = torch.tensor(scores)
    eta = quantile_threshold(tensor, share)
    assert (tensor.double() >= eta).double().mean() >= share - 1e-9
    higher = tensor[tensor.double() > eta]
    if len(higher):
        assert (tensor >= higher.min()).double().mean() < share


def steps() -> tuple[StepRewards, Tensor]:
    return StepRewards.from_lists([WORKED, [0.5, 0.6], [0.95]], [[1, 3, 4, 6], [0, 2], [1]]), torch.tensor([1.0, 0, 1])


def test_fit_looks_at_right_answers_only() -> None:
    scored, correct = steps()
    # Scores of right answers: 0.4, 0.8, 0.9, 0.95, 0.95; four of five must get 0.
    assert ClipDelta(zero_share=0.8).fit(scored, correct).threshold == pytest.approx(0.8)
    cut = StepRewards(scored.score, scored.step_mask, scored.step_end, torch.tensor([True, False, False]))
    assert ClipDelta(zero_share=0.6).fit(cut, correct).threshold == pytest.approx(0.9)  # without the unfinished 0.8
    assert ClipDelta(threshold=0.3).fit(scored, correct).threshold == 0.3
    assert ClipDelta(method="delta").fit(scored, correct).threshold is None
    with pytest.raises(InputError, match=r"no response is right.*--threshold"):
        ClipDelta().fit(scored, torch.zeros(3))
    with pytest.raises(InputError, match="call fit"):
        ClipDelta().shape(scored)


def test_token_rewards_sum_to_the_objective() -> None:
    scored, correct = steps()
    mask = torch.arange(8) < torch.tensor([7, 3, 2])[:, None]
    token = ClipDelta(threshold=ETA, alpha=0.5).token_rewards(scored, correct, mask)
    expected = torch.zeros(3, 8)
    expected[0, 3], expected[0, 4], expected[0, 6] = 0.225, -0.225, 1.0
    expected[1, 0] = -0.175
    expected[2, 1] = 1.0
    torch.testing.assert_close(token, expected)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'clip-delta'"):
        ClipDelta(method="clip_delta")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="zero_share must be within"):
        ClipDelta(zero_share=1.0)
    with pytest.raises(InputError, match="alpha must be 0 or more"):
        ClipDelta(alpha=-1.0)
