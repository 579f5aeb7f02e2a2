"""PURE from columns to advantages, its worth of sampled answers, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thrifty.align.asking import Asker, Sampling
from thrifty.align.equations import EquationSteps, ask_for_steps
from thrifty.align.process_worth import ProcessWorth
from thrifty.align.pure import PURE
from thrifty.align.step_returns import StepReturns
from thrifty.align.training import train
from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run, read_metrics
from thrifty.data.readers import write_jsonl
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences
from thrifty.reward.models import ProcessModel
from thrifty.reward.reward_clip_delta import ClipDelta
from thrifty.reward.step_format import StepFormat
from thrifty.reward.steps import StepRewards

PLAIN = {"kl_reward_coefficient": 0.0, "whiten": False, "longest": 6}


def worked(**columns: Tensor) -> Sequences:
    """The two answers of the worked example after a prompt of two tokens."""
    score = torch.zeros(2, 8)
    score[0, [3, 5, 7]] = torch.tensor([0.8, -0.4, 0.6])
    score[1, [3, 5]] = torch.tensor([0.5, 0.7])
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 6:] = False
    spoken = mask.clone()
    spoken[:, :2] = False
    given = {
        "step_score": score,
        "step_end": score != 0,
        "right": torch.zeros(2),
        "group": torch.zeros(2, dtype=torch.long),
        "finished": torch.ones(2, dtype=torch.bool),
    }
    ids = torch.arange(16).view(2, 8)
    return Sequences(ids, mask, spoken, {**given, **columns})


def test_worked_advantage() -> None:
    found = PURE(**PLAIN).prepare(worked())["advantage"]
    expected = torch.tensor([[0, 0] + [-0.6024] * 4 + [-0.2024] * 2, [0, 0] + [0.7905] * 2 + [0.3501] * 2 + [0, 0]])
    torch.testing.assert_close(found, expected, atol=6e-5, rtol=0)


def test_strict_and_summed_advantages() -> None:
    strict = PURE(mode="strict", **PLAIN).prepare(worked())["advantage"]
    # Returns -0.4 four times and 0.6 twice, against 0.5 twice and 0.7 twice: baselines 2.4 / 6 and -0.4 / 6.
    expected = torch.tensor([[-0.8] * 4 + [0.2] * 2, [0.5666667] * 2 + [0.7666667] * 2 + [0, 0]])
    torch.testing.assert_close(strict[:, 2:], expected)
    summed = PURE(mode="sum", **PLAIN).prepare(worked())["advantage"]
    # Returns 1, 1, 0.2, 0.2, 0.6, 0.6 (3.6 in all) against 1.2, 1.2, 0.7, 0.7 (3.8).
    expected = (
        torch.tensor([[1.0, 1, 0.2, 0.2, 0.6, 0.6], [1.2, 1.2, 0.7, 0.7, 0, 0]]) - torch.tensor([[3.8], [3.6]]) / 6
    )
    expected[1, 4:] = 0
    torch.testing.assert_close(summed[:, 2:], expected)


def test_the_verifier_s_reward_stands_on_the_last_token_and_reaches_all_before() -> None:
    right = worked(right=torch.tensor([0.0, 1.0]))
    only = PURE(reward_mode="vr", verifiable_coefficient=2.0, **PLAIN).prepare(right)["advantage"]
    # Returns of 2 on four tokens: the other answer's baseline is 8 / 6, and its own is 0.
    expected = torch.tensor([[-8 / 6] * 6, [2.0] * 4 + [0, 0]])
    torch.testing.assert_close(only[:, 2:], expected)
    both = PURE(verifiable_coefficient=2.0, **PLAIN).prepare(right)["advantage"]
    steps = PURE(reward_mode="prm", **PLAIN).prepare(right)["advantage"]
    torch.testing.assert_close(both, steps + only)
    torch.testing.assert_close(steps, PURE(**PLAIN).prepare(worked())["advantage"])


@pytest.mark.parametrize(("estimator", "each"), [("k1", 1.0), ("k3", 0.3678794)])
def test_the_divergence_is_taken_off_each_token(estimator: str, each: float) -> None:
    logps = torch.zeros(2, 8)
    behaviour = logps - 1.0
    data = worked(behaviour_logps=behaviour, reference_logps=behaviour - 1.0)
    method = PURE(kl_estimator=estimator, **{**PLAIN, "kl_reward_coefficient": 0.1})  # type: ignore[arg-type]
    found = method.prepare(data)["advantage"] - PURE(**PLAIN).prepare(data)["advantage"]
    # To go: 6, 5, ... tokens of the first, 4, 3, 2, 1 of the second; their baselines are 10 / 6 and 21 / 6.
    expected = torch.tensor([[6.0, 5, 4, 3, 2, 1], [4, 3, 2, 1, 0, 0]]) - torch.tensor([[10.0], [21.0]]) / 6
    expected[1, 4:] = 0
    torch.testing.assert_close(found[:, 2:], -0.1 * each * expected)
    assert method.needs() == {"behaviour_logps", "reference_logps"}
    assert PURE(**PLAIN).needs() == {"behaviour_logps"}


def test_the_main_branch_s_advantage() -> None:
    data = worked(right=torch.tensor([0.0, 1.0]))
    score = data["step_score"].clone()
    score[0, [3, 5, 7]] = torch.tensor([0.3, -0.1, 0.2])
    score[1, [3, 5]] = torch.tensor([0.5, 0.1])
    data = data.with_columns(step_score=score)
    method = PURE(mode="sum", baseline="token", kl_reward_coefficient=0.0, whiten=False)
    # Step rewards 0.15, -0.25, 0.05 and 0.4333, 0.0333 after their baselines; the verifier's -1 and +1.
    expected = torch.tensor([[-1.05, 0, -1.2, 0, -0.95, 0], [1.466667, 0, 1.033333, 0, 0, 0]])
    torch.testing.assert_close(method.prepare(data)["advantage"][:, 2:], expected, atol=1e-5, rtol=0)
    unmasked = replace(method, mask_separators=False).prepare(data)["advantage"][:, 2:]
    expected = torch.tensor([[-1.05, -1.05, -1.2, -1.2, -0.95, -0.95], [1.466667, 1.466667, 1.033333, 1.033333, 0, 0]])
    torch.testing.assert_close(unmasked, expected, atol=1e-5, rtol=0)
    whitened = replace(method, whiten=True).prepare(data)["advantage"]
    chosen = whitened[whitened != 0]
    assert len(chosen) == 5
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-6)
    assert float(chosen.var(correction=0)) == pytest.approx(1, abs=1e-5)


def test_pseudo_positives_are_neither_learnt_nor_compared_with() -> None:
    data = Sequences.cat([worked(right=torch.tensor([0.0, 1.0])), worked(right=torch.tensor([1.0, 0.0]))])
    cut = torch.tensor([True, True, False, True])
    method = PURE(reward_mode="vr", **PLAIN)
    found = method.prepare(data.with_columns(finished=cut))
    assert found["counts"].tolist() == [True, True, False, True]
    # Compared among the three that are left: the right one's four tokens count for the two others.
    torch.testing.assert_close(found["advantage"][:2, 2], torch.tensor([-4 / 12, 1.0]))
    assert (found["advantage"][2] == 0).all()
    kept = PURE(reward_mode="vr", drop_pseudo_positives=False, **PLAIN).prepare(data.with_columns(finished=cut))
    assert kept["counts"].all()
    repeated = replace(data, input_ids=torch.where(torch.arange(4)[:, None] == 1, 5, data.input_ids))
    assert replace(method, repetition_size=2).prepare(repeated)["counts"].tolist() == [True, False, True, True]
    # Whoever is left alone has nothing to be compared with.
    alone = method.prepare(worked(right=torch.ones(2), finished=torch.tensor([True, False])))
    assert not alone["counts"].any()
    assert (alone["advantage"] == 0).all()


def test_an_answer_without_steps_or_to_a_prompt_alone() -> None:
    empty = worked(step_end=torch.zeros(2, 8, dtype=torch.bool))
    assert (PURE(**PLAIN).prepare(empty)["advantage"] == 0).all()
    with pytest.raises(InputError, match="--samples 2 or more"):
        PURE(**PLAIN).prepare(worked(group=torch.tensor([0, 1])))
    with pytest.raises(InputError, match="give longest"):
        PURE(kl_reward_coefficient=0.0).prepare(worked())


def prepared(tiny: Any, method: StepReturns, **columns: Tensor) -> Sequences:
    data = worked(**columns)
    data = replace(data, input_ids=data.input_ids % 20)
    return method.prepare(data)


def test_parts_add_up_to_the_step(tiny: Any) -> None:
    for aggregation in ("token", "sequence"):
        method = PURE(aggregation=aggregation, **PLAIN)  # type: ignore[arg-type]
        whole = prepared(tiny, method)
        together = method.loss(tiny[0], whole, whole).value
        parts = [method.loss(tiny[0], whole.select([row]).trim(), whole).value for row in (0, 1)]
        torch.testing.assert_close(sum(parts), together)
        assert method.teaches(whole).tolist() == [True, True]


def test_an_update_is_skipped_when_the_policy_has_run_away(tiny: Any) -> None:
    method = PURE(largest_ratio=10.0, clip=None, **PLAIN)
    data = prepared(tiny, method)
    logps = token_logps(tiny[0], data).detach()
    for distance, skipped in ((2.0, False), (3.0, True)):
        part = data.with_columns(behaviour_logps=logps - distance)
        found = method.loss(tiny[0], part, part)
        gradient = torch.autograd.grad(found.value, tiny[0].lm_head.weight, allow_unused=True)[0]
        assert bool((gradient == 0).all()) is skipped
        assert float(found.metrics["skipped"]) == skipped
        assert float(found.metrics["ratio"]) == pytest.approx(2.718282**distance, rel=1e-4)


class Words:
    """Scores words as steps: a dog is good, all others are bad."""

    def steps(self, prompts: Any, completions: Any, *, completion_ids: Any = None, **_: Any) -> StepRewards:
        rows = [said.split() for said in completions]
        assert [len(row) for row in rows] == [len([i for i in ids if i > 4]) for ids in completion_ids]
        return StepRewards.from_lists(
            [[0.8 if word == "dog" else -0.8 for word in row] or [0.0] for row in rows],
            [list(range(max(len(row), 1))) for row in rows],
        )


PROMPTS: list[dict[str, Any]] = [
    {"prompt": "what is 1 plus 2", "answer": "3"},
    {"prompt": "what is 2 plus 2"},
    {"prompt": "what is 3 plus 4", "answer": ""},
]


def test_worth_of_sampled_answers(tiny: Any) -> None:
    asked: list[tuple[str, str]] = []

    def right(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        asked.extend(zip(prompts, answer, strict=True))
        return [float(a in said.split()) for a, said in zip(answer, completions, strict=True)]

    class Lines(Words):
        def steps(self, prompts: Any, completions: Any, *, completion_ids: Any = None, **_: Any) -> StepRewards:
            return StepRewards.from_lists([[0.5, -0.25]] * len(completions), [[0, len(i) - 1] for i in completion_ids])

    worth = ProcessWorth(Lines(), right, tiny[1])
    answers = Asker(*tiny, worth, Sampling(samples=3, max_new_tokens=4)).ask(PROMPTS, 0)
    assert asked == [("what is 1 plus 2", "3")] * 3, "only records with an answer are checked"
    assert answers["checked"].tolist() == [True] * 3 + [False] * 6
    assert (answers["right"][3:] == 0).all()
    spoken = answers.response_mask
    first = spoken.int().argmax(1)
    last = first + spoken.sum(1) - 1
    many = last > first
    assert answers["step_score"][many, first[many]].tolist() == [0.5] * int(many.sum())
    assert answers["step_score"][many, last[many]].tolist() == [-0.25] * int(many.sum())
    assert answers["step_end"][many].sum(1).tolist() == [2] * int(many.sum())
    refined = ProcessWorth(Lines(), None, tiny[1], refine=ClipDelta("clip", threshold=0.0).shape)
    again = Asker(*tiny, refined, Sampling(samples=3, max_new_tokens=4)).ask(PROMPTS, 0)
    assert (again["step_score"][many, first[many]] == 0).all()
    nothing = ProcessWorth(None, right, tiny[1])
    bare = Asker(*tiny, nothing, Sampling(samples=3, max_new_tokens=4)).ask(PROMPTS, 0)
    assert (bare["step_score"] == 0).all()
    assert (bare["step_end"].sum(1) == 1).all(), "without separators, an answer is one step"


@pytest.mark.parametrize("updates", [1, 2])
def test_the_policy_learns_good_steps(tiny: Any, tmp_path: Path, updates: int) -> None:
    model, tokenizer = tiny
    method = PURE(reward_mode="prm", longest=4, mode="strict")
    sampling = Sampling(samples=8, prompts_per_rollout=3, max_new_tokens=4, updates_per_rollout=updates)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        training = replace(method.training, learning_rate=1e-2, epochs=20)
        worth = ProcessWorth(Words(), None, tokenizer)
        train(model, method, PROMPTS, run, training, tokenizer=tokenizer, reward=worth, sampling=sampling)
        rows = read_metrics(run.directory)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.3
    assert {"steps", "verified", "clipped"} <= set(rows[0])
    assert ("ratio" in rows[0]) is (updates == 2), "on-policy there is no ratio to watch"


def test_the_rule_checks_equations() -> None:
    rule = EquationSteps(filler=0.1)
    text = "First, 3 + 4 = 7.\n\nThen 7 - 9 = -2 and 2 x 3 = 7.\n\nSo there.\n\n1,000 * 2 = 2,000"
    steps = rule.steps(["?"], [text])
    assert steps.score[0].tolist() == pytest.approx([0.8, -0.8, 0.1, 0.8])
    assert ask_for_steps("What is 1 + 1? Answer in one short sentence.").startswith("What is 1 + 1? Think step")


@pytest.fixture
def judge_folder(tiny: Any, tmp_path: Path) -> Path:
    from transformers import LlamaForTokenClassification

    torch.manual_seed(1)
    config = type(tiny[0].config).from_dict({**tiny[0].config.to_dict(), "num_labels": 2, "architectures": None})
    folder = tmp_path / "judge"
    LlamaForTokenClassification(config).save_pretrained(folder)
    tiny[1].save_pretrained(folder)
    return folder


def arguments(model_folder: Path, tmp_path: Path, *more: str) -> list[str]:
    sizes = ["--samples", "3", "--prompts-per-rollout", "3", "--max-new-tokens", "6", "--epochs", "2"]
    where = ["--model", str(model_folder), "--out", str(tmp_path / "run"), "--device", "cpu", "--dtype", "float32"]
    return ["run", "pure", *where, *sizes, *more]


def test_the_command_on_one_s_own_prompts_and_reward_model(
    model_folder: Path, judge_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    more = ["--data", str(tmp_path / "prompts.jsonl"), "--process-model", str(judge_folder), "--separator", "plus"]
    assert (
        main([*arguments(model_folder, tmp_path, *more, "--reward", "exact", "--learning-rate", "1e-3"), "--json"]) == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert (Path(summary["model"]) / "model.safetensors").exists()
    rows = read_metrics(tmp_path / "run" / "train")
    assert len(rows) == 2
    assert rows[0]["steps"] >= 1
    assert -1 < rows[0]["reward"] < 1


def test_the_command_on_embedded_problems(model_folder: Path, tmp_path: Path) -> None:
    assert main(arguments(model_folder, tmp_path, "--limit", "3", "--problems", "3", "--mode", "strict")) == 0
    assert len(read_metrics(tmp_path / "run" / "train")) == 2


def test_wrong_input_is_said(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS[1:])
    data = ["--data", str(tmp_path / "prompts.jsonl")]
    assert main(arguments(model_folder, tmp_path, *data)) == 2
    assert "give --process-model" in capsys.readouterr().err
    assert main(arguments(model_folder, tmp_path, *data, "--reward-mode", "vr")) == 2
    assert "has no answers to verify" in capsys.readouterr().err
    assert (
        main(arguments(model_folder, tmp_path, *data, "--process-model", str(model_folder), "--good-token", "yes")) == 2
    )
    assert "'-' is not one token" in capsys.readouterr().err
    with pytest.raises(InputError, match="credit_temperature must be above 0"):
        PURE(credit_temperature=0.0)
    with pytest.raises(InputError, match="mode is 'min'"):
        PURE(mode="min")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reward_mode is 'both'"):
        PURE(reward_mode="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="largest_ratio must be at least 1"):
        StepReturns(largest_ratio=0.5)
    with pytest.raises(InputError, match="verifiable_coefficient must be 0 or more"):
        StepReturns(verifiable_coefficient=-1)
    with pytest.raises(InputError, match="repetition_size"):
        PURE(repetition_share=0)


def test_a_reward_model_is_trained_in_two_stages(model_folder: Path, tmp_path: Path) -> None:
    from thrifty.align.process_training import HEAD, WHOLE, new_process_model, train_process_model

    good, bad = ["dog dog", "dog"], ["cat cat", "cat"]
    records = [
        {"prompt": "what is the sum", "completions": [*a, *b], "labels": [*x, *y]}
        for a, x in ((good, [True, True]), (bad, [False, 0]))
        for b, y in ((good, [1, True]), (bad, [False, 0.0]))
    ]
    form = StepFormat(separator=" plus")
    stages = [replace(HEAD, learning_rate=3e-2, batch_size=4, micro_batch_size=2, epochs=3)]
    stages += [replace(WHOLE, learning_rate=1e-2, batch_size=4, micro_batch_size=4, epochs=20)]

    def go(folder: str, whole: Any) -> tuple[ProcessModel, dict[str, Tensor]]:
        with Run(tmp_path / folder, seed=1, device="cpu", dtype="float32", config={}) as run:
            model, tokenizer = new_process_model(model_folder)
            before = {name: weight.clone() for name, weight in model.state_dict().items()}
            found = train_process_model(model, tokenizer, records, run, form=form, head=stages[0], whole=whole)
        return found, before

    first, before = go("r", None)
    changed = {name for name, weight in first.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"score.weight", "score.bias"}, "the first stage trains the head alone"
    second, _ = go("r", stages[1])
    assert len(read_metrics(tmp_path / "r" / "head")) == 3, "a finished stage is not done again"
    assert len(read_metrics(tmp_path / "r" / "whole")) == 20
    at_once, _ = go("s", stages[1])
    for mine, theirs in zip(second.model.parameters(), at_once.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    second.model.save_pretrained(tmp_path / "judge")
    second.tokenizer.save_pretrained(tmp_path / "judge")
    loaded = ProcessModel.load(tmp_path / "judge", format=form)
    said = ["dog dog plus dog plus cat cat plus cat", "cat cat plus cat plus dog dog plus dog"]
    scores = loaded.steps(["what is the sum"] * 2, said).score
    assert (scores > 0).tolist() == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "what", "completions": ["dog"]}, "record 1 has no column 'labels'"),
        ({"prompt": "what", "completions": ["dog"], "labels": [True, False]}, "1 steps in completions and 2 labels"),
        ({"prompt": "what", "completions": ["dog"], "labels": [-1]}, "record 1 has the label -1"),
    ],
)
def test_labelled_steps_that_are_wrong_are_named(
    record: dict[str, Any], said: str, model_folder: Path, tmp_path: Path
) -> None:
    from thrifty.align.process_training import new_process_model, train_process_model

    model, tokenizer = new_process_model(model_folder)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run, pytest.raises(InputError, match=said):
        train_process_model(model, tokenizer, [record], run, form=StepFormat(separator=" plus"))
