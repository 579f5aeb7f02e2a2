"""Preference losses against worked numbers, and the objective on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.align.base import Training
from thrifty.align.dpo import DPO
from thrifty.align.preference import KINDS, preference_loss
from thrifty.align.training import train
from thrifty.core.errors import InputError
from thrifty.core.run import Run, read_metrics
from thrifty.lm.logps import token_logps
from thrifty.lm.records import from_records

PAIRS = [
    {"prompt": f"what is {a} plus {b}", "chosen": f"the sum is {c}", "rejected": "dog"}
    for a, b, c in [(1, 2, 3), (2, 2, 4), (3, 4, 7), (5, 1, 6)]
]


def pair(chosen: float, rejected: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([chosen]), torch.tensor([rejected])


def test_dpo_worked_examples() -> None:
    policy, reference = pair(-10, -30), pair(-12, -28)
    assert float(preference_loss(*policy, *reference, kind="dpo", beta=0.1)) == pytest.approx(0.513015, abs=1e-6)
    assert float(preference_loss(*policy, *reference, kind="nca", beta=0.3)) == pytest.approx(1.174976, abs=1e-6)
    means = [torch.tensor([v]) for v in (-10 / 10, -30 / 40, -12 / 10, -28 / 40)]
    assert float(preference_loss(*means, kind="dpo-norm", beta=5.0)) == pytest.approx(0.251929, abs=1e-6)


def test_tpo_worked_examples() -> None:
    chosen, rejected = torch.tensor([-10.0, -6]), torch.tensor([-14.0, -5])
    found = preference_loss(chosen, rejected, kind="tpo", beta=0.01)
    torch.testing.assert_close(found, torch.tensor([0.673347, 0.698160]), atol=1e-6, rtol=0)
    means = chosen / torch.tensor([5.0, 3]), rejected / torch.tensor([7.0, 2])
    found = preference_loss(*means, kind="tpo-l", beta=0.01, gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([0.974077, 0.970968]), atol=1e-6, rtol=0)
    found = preference_loss(*means, kind="tpo-l", beta=2.0, gamma=1.6)
    torch.testing.assert_close(found, torch.tensor([1.783901, 1.037488]), atol=1e-6, rtol=0)


def test_the_other_kinds_by_hand() -> None:
    policy, reference = pair(-1.0, -2.0), pair(-1.5, -1.0)  # difference 0.5 - (-1) = 1.5
    assert float(preference_loss(*policy, *reference, kind="ipo", beta=0.5)) == pytest.approx(0.25)
    assert float(preference_loss(*policy, *reference, kind="hinge", beta=0.5)) == pytest.approx(0.25)
    assert float(preference_loss(*policy, kind="tpo-hinge", beta=0.5)) == pytest.approx(0.5)
    odds = [torch.tensor([p]) for p in (0.8, 0.5)]  # odds 4 and 1: sigma(log 4) = 0.8
    found = preference_loss(odds[0].log(), odds[1].log(), kind="orpo", beta=0.1)
    assert float(found) == pytest.approx(-0.1 * torch.tensor(0.8).log().item(), abs=1e-5)
    smoothed = preference_loss(*policy, *reference, kind="dpo", beta=1.0, label_smoothing=0.1)
    z = torch.tensor(1.5)
    expected = -0.9 * torch.sigmoid(z).log() - 0.1 * torch.sigmoid(-z).log()
    assert float(smoothed) == pytest.approx(float(expected), abs=1e-6)


# IPO regresses the margin to a value of its own, and NCA pulls the chosen answer's reward back to 0.
@given(st.sampled_from(sorted({*KINDS} - {"ipo", "tpo-ipo", "nca"})), st.floats(-3, -0.1), st.floats(-3, -0.1))
def test_a_better_chosen_answer_never_costs_more(kind: Any, chosen: float, rejected: float) -> None:
    reference = pair(-1.0, -1.0) if KINDS[kind].reference else (None, None)
    losses = [
        float(preference_loss(*pair(value, rejected), *reference, kind=kind, beta=0.5))
        for value in (chosen, chosen + 0.05)
    ]
    assert losses[1] <= losses[0] + 1e-6


def test_a_reference_is_asked_for_and_not_wanted() -> None:
    with pytest.raises(InputError, match="compares with a reference"):
        preference_loss(*pair(-1, -2), kind="dpo", beta=0.1)
    with pytest.raises(InputError, match="has no reference"):
        preference_loss(*pair(-1, -2), *pair(-1, -2), kind="simpo", beta=0.1)
    with pytest.raises(InputError, match="did you mean 'dpo'"):
        DPO(kind="dppo")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_learns_to_prefer(tiny: Any, tmp_path: Path, kind: Any) -> None:
    model, tokenizer = tiny
    data = from_records(PAIRS, tokenizer)
    beta = {"orpo": 1.0, "ipo": 0.2, "tpo-ipo": 0.2}.get(kind, 0.5)
    objective = DPO(kind=kind, beta=beta, nll_weight=1.0 if kind == "orpo" else 0.0)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(model, objective, data, run, Training(learning_rate=3e-3, batch_size=4, micro_batch_size=2, epochs=20))
        rows = read_metrics(run.directory)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["margin"] > rows[0]["margin"]
    means = (token_logps(model, data).sum(1) / data.response_lengths).detach()
    assert (means[0::2] > means[1::2]).all()


def test_a_step_in_parts_is_the_step(tiny: Any) -> None:
    model, tokenizer = tiny
    objective = DPO(kind="simpo", beta=2.0, nll_weight=0.3)
    data = objective.prepare(from_records(PAIRS, tokenizer))
    whole = float(objective.loss(model, data, data).value.detach())
    parts = [float(objective.loss(model, data.select(p), data).value.detach()) for p in (slice(0, 2), slice(2, 8))]
    assert sum(parts) == pytest.approx(whole, abs=1e-6)


def test_pairs_whose_answers_are_the_same_are_left_out_and_counted(tiny: Any, caplog: Any) -> None:
    same = {"prompt": "what is 1", "chosen": "dog", "rejected": "dog"}
    data = from_records([PAIRS[0], same, PAIRS[1]], tiny[1])
    assert data["group"].tolist() == [0, 0, 2, 2]
    assert "1 of 3 pairs have the same answer" in caplog.text
    with pytest.raises(InputError, match="in all 1 pairs"):
        from_records([same], tiny[1])


def test_data_that_are_no_pairs_are_refused(tiny: Any) -> None:
    single = from_records([{"prompt": "what is 1", "completion": "dog"}] * 2, tiny[1])
    with pytest.raises(InputError, match="learns from pairs"):
        DPO().prepare(single)
