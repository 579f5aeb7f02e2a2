"""The room's command: embedded data, the user's own files, and what is said of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.reward.reward_clip_delta import ClipDelta
from thrifty.reward.rewarded import step_summary
from thrifty.reward.room import ROOM, Inputs
from thrifty.reward.steps import StepRewards
from thrifty.reward.sums import sums


def run(directory: Path, method: ClipDelta, **inputs: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with Run(directory / "run", device="cpu", overwrite=True) as job:
        summary = ROOM.run(method, Inputs(**inputs), job)
    rows = [json.loads(line) for line in (directory / "run" / "rewards.jsonl").read_text().splitlines()]
    return summary, rows


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_it_runs_with_nothing_but_the_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "reward-clip-delta", "--out", str(tmp_path / "r"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    scores, refined = summary["table"]
    longest = list(scores)[-1]
    assert scores[longest] > scores["mean return"] + 1  # long answers win, which is what the paper mends
    assert refined["mean return"] < 1
    assert refined["std ratio"] < scores["std ratio"]
    assert (tmp_path / "r" / "rewards.jsonl").read_text().count("\n") == summary["rows"] == 400


def test_embedded_sums_are_the_same_each_time_and_hold_all_cases() -> None:
    rows = list(sums(100, seed=1))
    assert rows == list(sums(100, seed=1))
    assert rows != list(sums(100, seed=2))
    assert 0.3 < sum(row["correct"] for row in rows) / 100 < 0.95
    for row in rows:
        steps = row["completion"].split("\n\n")
        assert len(steps) == len(row["step_scores"])
        said = steps[-1].removeprefix("The answer is ").removesuffix(".")
        assert (said == row["answer"]) == bool(row["correct"])
    assert any("as said" in row["completion"] for row in rows)


def test_rewards_of_the_worked_example(tmp_path: Path) -> None:
    rows = [{"step_scores": [0.9, 0.95, 0.4, 0.8], "correct": 1}, {"step_scores": [0.7, 0.2], "correct": False}]
    data = written(tmp_path / "d.jsonl", rows)
    summary, found = run(tmp_path, ClipDelta(threshold=0.85, alpha=1.0), data=data)
    assert found[0]["step_rewards"] == pytest.approx([0, 0.45, -0.45, 0], abs=1e-6)
    assert found[0]["returns"] == pytest.approx([1, 1, 0.55, 1], abs=1e-6)
    assert found[1]["returns"] == pytest.approx([-0.15, 0], abs=1e-6)
    table = summary["table"]
    assert table[0]["mean return"] == pytest.approx((3.05 + 1 + 0.9) / 2)
    assert table[1]["mean return"] == pytest.approx((1 - 0.15) / 2)
    assert table[1]["share of zeros"] == pytest.approx(3 / 6)
    assert table[1]["std ratio"] == pytest.approx(0.075 / 0.5)
    assert table[1]["2 steps"] == pytest.approx(-0.15)
    assert table[1]["4 steps"] == pytest.approx(1)
    assert summary["threshold"] == 0.85


def test_many_numbers_of_steps_share_columns_and_one_kind_of_answer_has_no_ratio() -> None:
    steps = StepRewards.from_lists([[0.5] * n for n in range(1, 11)])
    row = step_summary("x", steps.score, steps, torch.ones(10), alpha=1.0)
    assert [name for name in row if "step" in name] == ["1-3 steps", "4-6 steps", "7-9 steps", "10 steps"]
    assert row["1-3 steps"] == pytest.approx(2.0)
    assert row["std ratio"] is None


def test_csv_and_verifier(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        'prompt,completion,answer,step_scores\nq,it is 4,4,"[0.9, 0.5]"\nq,it is 5,4,"[0.9, 0.5]"\n'
    )
    _, rows = run(tmp_path, ClipDelta(), data=str(tmp_path / "d.csv"), verifier="number", limit=2)
    assert [row["correct"] for row in rows] == [1, 0]
    assert rows[0]["step_scores"] == [0.9, 0.5] or rows[0]["step_scores"] == pytest.approx([0.9, 0.5])


def test_a_process_reward_model_scores_the_steps(tmp_path: Path, build: Callable[..., Any], tokenizer: Any) -> None:
    model = build("LlamaForTokenClassification", num_labels=2)
    model.save_pretrained(tmp_path / "prm")
    tokenizer.save_pretrained(tmp_path / "prm")
    rows = [
        {"prompt": "q", "completion": "a\n\nb", "correct": 1},
        {"prompt": "q", "completion": "a\n\nb", "correct": 0, "truncated": True},
    ]
    rows[0]["truncated"] = False
    data = written(tmp_path / "d.jsonl", rows)
    with Run(tmp_path / "run", device="cpu", dtype="float32") as job:
        ROOM.run(ClipDelta(method="none"), Inputs(data=data, model=str(tmp_path / "prm")), job)
    found = [json.loads(line) for line in (tmp_path / "run" / "rewards.jsonl").read_text().splitlines()]
    ids = torch.tensor([tokenizer("qa\n\nb\n\n")["input_ids"]])
    p = model.eval()(ids).logits.softmax(-1)[0, [2, 4], 1]
    assert found[0]["step_scores"] == pytest.approx(p.tolist(), abs=1e-5)
    assert found[0]["step_rewards"] == pytest.approx(p.tolist(), abs=1e-5)
    assert found[1]["step_rewards"][1] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"step_scores": [0.5]}], "neither correct .* nor answer"),
        ([{"correct": 1}], "no column 'step_scores'"),
        ([{"step_scores": [0.5], "correct": 2}], "row 1 has correct 2, expected 1 or 0"),
        ([{"step_scores": [0.5, None], "correct": 1}], "row 1 has the step score None"),
        ([{"step_scores": [0.5], "correct": 1}, {"step_scores": [], "correct": 1}], r"row 2 has step_scores \[\]"),
        ([{"step_scores": "high", "correct": 1}], "row 1 has step_scores 'high'"),
        ([{"step_scores": [0.5], "correct": 0}], "no response is right"),
        ([{"step_scores": [0.5], "answer": "4"}], "no column 'completion'"),
    ],
)
def test_wrong_rows_are_named(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, ClipDelta(), data=written(tmp_path / "d.jsonl", rows))


def test_inputs_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a model without responses"):
        run(tmp_path, ClipDelta(), model="anything")
    with pytest.raises(InputError, match="limit must be at least 1"):
        Inputs(limit=0)
