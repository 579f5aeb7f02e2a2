"""Credit by hand, and what must hold of it for any rewards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.align.credit import (
    at_last_token,
    equal_groups,
    generalised_advantage,
    group_centred,
    group_normalised,
    group_statistics,
    leave_one_out,
    whiten,
)
from thrifty.core.errors import InputError
from thrifty.reward.steps import rewards_to_go

REWARDS = st.lists(st.tuples(st.integers(0, 3), st.floats(-3, 3, width=32)), min_size=1, max_size=24)


def test_group_normalised_by_hand() -> None:
    one = torch.zeros(8, dtype=torch.long)
    reward = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    expected = torch.tensor([2.474867] + [-0.353552] * 7)
    torch.testing.assert_close(group_normalised(reward, one, 1e-6), expected, atol=2e-6, rtol=0)
    four = group_normalised(torch.tensor([2.0, 1, 0, 1]), torch.zeros(4, dtype=torch.long), 1e-4)
    torch.testing.assert_close(four, torch.tensor([1.224595, 0, -1.224595, 0]), atol=1e-6, rtol=0)
    two = group_normalised(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long), 0.0)
    torch.testing.assert_close(two, torch.tensor([0.707107, -0.707107]))


def test_a_group_of_one_keeps_its_reward_and_an_even_group_has_none() -> None:
    reward, group = torch.tensor([3.0, 1, 1]), torch.tensor([5, 2, 2])
    assert group_normalised(reward, group).tolist() == [3, 0, 0]
    assert group_centred(reward, group).tolist() == [3, 0, 0]
    assert float(equal_groups(reward, group)) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="two answers"):
        leave_one_out(reward, group)


@given(REWARDS)
def test_groups_do_not_see_each_other(cases: list[tuple[int, float]]) -> None:
    group = torch.tensor([g for g, _ in cases])
    reward = torch.tensor([r for _, r in cases], dtype=torch.float64)
    together = group_centred(reward, group)
    mean, deviation, count = group_statistics(reward, group)
    for number in group.unique():
        mine = reward[group == number]
        assert (count[group == number] == len(mine)).all()
        torch.testing.assert_close(mean[group == number], mine.mean().expand(len(mine)))
        if len(mine) > 1:
            torch.testing.assert_close(together[group == number], mine - mine.mean())
            torch.testing.assert_close(deviation[group == number], mine.std().expand(len(mine)), atol=1e-7, rtol=1e-6)


def test_leave_one_out_compares_with_the_others() -> None:
    reward, group = torch.tensor([1.0, 0, 2, 5, 7]), torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(leave_one_out(reward, group), torch.tensor([0.0, -1.5, 1.5, -2, 2]))


def test_generalised_advantage_by_hand() -> None:
    rewards, values = torch.tensor([[-0.005, 0.0, 9.99]]), torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = generalised_advantage(rewards, values, mask)
    torch.testing.assert_close(advantages, torch.tensor([[8.253475, 7.6405, 6.99]]))
    torch.testing.assert_close(returns, torch.tensor([[9.253475, 9.6405, 9.99]]))
    expected = torch.tensor([[0.989955, 0.019797, -1.009751]])
    torch.testing.assert_close(whiten(advantages, mask), expected, atol=1e-5, rtol=0)


@given(st.integers(0, 1000), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_what_lies_between_answer_tokens_changes_no_advantage(seed: int, discount: float, trace: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(1, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    whole = torch.ones(1, 5, dtype=torch.bool)
    spread = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 0]], dtype=torch.bool)
    gapped = [
        torch.randn(1, 9, generator=draw, dtype=torch.float64).masked_scatter(spread, x) for x in (rewards, values)
    ]
    for mine, theirs in zip(
        generalised_advantage(*gapped, spread, discount, trace),
        generalised_advantage(rewards, values, whole, discount, trace),
        strict=True,
    ):
        torch.testing.assert_close(mine[spread], theirs[0])
        assert (mine[~spread] == 0).all()


@given(st.integers(0, 1000))
def test_gae_with_full_trace_is_return_minus_value(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(2, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 6, generator=draw) < 0.7
    advantages, returns = generalised_advantage(rewards * mask, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, rewards_to_go(rewards, mask))
    torch.testing.assert_close(advantages, (rewards_to_go(rewards, mask) - values) * mask)


def test_whitening_looks_at_the_masked_entries_only() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    found = whiten(torch.tensor([[1.0, 2.0], [6.0, 1e9]]), mask)
    assert found[1, 1] == 0
    torch.testing.assert_close(found[mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[mask].std(), torch.tensor(1.0))
    assert whiten(torch.tensor([[3.0]]), torch.tensor([[True]])).tolist() == [[3.0]]


def test_a_reward_at_the_last_token() -> None:
    mask = torch.tensor([[False, True, True, False], [False, False, False, True], [False] * 4])
    found = at_last_token(torch.tensor([2.0, 3.0, 4.0]), mask)
    assert found.tolist() == [[0, 0, 2, 0], [0, 0, 0, 3], [0, 0, 0, 0]]
