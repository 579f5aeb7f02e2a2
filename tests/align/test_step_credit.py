"""Credit of steps against numbers worked out by hand, and what must hold of it for any rewards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.align.step_credit import (
    less_step_baseline,
    min_form,
    repeated_share,
    rloo_token_advantage,
    suffix_min,
    tokens_of_step,
    whiten_nonzero,
)
from thrifty.core.errors import InputError
from thrifty.reward.steps import rewards_to_go

WORKED = torch.tensor([[0.8, -0.4, 0.6]], dtype=torch.float64)
STEPS = torch.ones(1, 3, dtype=torch.bool)


def to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    return rewards_to_go(rewards, torch.ones_like(mask))


def test_worked_example() -> None:
    found = min_form(WORKED, STEPS)
    torch.testing.assert_close(found, torch.tensor([[4.915e-6, -0.399979, 2.724e-5]]).double(), atol=5e-7, rtol=1e-4)
    expected = torch.tensor([[-0.399947, -0.399952, 2.72e-5]]).double()
    torch.testing.assert_close(to_go(found, STEPS), expected, atol=1e-6, rtol=1e-3)
    strict = to_go(min_form(WORKED, STEPS, form="strict"), STEPS)
    torch.testing.assert_close(strict, torch.tensor([[-0.4, -0.4, 0.6]]).double())
    torch.testing.assert_close(
        to_go(min_form(WORKED, STEPS, form="sum"), STEPS), torch.tensor([[1.0, 0.2, 0.6]]).double()
    )


def two_answers() -> tuple[Tensor, Tensor, Tensor]:
    """Step rewards on tokens 2, 4 and 6 of one answer, 2 and 4 of another of four tokens; step ends; response mask."""
    reward = torch.zeros(2, 6, dtype=torch.float64)
    reward[0, [1, 3, 5]] = torch.tensor([0.8, -0.4, 0.6], dtype=torch.float64)
    reward[1, [1, 3]] = torch.tensor([0.5, 0.7], dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return reward, reward != 0, mask


def test_worked_advantage() -> None:
    reward, steps, mask = two_answers()
    transformed = min_form(reward, steps)
    torch.testing.assert_close(transformed[1, [1, 3]], torch.tensor([0.4404, 0.0834]).double(), atol=5e-5, rtol=0)
    advantage, returns = rloo_token_advantage(transformed, mask, torch.zeros(2).long(), longest=6, whitened=False)
    expected = torch.tensor([[-0.39995] * 4 + [2.7e-5] * 2, [0.52384] * 2 + [0.08344] * 2 + [0, 0]])
    torch.testing.assert_close(returns, expected.double(), atol=1e-5, rtol=0)
    expected = torch.tensor([[-0.6024] * 4 + [-0.2024] * 2, [0.7905] * 2 + [0.3501] * 2 + [0, 0]])
    torch.testing.assert_close(advantage, expected.double(), atol=6e-5, rtol=0)
    whitened, _ = rloo_token_advantage(transformed, mask, torch.zeros(2).long(), longest=6)
    values = whitened[mask]
    assert float(values.mean()) == pytest.approx(0, abs=1e-9)
    assert float(values.var()) == pytest.approx(1, abs=1e-6)
    assert (whitened[~mask] == 0).all()


def test_the_divisor_is_the_longest_possible_answer_and_does_not_follow_the_padding() -> None:
    reward, _, mask = two_answers()
    group = torch.zeros(2).long()
    narrow, _ = rloo_token_advantage(reward, mask, group, longest=12, whitened=False)
    wide, _ = rloo_token_advantage(
        torch.nn.functional.pad(reward, (0, 3)),
        torch.nn.functional.pad(mask, (0, 3)),
        group,
        longest=12,
        whitened=False,
    )
    torch.testing.assert_close(wide[:, :6], narrow)
    half, _ = rloo_token_advantage(reward, mask, group, longest=6, whitened=False)
    assert not torch.allclose(half, narrow)


def test_an_answer_alone_is_refused() -> None:
    reward, steps, mask = two_answers()
    alone = torch.tensor([0, 1])
    with pytest.raises(InputError, match="--samples 2 or more"):
        rloo_token_advantage(reward, mask, alone, longest=6)
    for how in ("token", "step"):
        with pytest.raises(InputError, match="--samples 2 or more"):
            less_step_baseline(reward, steps, mask, alone, how)  # type: ignore[arg-type]


ROWS = st.lists(st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=1, max_size=7), min_size=1, max_size=4)


def tensors(rows: list[list[tuple[float, bool]]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    padded = [row + [(9.0, False)] * (width - len(row)) for row in rows]
    reward = torch.tensor([[value for value, _ in row] for row in padded], dtype=torch.float64)
    return reward, torch.tensor([[step for _, step in row] for row in padded])


@settings(deadline=None)
@given(ROWS)
def test_strict_returns_are_the_least_reward_of_the_steps_to_come(rows: list[list[tuple[float, bool]]]) -> None:
    reward, steps = tensors(rows)
    found = to_go(min_form(reward, steps, form="strict"), steps)
    for at, row in enumerate(rows):
        for t in range(len(row)):
            later = [value for value, step in row[t:] if step]
            assert float(found[at, t]) == pytest.approx(min(later, default=0.0), abs=1e-12)
    assert torch.equal(suffix_min(reward, steps).isfinite(), steps.flip(1).cummax(1).values.flip(1))


@settings(deadline=None)
@given(ROWS)
def test_at_low_temperature_the_transform_pays_the_worst_step_up_to_it_and_nothing_after(
    rows: list[list[tuple[float, bool]]],
) -> None:
    reward, steps = tensors(rows)
    # Distinct rewards: of two equally bad steps each gets a half.
    reward = reward + 0.01 * torch.arange(reward.shape[1])
    found = to_go(min_form(reward, steps, temperature=1e-5), steps)
    for at in range(len(rows)):
        ends = steps[at].nonzero()[:, 0]
        gaps = reward[at, ends].sort().values.diff()
        if len(ends) == 0:
            assert (found[at] == 0).all()
        elif not len(gaps) or float(gaps[0]) > 1e-3:
            worst = int(ends[reward[at, ends].argmin()])
            assert found[at, : worst + 1].tolist() == pytest.approx([float(reward[at, worst])] * (worst + 1), abs=1e-6)
            assert (found[at, worst + 1 :].abs() < 1e-6).all()


@settings(deadline=None)
@given(ROWS, st.sampled_from(["transform", "strict", "sum"]))
def test_rows_do_not_see_each_other_nor_what_is_no_step(rows: list[list[tuple[float, bool]]], form: str) -> None:
    reward, steps = tensors(rows)
    found = min_form(reward, steps, form=form)  # type: ignore[arg-type]
    assert (found[~steps] == 0).all()
    assert found.isfinite().all()
    changed = torch.where(steps, reward, float("nan"))
    torch.testing.assert_close(min_form(changed, steps, form=form), found)  # type: ignore[arg-type]
    for at in range(len(rows)):
        torch.testing.assert_close(min_form(reward[at : at + 1], steps[at : at + 1], form=form)[0], found[at])  # type: ignore[arg-type]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(0.01, 1), st.integers(0, 6))
def test_a_filler_raises_the_sum_and_never_the_least(scores: list[float], filler: float, place: int) -> None:
    padded = [*scores[:place], filler, *scores[place:]]
    first = {}
    for form in ("sum", "strict"):
        for name, row in (("before", scores), ("after", padded)):
            reward = torch.tensor([row], dtype=torch.float64)
            steps = torch.ones_like(reward, dtype=torch.bool)
            first[form, name] = float(to_go(min_form(reward, steps, form=form), steps)[0, 0])  # type: ignore[arg-type]
    assert first["sum", "after"] > first["sum", "before"]
    assert first["strict", "after"] <= first["strict", "before"] + 1e-12


def baselines() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reward, steps, mask = two_answers()
    reward[0, [1, 3, 5]] = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)
    reward[1, [1, 3]] = torch.tensor([0.5, 0.1], dtype=torch.float64)
    return reward, steps, mask, torch.zeros(2).long()


def test_baseline_per_token_by_hand() -> None:
    reward, steps, mask, group = baselines()
    found = less_step_baseline(reward, steps, mask, group, "token")
    # The others get 0.6 for 4 tokens and 0.4 for 6; every step has one token beside its separator.
    torch.testing.assert_close(found[0, [1, 3, 5]], torch.tensor([0.15, -0.25, 0.05]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1, [1, 3]], torch.tensor([0.433333, 0.033333]).double(), atol=1e-6, rtol=0)
    assert (found[~steps] == 0).all()


def test_baseline_per_step_by_hand() -> None:
    reward, steps, mask, group = baselines()
    found = less_step_baseline(reward, steps, mask, group, "step")
    torch.testing.assert_close(found[0, [1, 3, 5]], torch.tensor([0.0, -0.4, -0.1]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1, [1, 3]], torch.tensor([0.366667, -0.033333]).double(), atol=1e-6, rtol=0)


def test_tokens_of_steps_leave_separators_and_prompts_out() -> None:
    mask = torch.tensor([[False, False, True, True, True, True, False, True, True, True]])
    steps = torch.zeros_like(mask)
    steps[0, [4, 8, 9]] = True  # steps of 3, 3 and 1 tokens, with something between that the model did not say
    assert tokens_of_step(steps, mask)[0, [4, 8, 9]].tolist() == [2, 2, 0]


def test_normalisation_leaves_zeros_out() -> None:
    values = torch.tensor([[-0.05, 0, -0.2, 0, 0.05, 0], [0.466667, 0, 0.033333, 0, 5, 5]])
    _, _, mask = two_answers()
    expected = torch.tensor([[-0.49603, 0, -1.17244, 0, -0.04509, 0], [1.83381, 0, -0.12025, 0, 0, 0]])
    torch.testing.assert_close(whiten_nonzero(values, mask), expected, atol=2e-5, rtol=0)
    assert (whiten_nonzero(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)) == 0).all()


def test_repetition_by_hand() -> None:
    assert repeated_share(torch.tensor([1, 2, 1, 2, 1, 2]), 2) == pytest.approx(1 - 2 / 5)
    assert repeated_share(torch.tensor([1, 2, 3, 4]), 2) == 0
    assert repeated_share(torch.tensor([1, 1]), 8) == 0
