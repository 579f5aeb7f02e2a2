"""Light-R1: its worked numbers, the filters, pairs and merge, and its stages by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty import cli
from thrifty.align.light_r1 import LightR1
from thrifty.align.light_r1_data import (
    Curriculum,
    curriculum,
    semi_on_policy_pairs,
    verified,
    without_special_tokens,
)
from thrifty.align.light_r1_questions import balanced, read_teacher
from thrifty.align.light_r1_stages import grpo
from thrifty.align.merging import ties, ties_merge, trimmed
from thrifty.align.policy_gradient import clipped_policy_loss
from thrifty.align.preference import preference_loss
from thrifty.core.errors import InputError
from thrifty.data.chains import Chains, operations
from thrifty.data.decontaminate import clean, ngrams
from thrifty.data.readers import read, write_jsonl
from thrifty.lm.load import load_lm
from thrifty.lm.sequences import from_rows
from thrifty.reward.answers import exact_answer
from thrifty.reward.lengths import cosine_length
from thrifty.select.rank import difficulty_band


def test_worked_examples() -> None:
    sums = (torch.tensor([-10.0]), torch.tensor([-30.0]), torch.tensor([-12.0]), torch.tensor([-28.0]))
    assert float(preference_loss(*sums, kind="nca", beta=0.3)) == pytest.approx(1.174976, abs=1e-6)
    assert clean("Find x if 3x + 5 = 20.") == clean("find X, if 7x + 9 = 41!") == "findxifx"
    assert [" ".join(gram) for gram in ngrams(["a", "b", "c", "d", "e"], 3)] == ["a b c", "b c d", "c d e"]
    rates = torch.tensor([0, 0.125, 0.25, 0.5, 0.625, 0.75, 1])
    assert rates[difficulty_band(rates, *LightR1().band)].tolist() == [0.25, 0.5, 0.625]
    advantage, ratio = torch.tensor([1.0, 1, -1, -1, -1]), torch.tensor([1.5, 0.5, 0.5, 1.5, 5])
    losses = clipped_policy_loss(ratio, advantage, 0.2, dual=grpo(LightR1()).dual_clip)
    torch.testing.assert_close(losses, torch.tensor([-1.2, -0.5, 0.8, 1.5, 3.0]))


def test_a_short_right_answer_earns_no_more_than_the_limit() -> None:
    reward = cosine_length(exact_answer, 4, right=(1.0, 0.5), wrong=(-1.0, -0.5), most=0.75)
    said, ids = ["a", "a", "b", "a"], [[1], [1, 1, 1], [1], [1] * 4]
    found = reward(["p"] * 4, said, completion_ids=ids, answer=["a"] * 4)
    # cos(pi / 4) = .7071: the cosine itself gives .9268 and .5732, and -.9268 for the short wrong one.
    assert found == pytest.approx([0.75, 0.5732233, -0.9267767, -1.0], abs=1e-6)
    plain = cosine_length(exact_answer, 4, right=(1.0, 0.5), wrong=(-1.0, -0.5))
    assert plain(["p"], ["a"], completion_ids=[[1]], answer=["a"]) == pytest.approx([0.9267767], abs=1e-6)


def test_ties_by_hand() -> None:
    """Of three changes the sum's sign is elected entry by entry, and those that agree are averaged."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    changes = [
        torch.tensor([4.0, -2.0, 0.5, 0.1]),
        torch.tensor([2.0, 3.0, -1.0, 0.0]),
        torch.tensor([-1.0, 1.5, 0.2, 0]),
    ]
    models = [base + change for change in changes]
    merged = ties(base, models, density=1.0)
    torch.testing.assert_close(merged, 1 + torch.tensor([3.0, 2.25, -1.0, 0.1]))
    assert trimmed(changes[0], 0.5).tolist() == [4.0, -2.0, 0.0, 0.0]
    # Trimmed to two entries each: (4, -2, 0, 0), (2, 3, 0, 0), (-1, 1.5, 0, 0).
    merged = ties(base, models, density=0.5, scale=0.5)
    torch.testing.assert_close(merged, 1 + 0.5 * torch.tensor([3.0, 2.25, 0.0, 0.0]))
    # Weights: the first model's -2 against 3 and 1.5 wins with weight 4; the mean is weighted too.
    merged = ties(base, models, density=1.0, weights=[4.0, 1.0, 1.0])
    torch.testing.assert_close(merged, 1 + torch.tensor([18 / 5, -2.0, (2.0 + 0.2) / 5, 0.1]))


@given(st.integers(0, 50), st.floats(0.1, 1.0), st.floats(-2, 2))
def test_merging_one_model_with_itself_changes_nothing_but_the_trim(seed: int, density: float, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    base, model = torch.randn(3, 7, generator=draw), torch.randn(3, 7, generator=draw)
    expected = base + scale * trimmed(model - base, density)
    torch.testing.assert_close(ties(base, [model, model], density=density, scale=scale), expected)
    assert int((trimmed(model - base, density) != 0).sum()) == int(density * 21)


def test_state_dicts_are_merged_and_must_fit() -> None:
    base = {"w": torch.zeros(2), "n": torch.tensor([3])}
    merged = ties_merge(base, [{"w": torch.tensor([2.0, 0]), "n": torch.tensor([3])}], density=1.0)
    assert merged["w"].tolist() == [2, 0]
    assert merged["n"] is not base["n"]
    with pytest.raises(InputError, match="model 1 can't be merged with the base: w"):
        ties_merge(base, [{"w": torch.zeros(3), "n": base["n"]}])
    for wrong in ({"density": 0.0}, {"weights": [1.0, 1.0]}, {"weights": [0.0]}):
        with pytest.raises(InputError):
            ties(torch.zeros(2), [torch.ones(2)], **wrong)  # type: ignore[arg-type]


QUESTIONS = [{"prompt": f"p{n}", "answer": str(n)} for n in range(5)]
TEACHER = [["0", "0"], ["1", "x"], ["x", "x"], ["x", "3"], ["4", "4"]]


def filtered(weak: list[float], seed: int = 0, **limits: float) -> Curriculum:
    right = verified(QUESTIONS, TEACHER, exact_answer)
    assert right == [[True, True], [True, False], [False, False], [False, True], [True, True]]
    limits = {"weak_rate": 0.75, "teacher_rate": 0.8, **limits}
    return curriculum(QUESTIONS, torch.tensor(weak), TEACHER, right, seed=seed, **limits)


def test_two_filters_by_two_models() -> None:
    found = filtered([0.0, 0.5, 0.0, 0.75, 0.0])
    assert [row["prompt"] for row in found.first] == ["p0", "p1", "p4"], "hard for the weak model, and answered rightly"
    assert [row["prompt"] for row in found.second] == ["p1"], "neither always nor never right"
    assert found.report == {
        "questions": 5,
        "hard for the weak model": 4,
        "with a right answer": 3,
        "hard for the teacher": 1,
    }
    assert found.first[1] == QUESTIONS[1] | {"weak_pass_rate": 0.5, "teacher_pass_rate": 0.5, "completion": "1"}
    assert not filtered([0.0] * 5, teacher_rate=0.5).second
    with pytest.raises(InputError, match="0 are hard for the weak model"):
        filtered([1.0] * 5)


def test_one_of_several_right_answers_is_drawn() -> None:
    answers, right = [["a", "b", "c"]], [[True, True, False]]
    limits = {"weak_rate": 1.0, "teacher_rate": 1.0}
    drawn = {
        curriculum(QUESTIONS[:1], torch.zeros(1), answers, right, **limits, seed=seed).first[0]["completion"]
        for seed in range(20)
    }
    assert drawn == {"a", "b"}


def test_pairs_are_semi_on_policy() -> None:
    questions = [{"prompt": "p", "answers": ["t1", "t2"], "right": [False, True]}] * 2
    pairs = semi_on_policy_pairs(questions, [["m1", "m2"], ["m3"]], [[True, False], [True]], 0)
    assert pairs == [{"prompt": "p", "chosen": "t2", "rejected": "m2"}], "own answers that are right make no pair"


def test_special_tokens_of_rejected_answers_do_not_count() -> None:
    rows = [([5, 7, 1], [False, True, True]), ([5, 8, 9, 1], [False, True, True, True])]
    pairs = from_rows(rows, row_columns={"chosen": [True, False], "group": [0, 0]})
    found = without_special_tokens(pairs, [1, 9])
    assert found.response_mask.tolist() == [[False, True, True, False], [False, True, False, False]]


def test_categories_are_cut_to_a_size() -> None:
    rows = [{"prompt": str(n), "category": "ab"[n > 3]} for n in range(6)]
    kept = balanced(rows, 2, seed=0)
    assert [row["category"] for row in kept] == ["a", "a", "b", "b"]
    assert balanced(rows, None, 0) == rows
    assert balanced([{"prompt": "x"}], 1, 0) == [{"prompt": "x"}]


def test_chains_are_taught_step_by_step() -> None:
    task = Chains()
    problems = task.problems(60, 1)
    assert len({problem.id for problem in problems}) == 60
    assert not {problem.id for problem in problems} & {problem.id for problem in task.problems(20, 1, "test")}
    for problem in problems:
        said = task.solution(problem)
        assert task.score(problem, said) == 1
        assert said.count("=") == operations(problem)
        assert eval(problem.id) == int(problem.answer) >= 0
    draw = np.random.default_rng(0)
    hard = [problem for problem in problems if operations(problem) == 4]
    wrong = [task.score(problem, task.solution(problem, 0.3, draw)) == 0 for problem in hard * 20]
    assert 0.5 < sum(wrong) / len(wrong) < 0.8  # 1 - .7^4 = .76, but a slip below 0 is none
    assert Chains(style="short").solution(problems[0]).count(",") == operations(problems[0]) - 1
    for settings in ({"least": 0}, {"least": 3, "most": 2}, {"largest": 1}):
        with pytest.raises(InputError, match="expected 1 <= least"):
            Chains(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="different chains were found, 500 were asked for"):
        Chains(1, 1).problems(500, 0)


def test_wrong_settings_are_said() -> None:
    for wrong, said in (
        ({"weak_samples": 0}, "weak_samples must be at least 1"),
        ({"teacher_rate": 0.0}, "teacher_rate must be in"),
        ({"band": (0.7, 0.2)}, "band must be 0 <= low <= high <= 1"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
    ):
        with pytest.raises(InputError, match=said):
            LightR1(**wrong)  # type: ignore[arg-type]


ASKED = [{"prompt": f"what is {a} plus {b}", "answer": str(a + b)} for a in (1, 2, 3) for b in (1, 2, 4)]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("asked.jsonl", ASKED)
    answers = [[f"the sum is {row['answer']}", "the dog" if n % 3 == 0 else "cat"] for n, row in enumerate(ASKED)]
    rows = [{"prompt": row["prompt"], "answers": said} for row, said in zip(ASKED, answers, strict=True)]
    write_jsonl("teacher.jsonl", rows)
    write_jsonl("test.jsonl", [{"prompt": "the dog", "answer": "x"}])
    return tmp_path


def run(model_folder: Path, *given: str) -> int:
    common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "5"]
    short = ["--batch-size", "4", "--micro-batch-size", "4", "--prompts-per-rollout", "3", "--epochs", "1"]
    mine = ["--data", "asked.jsonl", "--teacher", "teacher.jsonl", "--reward", "regex:.*(dog|sum).*", "--band", "0.01"]
    return cli.main(["run", "light-r1", *common, *short, *mine, "0.99", "--evaluation", "test.jsonl", *given])


def test_the_command_runs_all_stages_and_one_by_itself(model_folder: Path, data: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert run(model_folder, "--json", "--out", "all") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in summary["table"]] == ["start", "sft1", "sft2", "preference", "merge", "rl"]
    left = summary["questions"]
    assert left["questions"] >= left["hard for the weak model"] >= left["with a right answer"] > 0
    first, second = (read(f"all/data/stage{n}.jsonl") for n in (1, 2))
    assert len(first) == left["with a right answer"]
    assert {row["teacher_pass_rate"] for row in second} == {0.5}
    for row in read("all/pairs.jsonl"):
        assert "dog" in row["chosen"] or "sum" in row["chosen"]
        assert not {"dog", "sum"} & set(row["rejected"].split())
    assert all(0 < row["pass_rate"] < 1 for row in read("all/rl/prompts.jsonl"))
    assert Path("all/preference-2/model").is_dir()
    base, *models = (
        load_lm(folder)[0].state_dict()
        for folder in (
            model_folder,
            *(data / "all" / name / "model" for name in ("sft2", "preference", "preference-2")),
        )
    )
    merged = load_lm(data / "all/merge/model")[0].state_dict()
    for name, tensor in ties_merge(base, models, density=0.5).items():
        torch.testing.assert_close(merged[name], tensor)
    # The last stage by itself, with data and model of that run, does the same.
    assert run(model_folder, "--stage", "rl", "--earlier", "all", "--json", "--out", "only") == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)["table"]] == ["merge", "rl"]
    one, other = (load_lm(data / name / "model")[0].parameters() for name in ("all", "only"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_filters_by_themselves(model_folder: Path, data: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert run(model_folder, "--stage", "data", "--json", "--out", "filters") == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert table[0]["step"] == "questions"
    report = json.loads(Path("filters/data/decontamination.json").read_text())
    assert report["dropped"] == 0
    assert not Path("filters/sft1").exists()


def test_wrong_input_is_said(model_folder: Path, data: Path, capsys: Any) -> None:
    write_jsonl("strange.jsonl", [{"prompt": "who", "completion": "me"}])
    capsys.readouterr()
    for options, said in (
        (["--teacher", "strange.jsonl"], "no answer to any of the 9 questions"),
        (["--stage", "rl", "--earlier", "nowhere"], "nowhere holds no model of the stage merge"),
        (["--weak-rate", "0.0001", "--weak-samples", "64"], "hard for the weak model"),
        (["--stage", "merge"], "nothing to merge"),
        (["--stage", "rl", "--band", "1.0", "1.0"], "no prompt has a pass rate within 1 to 1"),
    ):
        assert run(model_folder, *options, "--out", "wrong", "--overwrite") == 2, options
        assert said in capsys.readouterr().err
    common = ["--model", str(model_folder), "--data", "asked.jsonl", "--reward", "number", "--out", "mine"]
    assert cli.main(["run", "light-r1", *common]) == 2
    assert "give --teacher FILE" in capsys.readouterr().err
    assert cli.main(["run", "light-r1", "--model", str(model_folder), "--task", "arithmetic", "--out", "mine"]) == 2
    assert "the embedded questions are chains, not arithmetic: give --data" in capsys.readouterr().err
    answers = read_teacher("teacher.jsonl", [*ASKED, {"prompt": "new"}])
    assert answers[0] == ["the sum is 2", "the dog"]
    assert answers[-1] == []
