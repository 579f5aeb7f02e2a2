"""TOPR against numbers worked out by hand and against the objective whose gradient it claims to be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.align.ratios import importance_log_ratio, truncated_ratio
from thrifty.align.sft import SFT, naive_reinforce, truncated_importance_sampling
from thrifty.align.topr import (
    TOPR,
    baseline_for_positive_fraction,
    baseline_for_rewards,
    effective_positive_fraction,
    keep_first_positive,
    topr_loss,
)
from thrifty.core.errors import InputError
from thrifty.lm.sequences import Sequences


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four responses of two tokens: log-probabilities, mask, the behaviour's sums, rewards."""
    logps = (torch.tensor([-2.0, -3.0, -2.5, -1.0])[:, None] / 2).repeat(1, 2).requires_grad_()
    return logps, torch.ones(4, 2, dtype=torch.bool), torch.tensor([-1.0, -2, -2, -2]), torch.tensor([1.0, -1, -1, -1])


def test_worked_example() -> None:
    logps, mask, behaviour, reward = example()
    rho = importance_log_ratio(logps, mask, behaviour).exp()[:, 0]
    torch.testing.assert_close(rho, torch.tensor([0.367879, 0.367879, 0.606531, 2.718282]), atol=1e-6, rtol=0)
    loss = topr_loss(logps, mask, behaviour, reward, length_normalise=False)
    assert float(loss.value.detach()) == pytest.approx(-0.404991, abs=1e-6)
    assert loss.metrics["negative_weight"] == pytest.approx((0.367879 + 0.606531 + 1) / 3, abs=1e-6)
    loss.value.backward()
    expected = torch.tensor([-0.25, 0.091970, 0.151633, 0.25])
    torch.testing.assert_close(logps.grad[:, 0], expected, atol=1e-6, rtol=0)
    normalised = topr_loss(logps, mask, behaviour, reward).value
    assert float(normalised.detach()) == pytest.approx(-0.202496, abs=1e-6)


def test_baseline_formula() -> None:
    assert effective_positive_fraction(0.5, 0.8) == pytest.approx(0.1)
    assert effective_positive_fraction(0.1, 0.0) == pytest.approx(0.1)
    assert effective_positive_fraction(0.3, -1.0) == pytest.approx(1.0)
    for p, c in ((0.1, -0.227273), (0.5, 0.7), (0.9, 0.961538)):
        assert baseline_for_positive_fraction(p, 0.15) == pytest.approx(c, abs=1e-6)
    for p, target in ((0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, 1.1)):
        with pytest.raises(InputError, match="need 0 < p < 1"):
            baseline_for_positive_fraction(p, target)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.02, 0.98))
def test_the_general_baseline_equals_the_closed_form(positives: int, negatives: int, target: float) -> None:
    reward = torch.tensor([1.0] * positives + [-1.0] * negatives)
    p = positives / (positives + negatives)
    found = baseline_for_rewards(reward, target)
    assert found == pytest.approx(baseline_for_positive_fraction(p, target), abs=1e-6)
    assert effective_positive_fraction(p, found) == pytest.approx(target, abs=1e-6)


def test_curation_keeps_the_first_right_answer_and_all_wrong_ones() -> None:
    reward = torch.tensor([-1.0, 1, -1, 1, 1])
    assert keep_first_positive(torch.zeros(5, dtype=torch.long), reward).tolist() == [True, True, True, False, False]
    # Prompts interleaved; one has only wrong answers, one only right ones.
    group = torch.tensor([7, 3, 7, 9, 3, 9, 7])
    reward = torch.tensor([1.0, -1, 1, 1, -1, 1, -1])
    assert keep_first_positive(group, reward).tolist() == [True, True, False, True, True, False, True]
    assert keep_first_positive(torch.zeros(0, dtype=torch.long), torch.zeros(0)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=25))
def test_curation_in_words(answers: list[tuple[int, bool]]) -> None:
    seen: set[int] = set()
    expected = []
    for prompt, right in answers:
        expected.append(not right or prompt not in seen)
        seen |= {prompt} if right else set()
    group, right = (torch.tensor(column) for column in zip(*answers, strict=True))
    assert keep_first_positive(group, right.float() * 2 - 1).tolist() == expected


def objective(logpi: Tensor, mu: Tensor, reward: Tensor) -> Tensor:
    """The bounded objective whose gradient, times mu, TOPR follows; written apart from the implementation."""
    pi = logpi.exp()
    tapered = torch.where(pi <= mu, pi, mu * (1 + logpi - mu.log()))
    return torch.where(reward > 0, mu * reward * logpi, -reward.abs() * tapered).sum()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-6, -0.1), st.floats(-6, -0.1), st.floats(-2, 2)), min_size=1, max_size=6))
def test_the_gradient_is_that_of_the_bounded_objective(cases: list[tuple[float, float, float]]) -> None:
    logpi, logmu, reward = (torch.tensor(column, dtype=torch.float64) for column in zip(*cases, strict=True))
    step = 1e-6
    numeric = torch.stack(
        [
            (objective(logpi + step * e, logmu.exp(), reward) - objective(logpi - step * e, logmu.exp(), reward))
            / (2 * step)
            for e in torch.eye(len(cases), dtype=torch.float64)
        ]
    )
    given_logps = logpi[:, None].clone().requires_grad_()
    loss = topr_loss(given_logps, torch.ones(len(cases), 1, dtype=torch.bool), logmu, reward, length_normalise=False)
    loss.value.backward()
    # The batch holds each response once, where the objective weighs it by mu.
    torch.testing.assert_close(-given_logps.grad[:, 0] * len(cases) * logmu.exp(), numeric, atol=2e-5, rtol=1e-4)


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 9, generator=draw) < 0.7
    mask[:, 3] = True
    logps = -torch.rand(6, 9, generator=draw) * 2 * mask
    behaviour = -torch.rand(6, 9, generator=draw) * 2 * mask
    return logps.requires_grad_(), mask, behaviour, torch.tensor([1.0, -1, -1, 1, -1, -1])


def gradient(logps: Tensor, *args: Tensor, **settings_: object) -> Tensor:
    logps = logps.detach().clone().requires_grad_()
    topr_loss(logps, *args, **settings_).value.backward()  # type: ignore[arg-type]
    return logps.grad


def test_dropping_negatives_is_supervised_fine_tuning_on_the_good_ones() -> None:
    logps, mask, behaviour, reward = random_batch()
    found = gradient(logps, mask, behaviour, reward, negative_limits=(0.0, 0.0))
    good = (reward > 0)[:, None] & mask
    torch.testing.assert_close(found, -(good / mask.sum(1, keepdim=True)) / 6)


def test_limits_of_one_are_naive_reinforce_and_open_limits_off_policy_reinforce() -> None:
    logps, mask, behaviour, reward = random_batch()
    share = mask / mask.sum(1, keepdim=True) / 6
    naive = gradient(logps, mask, behaviour, reward, negative_limits=(1.0, 1.0))
    torch.testing.assert_close(naive, -reward[:, None] * share)
    rho = ((logps.detach() - behaviour) * mask).sum(1).exp()
    open_ = gradient(logps, mask, behaviour, reward, positive_limits=(0.0, math.inf), negative_limits=(0.0, math.inf))
    torch.testing.assert_close(open_, -(rho * reward)[:, None] * share)
    tis = gradient(logps, mask, behaviour, reward, positive_limits=(0.0, 1.0))
    torch.testing.assert_close(tis, -(rho.clamp(max=1) * reward)[:, None] * share)


def test_on_policy_topr_is_naive_reinforce() -> None:
    logps, mask, _, reward = random_batch()
    ours = gradient(logps, mask, logps.detach(), reward)
    torch.testing.assert_close(ours, gradient(logps, mask, logps.detach(), reward, negative_limits=(1.0, 1.0)))


@pytest.mark.parametrize("ratio", ["sequence", "token", "geometric"])
def test_the_three_ratios(ratio: str) -> None:
    logps, mask, behaviour, _ = random_batch()
    found = importance_log_ratio(logps, mask, behaviour, ratio)  # type: ignore[arg-type]
    difference = (logps.detach() - behaviour) * mask
    for row in range(6):
        total, length = difference[row].sum(), mask[row].sum()
        expected = {"sequence": total, "geometric": total / length, "token": difference[row]}[ratio] * mask[row]
        torch.testing.assert_close(found[row], expected)
    assert not found.requires_grad


def test_token_ratios_need_token_log_probabilities() -> None:
    logps, mask, behaviour, reward = example()
    with pytest.raises(InputError, match="each token"):
        topr_loss(logps, mask, behaviour, reward, ratio="token")


def test_sums_and_tokens_of_the_behaviour_say_the_same() -> None:
    logps, mask, behaviour, reward = random_batch()
    by_token = topr_loss(logps, mask, behaviour, reward).value
    torch.testing.assert_close(by_token, topr_loss(logps, mask, (behaviour * mask).sum(1), reward).value)


def test_padding_and_order_change_nothing() -> None:
    logps, mask, behaviour, reward = random_batch()
    padded = [torch.nn.functional.pad(t, (0, 4)) for t in (logps, mask, behaviour)]
    torch.testing.assert_close(topr_loss(*padded, reward).value, topr_loss(logps, mask, behaviour, reward).value)
    order = torch.randperm(6)
    shuffled = topr_loss(logps[order], mask[order], behaviour[order], reward[order]).value
    torch.testing.assert_close(shuffled, topr_loss(logps, mask, behaviour, reward).value)


def test_the_branch_follows_the_sign_of_what_is_used() -> None:
    """A reward above 0 but below the baseline pushes away, so it is tapered."""
    log_ratio = torch.full((2, 1), 3.0)
    weight = truncated_ratio(log_ratio, torch.tensor([1.0, 1.0]) - torch.tensor([0.5, 1.5]), (1.0, 1.0), (0.0, 0.5))
    assert weight[:, 0].tolist() == [1.0, 0.5]


def test_a_huge_ratio_does_not_overflow() -> None:
    weight = truncated_ratio(torch.tensor([[1e4]]), torch.tensor([-1.0]), (1.0, 1.0), (0.0, math.inf))
    assert torch.isfinite(weight).all()


def logged(reward: list[float], group: list[int] | None = None) -> Sequences:
    many = len(reward)
    ids = torch.ones(many, 3, dtype=torch.long)
    spoken = torch.tensor([[False, True, True]]).repeat(many, 1)
    columns = {"reward": torch.tensor(reward), "group": torch.tensor(group or list(range(many)))}
    return Sequences(ids, torch.ones_like(spoken), spoken, columns)


def test_prepare_turns_rewards_into_worth() -> None:
    assert TOPR().prepare(logged([1.0, -1.0]))["worth"].tolist() == [1.0, -1.0]
    worth = TOPR(positive_fraction=0.15).prepare(logged([1.0, 1, -1, 1]))["worth"]
    assert float(worth.clamp(min=0).sum() / worth.abs().sum()) == pytest.approx(0.15, abs=1e-5)
    curated = TOPR(curation="first-positive").prepare(logged([1.0, 1, -1, 1], [0, 0, 0, 1]))
    assert curated["worth"].tolist() == [1.0, -1.0, 1.0]


def test_rewards_without_negatives_are_refused_with_the_cure() -> None:
    with pytest.raises(InputError, match=r"plain supervised fine-tuning.*--positive-fraction"):
        TOPR().prepare(logged([0.0, 1.0]))
    assert TOPR(positive_fraction=0.2).prepare(logged([0.0, 1.0]))["worth"].min() < 0
    assert TOPR(negative_limits=(0.0, 0.0)).prepare(logged([0.0, 1.0]))["worth"].tolist() == [0.0, 1.0]
    with pytest.raises(InputError, match="all rewards are 1"):
        TOPR(positive_fraction=0.2).prepare(logged([1.0, 1.0]))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="negative_limits must be 0 <= low <= high, not 1 and 0"):
        TOPR(negative_limits=(1.0, 0.0))
    with pytest.raises(InputError, match="positive_fraction must be within"):
        TOPR(positive_fraction=1.5)


def test_the_named_relatives() -> None:
    assert naive_reinforce().negative_limits == (1.0, 1.0)
    assert truncated_importance_sampling().positive_limits == (0.0, 1.0)
    kept = SFT().prepare(logged([1.0, -1.0, 0.0, 2.0]))
    assert kept["reward"].tolist() == [1.0, 2.0]
    assert len(SFT().prepare(logged([1.0]).without_columns("reward"))) == 1
    with pytest.raises(InputError, match="nothing to learn from"):
        SFT().prepare(logged([-1.0]))
