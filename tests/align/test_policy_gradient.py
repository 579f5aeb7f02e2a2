"""The policy-gradient loss by hand, and GRPO's settings on a tiny model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.align.grpo import GRPO, is_fresh
from thrifty.align.policy_gradient import aggregate, clipped_policy_loss, k3_divergence, policy_ratio
from thrifty.core.errors import InputError
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences, from_rows

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_worked_example() -> None:
    advantage = torch.tensor([[1.0, 1, 9], [-1, -1, -1]])
    ratio = torch.tensor([[1.0, 1.3, 5], [0.7, 1, 1.3]])
    losses = clipped_policy_loss(ratio, advantage, 0.2)
    torch.testing.assert_close(losses[MASK], torch.tensor([-1.0, -1.2, 0.8, 1.0, 1.3]))
    assert float(aggregate(losses, MASK, "token")) == pytest.approx(0.18)
    entropy = torch.tensor([[0.6, 0.2, math.nan], [0.4, 0.8, 0.5]])
    assert float(aggregate(entropy, MASK, "token")) == pytest.approx(0.5)
    assert float(aggregate(losses, MASK, "token") - 0.001 * aggregate(entropy, MASK, "token")) == pytest.approx(0.1795)
    assert float(aggregate(losses, MASK, "sequence")) == pytest.approx((-1.1 + 3.1 / 3) / 2)
    assert float(aggregate(losses, MASK, "constant", longest=4)) == pytest.approx(0.9 / 8)
    with pytest.raises(InputError, match="longest"):
        aggregate(losses, MASK, "constant")


def test_dual_clip_and_asymmetric_clip() -> None:
    cases = [(1.0, 1.5, -1.2), (1, 0.5, -0.5), (-1, 0.5, 0.8), (-1, 1.5, 1.5), (-1, 5, 3)]
    for advantage, ratio, expected in cases:
        found = clipped_policy_loss(torch.tensor([[ratio]]), torch.tensor([[advantage]]), 0.2, dual=3.0)
        assert float(found) == pytest.approx(expected)
    assert float(clipped_policy_loss(torch.tensor([[1.25]]), torch.tensor([[1.0]]), 0.2, 0.28)) == -1.25
    assert float(clipped_policy_loss(torch.tensor([[9.0]]), torch.tensor([[1.0]]), None)) == -9


@given(st.integers(0, 500), st.integers(1, 3), st.sampled_from(["token", "sequence", "constant"]))
def test_the_losses_of_parts_add_up_to_that_of_the_step(seed: int, cut: int, how: Any) -> None:
    draw = torch.Generator().manual_seed(seed)
    values, mask = torch.randn(4, 5, generator=draw), torch.rand(4, 5, generator=draw) < 0.6
    whole = aggregate(values, mask, how, longest=7)
    parts = [aggregate(values[p], mask[p], how, mask, 7) for p in (slice(0, cut), slice(cut, 4))]
    torch.testing.assert_close(parts[0] + parts[1], whole, atol=1e-6, rtol=1e-5)


def test_a_sequence_s_ratio_is_its_geometric_mean() -> None:
    logps, old = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -2.1, 0.0]])
    mask = torch.tensor([[True, True, False]])
    ratio = policy_ratio(logps, old, mask, "sequence")
    assert ratio[0, :2].tolist() == pytest.approx([math.exp(0.3)] * 2)
    assert policy_ratio(logps, old, mask)[0].tolist() == pytest.approx([math.exp(0.5), math.exp(0.1), 1.0])
    assert is_fresh(logps, old, mask, 1.4).tolist() == [True]
    assert is_fresh(logps, old, mask, 1.3).tolist() == [False]
    assert is_fresh(old, logps, mask, 1.3).tolist() == [False]


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_k3_is_never_negative_and_zero_at_the_reference(logp: float, reference: float) -> None:
    found = float(k3_divergence(torch.tensor([[logp]]), torch.tensor([[reference]])))
    assert found >= -1e-6
    assert float(k3_divergence(torch.tensor([[logp]]), torch.tensor([[logp]]))) == 0


def answers() -> Sequences:
    rows = [([3, 4, 5, 6, 7, 8][: 3 + n], [False, False] + [True] * (1 + n)) for n in (1, 2, 3, 1)]
    return from_rows(
        rows,
        row_columns={"reward": [1.0, 0.0, 1.0, 1.0], "group": [0, 0, 1, 1], "finished": [True, True, False, True]},
        token_columns={"behaviour_logps": [[-2.0] * (1 + n) for n in (1, 2, 3, 1)]},
    )


def gradient(model: Any, objective: GRPO, parts: list[slice]) -> tuple[float, torch.Tensor]:
    whole = objective.prepare(answers())
    model.zero_grad()
    total = 0.0
    for part in parts:
        loss = objective.loss(model, whole.select(part), whole).value
        loss.backward()
        total += float(loss.detach())
    return total, model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize(
    "objective",
    [
        GRPO(),
        GRPO(aggregation="sequence", entropy_coefficient=0.1),
        GRPO(credit="centred", aggregation="constant", longest=8),
        GRPO(credit="leave-one-out", ratio="sequence", clip=None, drop_cut_off=True),
        GRPO(stale_ratio=3.0, clip_high=0.28, dual_clip=3.0),
    ],
    ids=["grpo", "entropy", "dr-grpo", "gspo", "stale"],
)
def test_a_step_in_parts_is_the_step(tiny: Any, objective: GRPO) -> None:
    whole, expected = gradient(tiny[0], objective, [slice(0, 4)])
    parts, found = gradient(tiny[0], objective, [slice(0, 1), slice(1, 4)])
    assert parts == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_answers_without_credit_are_left_out_of_the_forward_pass(tiny: Any) -> None:
    objective = GRPO()
    whole = objective.prepare(answers())
    assert objective.teaches(whole).tolist() == [True, True, False, False]  # both answers of the second are right
    assert GRPO(entropy_coefficient=0.1).teaches(whole).tolist() == [True] * 4
    expected = gradient(tiny[0], objective, [slice(0, 4)])[1]
    found = gradient(tiny[0], objective, [slice(0, 2)])[1]
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)


def test_on_policy_the_gradient_is_reinforce(tiny: Any) -> None:
    """Without logged log-probabilities the policy is its own behaviour: ratio 1, gradient A grad log p."""
    model = tiny[0]
    whole = GRPO().prepare(answers()).without_columns("behaviour_logps")
    model.zero_grad()
    GRPO().loss(model, whole, whole).value.backward()
    found = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    logps = token_logps(model, whole)
    (-(logps * whole["advantage"]).sum() / whole.response_mask.sum()).backward()
    torch.testing.assert_close(found, model.get_input_embeddings().weight.grad)


def test_cut_off_and_stale_answers_count_for_nothing(tiny: Any) -> None:
    objective = GRPO(drop_cut_off=True)
    whole = objective.prepare(answers())
    assert whole["counts"].tolist() == [True, True, False, True]
    far = answers().with_columns(behaviour_logps=answers()["behaviour_logps"] - 50.0)
    stale = GRPO(stale_ratio=2.0)
    batch = stale.prepare(far)
    found = stale.loss(tiny[0], batch, batch)
    assert float(found.value.detach()) == 0
    assert float(found.metrics["stale"]) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clip": 0.0}, "clip must be above 0"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
        ({"stale_ratio": 0.5}, "stale_ratio must be above 1"),
        ({"aggregation": "constant"}, "give longest"),
    ],
)
def test_wrong_settings_are_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GRPO(**wrong)
