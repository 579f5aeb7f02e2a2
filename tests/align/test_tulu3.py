"""TULU 3: its worked numbers, the mix and the cleaning of data, and its stages by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty import cli
from thrifty.align.curation import decontaminated, mixed, mixes, rated_pairs
from thrifty.align.dpo import pair_losses
from thrifty.align.recipe import named_files, user_text
from thrifty.align.sft import SFT
from thrifty.align.tulu3 import Tulu3
from thrifty.core.errors import InputError
from thrifty.data.readers import read, write_jsonl
from thrifty.lm.load import load_lm
from thrifty.lm.sequences import Sequences, from_rows
from thrifty.reward.answers import last_number
from thrifty.reward.by_row import by_row


def pair(lengths: tuple[int, int], sums: tuple[float, float], reference: tuple[float, float]) -> Any:
    rows = [([1] + [2] * n, [False] + [True] * n) for n in lengths]
    batch = from_rows(rows)
    mask = batch.response_mask.float()
    spread = [(torch.tensor(values)[:, None] / mask.sum(1, keepdim=True)) * mask for values in (sums, reference)]
    return spread[0], batch.with_columns(reference_logps=spread[1])


def test_worked_example_of_the_preference_loss() -> None:
    """Sums (-10, -30) against (-12, -28) over 10 and 40 tokens: margin .25, loss .251929; plain DPO .513015."""
    logps, batch = pair((10, 40), (-10.0, -30.0), (-12.0, -28.0))
    losses, metrics = pair_losses(logps, batch, kind="dpo-norm", beta=5.0)
    assert float(losses) == pytest.approx(0.251929, abs=1e-6)
    assert float(metrics["margin"]) == pytest.approx(5 * 0.25)
    losses, metrics = pair_losses(logps, batch, kind="dpo", beta=0.1)
    assert float(losses) == pytest.approx(0.513015, abs=1e-6)
    assert float(metrics["margin"]) == pytest.approx(0.4)


def test_worked_example_of_the_overlap(tmp_path: Path) -> None:
    """Six of ten tokens lie in shared 4-grams, so the row is dropped at .5 and kept at .6."""
    evaluation = {"animals": ["the quick brown fox jumps over the lazy dog today"]}
    rows = [{"prompt": "we saw the quick brown fox jumps over it"}, {"prompt": "something else altogether it is"}]
    kept = decontaminated(rows, evaluation, "tokens", n=4, threshold=0.5, file=tmp_path / "report.json")
    assert kept == rows[1:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["matches"][0]["score"] == pytest.approx(0.6)
    assert report["found_of"] == {"animals": 1.0}
    assert decontaminated(rows, evaluation, "tokens", n=4, threshold=0.6) == rows
    assert decontaminated(rows, evaluation, "ngram", n=5) == rows[1:]
    assert decontaminated(rows, evaluation, "ngram", n=7) == rows
    assert decontaminated(rows, evaluation, "none") == rows
    with pytest.raises(InputError, match="all 1 rows hold an evaluation problem"):
        decontaminated(rows[:1], evaluation, "tokens", n=4)


def test_only_what_the_user_says_is_compared() -> None:
    turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "no"}]
    assert user_text({"messages": [*turns, {"role": "user", "content": "is"}]}) == "what\nis"
    with pytest.raises(InputError, match="no text to be compared"):
        user_text({"prompt": [1, 2]})


def test_worked_examples_of_the_verifier() -> None:
    said = ["So 1,200 + 34 = 1,234.", "18.00", "x is -3", "x is -3"]
    assert last_number(said[:3], ["1234", "18", "-3"]) == [1, 0, 1]
    assert last_number(said[3:], ["-3"], signed=False) == [0], "as in the release"


def test_rows_may_name_their_verifiers() -> None:
    reward = by_row(lambda completions: [0.5] * len(completions))
    names = ["exact", None, "number"]
    found = reward(["p"] * 3, ["Yes.", "no", "it is 4"], verifier=names, answer=["yes", "", "4"])
    assert found == [1, 0.5, 1]
    with pytest.raises(InputError, match="give --reward"):
        by_row(None)(["p"], ["c"])


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 3.0), st.integers(0, 5))
def test_a_mix_takes_each_source_as_often_as_its_weight_says(a: int, b: int, weight: float, seed: int) -> None:
    parts = {"a": [{"prompt": f"a{n}"} for n in range(a)], "b": [{"prompt": f"b{n}"} for n in range(b)]}
    found = mixed(parts, {"a": weight, "b": 1.0}, seed)
    counts = [sum(row is other for other in found) for row in parts["a"]]
    assert sum(counts) == round(weight * a)
    assert max(counts) - min(counts) <= 1
    assert [row for row in found if row["prompt"][0] == "b"] == parts["b"]


def test_mixes_are_read() -> None:
    assert mixes("a.jsonl=0.5, b.jsonl; a.jsonl") == [{"a.jsonl": 0.5, "b.jsonl": 1.0}, {"a.jsonl": 1.0}]
    for wrong, said in (("a=much", "'much' is no number"), ("a;;b", "a candidate without a file")):
        with pytest.raises(InputError, match=said):
            mixes(wrong)
    with pytest.raises(InputError, match="must be above 0"):
        mixed({"a": [{}]}, {"a": 0.0}, 0)
    assert named_files("x/gsm.jsonl,other=y.csv", "unseen") == {"gsm": "x/gsm.jsonl", "other": "y.csv"}
    with pytest.raises(InputError, match="names 'a' twice"):
        named_files("a.csv,x/a.csv", "unseen")


def test_the_best_of_rated_answers_is_chosen_and_a_worse_one_rejected() -> None:
    answers = [["a", "b", "c"], ["d", "e"]]
    pairs = rated_pairs(["p", "q"], answers, [[[5, 1], [4, 4], [1, 1]], [2, 2]], seed=0)
    assert len(pairs) == 1, "answers that are all as good make no pair"
    assert (pairs[0]["chosen"], pairs[0]["chosen_rating"]) == ("b", 4)
    rejected = {rated_pairs(["p"], answers[:1], [[3, 4, 1]], seed)[0]["rejected"] for seed in range(20)}
    assert rejected == {"a", "c"}
    with pytest.raises(InputError, match="3 answers with 1 ratings"):
        rated_pairs(["p"], answers[:1], [[1]], 0)


def test_the_sum_over_a_step_does_not_depend_on_its_parts(tiny: Any) -> None:
    model, _ = tiny
    rows = [([5, 6] + [7] * n, [False] * 2 + [True] * n) for n in (1, 4, 2)]
    data = SFT().prepare(from_rows(rows))

    def loss(objective: SFT, part: Sequences) -> float:
        return float(objective.loss(model, part, data).value.detach())

    tokens = int(data.response_mask.sum())
    whole = loss(SFT(reduction="sum"), data)
    assert whole == pytest.approx(tokens * loss(SFT(), data), rel=1e-5)
    parts = [loss(SFT(reduction="sum"), data.select(rows).trim()) for rows in ([0], [1, 2])]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_wrong_settings_are_said() -> None:
    for wrong, said in (
        ({"preference_beta": 0.0}, "beta must be above 0"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"reward_model_multiplier": 1.0}, "give --reward-model"),
    ):
        with pytest.raises(InputError, match=said):
            Tulu3(**wrong)  # type: ignore[arg-type]


PROBLEMS = [{"prompt": f"what is {a} plus {b}", "answer": str(a + b)} for a in (1, 2, 3) for b in (1, 2, 4)]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("dev.jsonl", PROBLEMS[:2])
    write_jsonl("new.jsonl", PROBLEMS[2:3])
    train = [{**row, "completion": f"the sum is {row['answer']}"} for row in PROBLEMS[3:]]
    write_jsonl("sft.jsonl", [*train, {**train[0], "prompt": PROBLEMS[0]["prompt"]}])
    write_jsonl("dogs.jsonl", [{"prompt": "what is the dog", "completion": "the dog"}] * 4)
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "dog cat"} for row in train]
    write_jsonl("pairs.jsonl", pairs)
    write_jsonl("rlvr.jsonl", [{**row, "verifier": "regex:.*dog.*"} for row in PROBLEMS[3:]])
    return tmp_path


def run(model_folder: Path, *given: str) -> int:
    common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "4"]
    short = ["--batch-size", "4", "--micro-batch-size", "4", "--prompts-per-rollout", "3", "--ngram-size", "4"]
    return cli.main(["run", "tulu3", *common, *short, "--reward", "number", "--learning-rate", "0.003", *given])


EVALUATIONS = ["--development", "dev.jsonl", "--unseen", "hidden=new.jsonl"]
ALL = ["--sft-data", "sft.jsonl", "--preference-data", "pairs.jsonl", "--rlvr-data", "rlvr.jsonl", *EVALUATIONS]


def test_the_command_runs_all_stages_and_one_by_itself(model_folder: Path, data: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert run(model_folder, *ALL, "--json", "--out", "all") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in summary["table"]] == ["start", "sft", "preference", "rlvr"]
    assert all({"dev", "unseen hidden"} <= set(row) for row in summary["table"])
    report = json.loads(Path("all/decontamination-sft-1.json").read_text())
    assert report["dropped"] == 1, "the row that asks a development problem"
    assert report["matches"][0]["evaluation"] == "dev"
    logs = [json.loads(line) for line in Path("all/rlvr/metrics.jsonl").read_text().splitlines()]
    assert len(logs) == 2 * 4  # two rollouts of three prompts, four passes over each
    assert {"reward", "value_error", "critic_gradient_norm"} <= set(logs[0])
    assert Path("all/preference/reward-model.safetensors").exists()
    models = {name: load_lm(data / "all" / name / "model")[0] for name in ("sft", "preference", "rlvr")}
    last = load_lm(data / "all/model")[0]
    weights = list(last.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, models["rlvr"].parameters(), strict=True))
    # The last stage by itself, from the model of the stage before, does the same.
    only = ["--stage", "rlvr", "--rlvr-data", "rlvr.jsonl", *EVALUATIONS]
    assert run(model_folder, *only, "--earlier", "all", "--json", "--out", "only") == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert [row["model"] for row in table] == ["preference", "rlvr"], "what it starts from, and itself"
    again = load_lm(data / "only/model")[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, again.parameters(), strict=True))
    assert not Path("only/sft").exists()


def test_a_run_that_ends_between_stages_goes_on_with_the_next(
    model_folder: Path, data: Path, monkeypatch: Any, capsys: Any
) -> None:
    assert run(model_folder, *ALL, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr("thrifty.align.tulu3.PPO.prepare", lambda *_: 1 / 0)
        assert run(model_folder, *ALL, "--out", "broken") == 1
    trained = Path("broken/preference/model/model.safetensors").stat().st_mtime_ns
    assert run(model_folder, *ALL, "--out", "broken") == 0
    assert Path("broken/preference/model/model.safetensors").stat().st_mtime_ns == trained
    one, other = (load_lm(data / name / "model")[0].parameters() for name in ("whole", "broken"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_mix_that_is_best_on_development_problems_is_kept(model_folder: Path, data: Path, capsys: Any) -> None:
    write_jsonl("easy.jsonl", [{"prompt": "the dog", "answer": "dog", "verifier": "regex:the dog.*"}])
    candidates = ["--sft-data", "sft.jsonl; dogs.jsonl=4.0", "--stage", "sft", "--development", "easy.jsonl"]
    assert run(model_folder, *candidates, "--epochs", "12", "--out", "mix") == 0
    scores = [json.loads(Path(f"mix/sft-mix-{n}/development.json").read_text())["easy"] for n in (1, 2)]
    assert scores == [[0, 1], [1, 1]]
    kept, best = (load_lm(data / "mix" / name / "model")[0].parameters() for name in ("sft", "sft-mix-2"))
    assert all(torch.equal(a, b) for a, b in zip(kept, best, strict=True))
    capsys.readouterr()
    assert run(model_folder, "--sft-data", "sft.jsonl;dogs.jsonl", "--out", "blind") == 2
    assert "give --development, or one mix" in capsys.readouterr().err


def test_pairs_are_made_of_answers_that_are_rated(model_folder: Path, data: Path, capsys: Any) -> None:
    asked = [{**row, "answers": [f"the sum is {row['answer']}"]} for row in PROBLEMS[3:]]
    rated = [{"prompt": "what is dog", "answers": ["dog", "cat"], "ratings": [1, 2]}]
    write_jsonl("asked.jsonl", asked)
    write_jsonl("rated.jsonl", rated)
    given = ["--preference-data", "asked.jsonl,rated.jsonl", "--stage", "preference", "--preference-samples", "3"]
    assert run(model_folder, *given, "--out", "pairs") == 0
    pairs = [dict(row) for row in read("pairs/preference/pairs.jsonl")]
    assert len(pairs) == len(asked) + 1
    assert {"chosen": "cat", "rejected": "dog"}.items() <= pairs[0].items()
    assert [row["chosen"] for row in pairs[1:]] == [row["answers"][0] for row in asked], "the only right one"
    capsys.readouterr()
    given = ["--preference-data", "asked.jsonl", "--judge", "regex:.*,regex:.*"]
    assert run(model_folder, *given, "--out", "alike") == 2
    assert "rated alike" in capsys.readouterr().err


def test_a_reward_model_may_be_given(model_folder: Path, data: Path, capsys: Any) -> None:
    from transformers import LlamaForSequenceClassification

    model, tokenizer = load_lm(model_folder)
    model.config.num_labels = 1
    LlamaForSequenceClassification(model.config).save_pretrained("scorer")
    tokenizer.save_pretrained("scorer")
    given = ["--rlvr-data", "rlvr.jsonl", "--reward-model", "scorer", "--reward-model-multiplier", "0.5"]
    assert run(model_folder, *given, "--out", "scored") == 0
    assert not Path("scored/preference").exists()


def test_wrong_input_is_said(model_folder: Path, data: Path, capsys: Any) -> None:
    capsys.readouterr()
    for options, said in (
        (["--stage", "rlvr", "--sft-data", "sft.jsonl"], "no data for the stage rlvr: give --rlvr-data"),
        (["--rlvr-data", "sft.jsonl,pairs.jsonl"], "pairs.jsonl has no column 'answer'"),
        (["--rlvr-data", "rlvr.jsonl", "--stage", "rlvr", "--earlier", "nowhere"], "nowhere holds no model of the"),
        (["--sft-data", "sft.jsonl", "--development", "pairs.jsonl"], "pairs.jsonl has no column 'answer'"),
    ):
        assert run(model_folder, *options, "--out", "wrong", "--overwrite") == 2, options
        assert said in capsys.readouterr().err
