"""TPO against the card's numbers, its invariants on a tiny model, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty import cli
from thrifty.align import tpo
from thrifty.align.base import Training
from thrifty.align.tpo import TPO, tpo_loss, without_dropout
from thrifty.align.training import train
from thrifty.align.triples import ANSWERS, triples_from_scores
from thrifty.core.errors import InputError
from thrifty.core.run import Run, read_metrics
from thrifty.data.readers import write_jsonl
from thrifty.lm.logps import token_logps
from thrifty.lm.records import from_records

TRIPLES = [
    {
        "prompt": f"what is {a} plus {b}",
        "reference": f"{a} plus {b} is {c} the sum is {c}",
        "chosen": f"the sum is {c}",
        "rejected": "dog",
    }
    for a, b, c in [(1, 2, 3), (2, 2, 4), (3, 4, 7), (5, 1, 6)]
]
CHOSEN, REJECTED = torch.tensor([-10.0, -6.0]), torch.tensor([-14.0, -5.0])
MEANS = CHOSEN / torch.tensor([5.0, 3.0]), REJECTED / torch.tensor([7.0, 2.0])
GOLD = torch.tensor(1.25)  # the mean of .5, 1, 1.5 and 2


def test_worked_examples() -> None:
    assert float(tpo_loss(CHOSEN, REJECTED, GOLD)) == pytest.approx(1.935754, abs=1e-6)
    assert float(tpo_loss(CHOSEN, REJECTED, GOLD, alpha=0.0)) == pytest.approx(0.685753, abs=1e-6)
    assert float(tpo_loss(*MEANS, GOLD, kind="tpo-l")) == pytest.approx(2.222522, abs=1e-6)
    found = tpo_loss(*MEANS, GOLD, kind="tpo-l", beta=2.0, gamma=1.6, alpha=0.05)
    assert float(found) == pytest.approx(1.473194, abs=1e-6)


def test_the_other_kinds_by_hand() -> None:
    # Differences 4 and -1: relu(1 - .1 * 4) and relu(1 + .1).
    assert float(tpo_loss(CHOSEN, REJECTED, GOLD, kind="tpo-hinge", beta=0.1, alpha=0.0)) == pytest.approx(0.85)
    # Mean differences 0 and .5, to be 1 / (2 * .5) = 1.
    found = tpo_loss(*MEANS, GOLD, kind="tpo-ipo", beta=0.5, alpha=0.0)
    assert float(found) == pytest.approx((1.0 + 0.25) / 2)
    smoothed = tpo_loss(CHOSEN, REJECTED, GOLD, beta=1.0, alpha=0.0, label_smoothing=0.1)
    z = torch.tensor([4.0, -1.0])
    expected = (-0.9 * torch.sigmoid(z).log() - 0.1 * torch.sigmoid(-z).log()).mean()
    assert float(smoothed) == pytest.approx(float(expected), abs=1e-6)


@given(st.floats(-20, 0), st.floats(-20, 0), st.floats(0.01, 3), st.floats(0, 3))
def test_the_margin_is_in_units_of_reward(chosen: float, rejected: float, beta: float, gamma: float) -> None:
    """A margin of gamma is a difference that is gamma / beta larger, whatever beta; TPO has none."""
    pair = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
    shifted = pair[0] - gamma / beta
    with_margin = tpo_loss(*pair, torch.zeros(()), kind="tpo-l", beta=beta, gamma=gamma)
    without = tpo_loss(shifted, pair[1], torch.zeros(()), kind="tpo-l", beta=beta, gamma=0.0)
    assert float(with_margin) == pytest.approx(float(without), abs=1e-6)
    plain = tpo_loss(*pair, torch.zeros(()), beta=beta, gamma=gamma)
    assert float(plain) == pytest.approx(float(tpo_loss(*pair, torch.zeros(()), beta=beta, gamma=0.0)))


@pytest.fixture
def data(tiny: Any) -> Any:
    return TPO().prepare(from_records(TRIPLES, tiny[1], answers=ANSWERS))


def by_hand(model: Any, data: Any, method: TPO) -> float:
    """The loss, row by row, from the tokens' log-probabilities."""
    logps = [
        row[mask].tolist() for row, mask in zip(token_logps(model, data).detach(), data.response_mask, strict=True)
    ]
    preference, gold = [], []
    for place in range(0, len(data), 3):
        reduce = (lambda x: sum(x) / len(x)) if method.kind in ("tpo-l", "tpo-ipo") else sum
        chosen, rejected = (torch.tensor([reduce(logps[place + k])]) for k in (1, 2))
        preference.append(
            float(
                tpo_loss(
                    chosen, rejected, torch.zeros(()), kind=method.kind, beta=method.beta, gamma=method.gamma, alpha=0.0
                )
            )
        )
        gold.append(logps[place])
    tokens = sum(len(row) for row in gold) if method.gold_mean == "token" else len(gold)
    return sum(preference) / len(preference) - method.alpha * sum(map(sum, gold)) / tokens


@pytest.mark.parametrize(
    "method",
    [
        TPO(),
        TPO(gold_mean="answer"),
        TPO(alpha=0.0),
        TPO(kind="tpo-l", beta=2.0, gamma=1.6, alpha=0.05),
        TPO(kind="tpo-hinge", beta=0.1),
        TPO(kind="tpo-ipo", beta=0.5),
    ],
    ids=lambda method: f"{method.kind}-{method.gold_mean}-{method.alpha}",
)
def test_a_step_in_parts_is_the_step_and_is_what_the_equation_says(tiny: Any, data: Any, method: TPO) -> None:
    model, _ = tiny
    whole = method.loss(model, data, data)
    assert float(whole.value.detach()) == pytest.approx(by_hand(model, data, method), abs=1e-4)
    parts = [float(method.loss(model, data.select(p), data).value.detach()) for p in (slice(0, 3), slice(3, 12))]
    assert sum(parts) == pytest.approx(float(whole.value.detach()), abs=1e-5)
    assert ("gold_logp" in whole.metrics) == (method.alpha > 0)
    margin = whole.metrics["chosen_reward"] - whole.metrics["rejected_reward"]
    assert float(whole.metrics["margin"]) == pytest.approx(float(margin), abs=1e-6)


def test_the_released_code_s_mean_is_that_of_each_part(tiny: Any) -> None:
    """Gold answers of different lengths: a mean of micro-batches' means is not the mean over the step's tokens."""
    records = [{**TRIPLES[0], "reference": "3"}, TRIPLES[1]]
    data = from_records(records, tiny[1], answers=ANSWERS)
    method, model = TPO(), tiny[0]
    parts = [data.select(slice(0, 3)), data.select(slice(3, 6))]
    by_part = sum(float(method.loss(model, part, part).value.detach()) for part in parts) / 2
    of_step = float(method.loss(model, data, data).value.detach())
    assert by_part != pytest.approx(of_step, abs=1e-4)


def test_without_alpha_gold_answers_are_not_read(tiny: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = tpo.token_logps
    monkeypatch.setattr(tpo, "token_logps", lambda model, batch: (read.append(len(batch)), real(model, batch))[1])
    TPO(alpha=0.0).loss(tiny[0], data, data)
    TPO().loss(tiny[0], data, data)
    assert read == [8, 12]


def test_a_gold_answer_without_tokens_has_no_loss(tiny: Any, data: Any) -> None:
    spoken = data.response_mask.clone()
    spoken[0::3] = False
    empty = type(data)(data.input_ids, data.attention_mask, spoken, data.columns)
    value = TPO().loss(tiny[0], empty, empty).value.detach()
    assert float(value) == pytest.approx(float(TPO(alpha=0.0).loss(tiny[0], data, data).value.detach()), abs=1e-6)


@pytest.mark.parametrize(("kind", "beta"), [("tpo", 0.1), ("tpo-l", 2.0), ("tpo-hinge", 0.1), ("tpo-ipo", 0.2)])
def test_one_run_learns_gold_answers_and_preferences(
    tiny: Any, data: Any, tmp_path: Path, kind: Any, beta: float
) -> None:
    model, _ = tiny
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        budget = Training(learning_rate=3e-3, batch_size=12, micro_batch_size=6, epochs=20)
        train(model, TPO(kind=kind, beta=beta), data, run, budget)
        rows = read_metrics(run.directory)
    assert rows[-1]["gold_logp"] > rows[0]["gold_logp"] + 1
    assert rows[-1]["margin"] > rows[0]["margin"]
    assert rows[-1]["accuracy"] == 1.0


def scored(*scores: float) -> dict[str, Any]:
    return {"prompt": "what", "responses": [f"r{n}" for n in range(len(scores))], "scores": list(scores)}


def test_triples_from_scored_responses(caplog: pytest.LogCaptureFixture) -> None:
    record = scored(2.0, 9.0, 5.0, 7.0, 1.0)
    assert triples_from_scores([record]) == [{"prompt": "what", "reference": "r1", "chosen": "r3", "rejected": "r4"}]
    third = triples_from_scores([record], chosen_rank=3, rejected_rank=4)[0]
    assert (third["chosen"], third["rejected"]) == ("r2", "r0")
    # Of equal scores the first given ranks higher; a chosen answer must score more than the rejected one.
    assert triples_from_scores([scored(5.0, 5.0, 1.0)])[0]["reference"] == "r0"
    kept = triples_from_scores([record, scored(3.0, 1.0, 1.0), scored(2.0, 1.0)])
    assert len(kept) == 1
    assert "2 of 3 records have too few or equally good responses" in caplog.text


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=6, unique=True))
def test_a_triple_is_in_the_order_of_its_scores(scores: list[float]) -> None:
    triple = triples_from_scores([scored(*scores)])[0]
    gold, chosen, rejected = (scores[int(triple[name][1:])] for name in ANSWERS)
    assert gold == max(scores) > chosen > rejected == min(scores)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({**scored(1.0, 2.0, 3.0), "scores": [1.0]}, "3 responses and 1 scores"),
        (scored(1.0, float("nan"), 3.0), "has the score nan"),
        ({**scored(1.0, 2.0, 3.0), "scores": [1.0, "2", 3.0]}, "has the score '2'"),
        (scored(1.0, 2.0), "no triple can be made of 1 records"),
    ],
)
def test_scores_that_make_no_triple_are_named(record: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        triples_from_scores([record])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "tpol"}, "did you mean 'tpo-l'"),
        ({"gold_mean": "sum"}, "gold_mean must be token or answer"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in"),
        ({"chosen_rank": 1}, "the best response is the gold answer"),
        ({"rejected_rank": 2}, "rejected_rank must be above chosen_rank 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        TPO(**settings)


def test_data_that_are_no_triples_are_refused(tiny: Any) -> None:
    pairs = from_records(TRIPLES, tiny[1])
    with pytest.raises(InputError, match="learns from triples"):
        TPO().prepare(pairs.select(slice(0, 4)))
    mixed_up = from_records(TRIPLES, tiny[1], answers=("chosen", "reference", "rejected"))
    with pytest.raises(InputError, match="order reference, chosen, rejected"):
        TPO().prepare(mixed_up)


def test_gold_answers_that_are_the_chosen_ones_are_said(caplog: pytest.LogCaptureFixture) -> None:
    TPO().triples([TRIPLES[0], {**TRIPLES[1], "reference": TRIPLES[1]["chosen"]}])
    assert "in 1 of 2 triples the gold answer is the chosen one" in caplog.text


def test_dropout_is_switched_off() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    without_dropout(model)
    x = torch.ones(4, 2)
    assert torch.equal(model(x), model[0](x))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", "tpo", *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_command_on_triples_and_on_scored_responses(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32"]
    budget = ["--learning-rate", "0.003", "--epochs", "5", "--batch-size", "12", "--micro-batch-size", "6", "--json"]
    write_jsonl(tmp_path / "triples.jsonl", TRIPLES)
    rows = [
        {"prompt": t["prompt"], "responses": [t["rejected"], t["reference"], t["chosen"]], "scores": [1, 3, 2]}
        for t in TRIPLES
    ]
    write_jsonl(tmp_path / "scored.jsonl", rows)
    tables = []
    for name in ("triples", "scored"):
        assert cli.main(["run", "tpo", *common, *budget, "--data", f"{name}.jsonl", "--out", name]) == 0
        tables.append(json.loads(capsys.readouterr().out)["table"])
    before, after = tables[0]
    assert tables[1] == tables[0], "the scores name the same triples"
    gold, rejected = (f"log-probability of {kind} answers" for kind in ("gold", "rejected"))
    assert after[gold] > before[gold]
    assert after[gold] - after[rejected] > before[gold] - before[rejected]
    assert (tmp_path / "triples/model/model.safetensors").exists()
    write_jsonl(tmp_path / "pairs.jsonl", [{k: v for k, v in t.items() if k != "reference"} for t in TRIPLES])
    assert "pairs.jsonl has no column 'reference'" in refused(capsys, *common, "--data", "pairs.jsonl", "--out", "c")
    write_jsonl(tmp_path / "unscored.jsonl", [{"prompt": "what", "responses": ["a", "b", "c"]}])
    assert "no column 'scores'" in refused(capsys, *common, "--data", "unscored.jsonl", "--out", "d")


def test_the_command_takes_triples_of_its_own_where_no_data_are_given(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--limit", "9", "--problems", "4", "--max-new-tokens", "4", "--device", "cpu", "--json"]
    assert cli.main(["run", "tpo", "--model", str(model_folder), *small]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert [row["model"] for row in table] == ["before", "after"]
    assert all("accuracy" in row and "log-probability of gold answers" in row for row in table)
