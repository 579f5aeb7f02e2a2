"""The skill to forget: its texts, its scores, and every arm of the claim and the comparison on a model of nothing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.forget.conftest import llama_of, tokenizer_of

from thrifty.claims.harness import judge, measure
from thrifty.claims.skill_unlearning import CLAIM
from thrifty.core.run import Run
from thrifty.data.tasks import Arithmetic, Problem
from thrifty.data.text import TextSet
from thrifty.forget import skills
from thrifty.forget.interventions import attached, intervened
from thrifty.forget.key_space import fit_key_space
from thrifty.forget.neurons import sequences_of
from thrifty.forget.room import ROOM, Inputs, run
from thrifty.forget.skill_unlearning import SkillUnlearning

NAMES = [
    "[PAD]",
    "[EOS]",
    "What",
    "is",
    "times",
    "Repeat",
    "this",
    "headline",
    "Continue",
    "news",
    "article",
    *"?+-*=.:",
]
NAMES += [*map(str, range(100)), *(f"w{number}" for number in range(30))]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(*_: Any, **__: Any) -> tuple[Any, Any]:
        return llama_of(len(NAMES)), tokenizer_of(NAMES)

    def texts(_: str) -> TextSet:
        draw = np.random.default_rng(0)
        lines = tuple(" ".join(f"w{n}" for n in draw.integers(0, 30, 45)) for _ in range(400))
        return TextSet(lines[:200], np.zeros(200, int), lines[200:], np.zeros(200, int), ("a",))

    monkeypatch.setattr(skills, "load_lm", model)
    monkeypatch.setattr("thrifty.forget.room.load_lm", model)
    monkeypatch.setattr(skills, "texts", texts)


def test_a_sum_is_solved_after_solved_ones() -> None:
    wanted = [Problem("What is 7 + 5?", "12", "7+5/0"), Problem("What is 3 times 4?", "12", "3*4/0")]
    record = skills.sums(wanted[1:], wanted[:1])[0]
    assert record["completion"] == "3 * 4 = 12."
    assert [turn["content"] for turn in record["prompt"]] == ["What is 7 + 5?", "7 + 5 = 12.", "What is 3 times 4?"]
    assert [turn["role"] for turn in record["prompt"]] == ["user", "assistant", "user"]
    for one in skills.SKILL.problems(50, 3):
        assert Arithmetic().score(one, skills.solution(one)) == 1


def test_articles_go_on_where_they_stop_and_headlines_are_repeated() -> None:
    words = [str(number) for number in range(50)]
    (record,) = skills.articles([" ".join(words), "too short"])
    assert record["prompt"][-1]["content"] == "Continue this news article: " + " ".join(words[:20])
    assert record["completion"] == " ".join(words[20:40])
    assert skills.copies(["A B"])[0]["completion"] == "A B"


def test_no_final_text_is_among_those_that_methods_see(tiny: None, tmp_path: Path) -> None:
    found = skills.skill_texts(tokenizer_of(NAMES), 0, probes=30, valid=5, asked=10, judged=6)

    def rows(source: Any) -> set[tuple[int, ...]]:
        return {
            tuple(ids[mask].tolist())
            for ids, mask in zip(source.sequences.input_ids, source.sequences.response_mask, strict=True)
        }

    assert {name: len(source) for name, source in found.sets.items()} == {
        "forget_set": 30,
        "retain_set": 30,
        "full_set": 60,
        "refusal_set": 30,
    }
    assert not rows(found.judged["skill"]) & (rows(found.sets["forget_set"]) | rows(found.valid["forget"]))
    assert not rows(found.valid["retain"]) & rows(found.sets["retain_set"])
    again = skills.skill_texts(tokenizer_of(NAMES), 1, probes=30, valid=5, asked=10, judged=6)
    assert rows(again.sets["retain_set"]) != rows(found.sets["retain_set"])


def test_scores_are_relative_to_the_model_before(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = skills.problem(0, True, tmp_path)
    before = {"skill_accuracy": 0.8, "text_accuracy": 0.5, "copy_accuracy": 1.0, "skill_nll": 1.0, "text_nll": 2.0}
    problem = dataclasses.replace(problem, original=before)
    same = skills.scores(problem, problem.model)
    assert (same["skill_drop"], same["retain_drop"], same["nll_gap"]) == (0, 0, 0)
    found = {"skill_accuracy": 0.2, "text_accuracy": 0.4, "copy_accuracy": 1.0, "skill_nll": 4.0, "text_nll": 2.5}
    monkeypatch.setattr(skills, "measured", lambda *_: found)
    after = skills.scores(problem, copy.deepcopy(problem.model))
    assert [after[name] for name in ("skill_drop", "retain_drop", "nll_gap")] == pytest.approx([0.75, 0.1, 2.5])


def test_a_model_that_only_ends_its_turn_has_lost_everything(tiny: None, tmp_path: Path) -> None:
    problem = skills.problem(0, True, tmp_path)
    rows = sequences_of(problem.texts.sets["forget_set"], "forget set")
    with intervened(problem.model, fit_key_space(problem.model, rows, scale=1e6)):
        silent = skills.measured(problem, problem.model)
    assert silent["skill_accuracy"] == 0
    assert silent["skill_nll"] > 50
    assert silent["text_accuracy"] == pytest.approx(1 / 21, abs=1e-4)  # of 20 words and the end, the end
    assert attached(problem.model) is None


def test_every_arm_of_the_claim_and_of_the_comparison_runs(tiny: None, tmp_path: Path) -> None:
    measured = measure(CLAIM.prepare, CLAIM.arms, [0], tmp_path, quick=True)
    verdict, rows = judge(CLAIM.conditions, measured)
    assert (verdict, len(rows)) == ("inconclusive", len(CLAIM.conditions))
    assert {name.lstrip("-") for name in CLAIM.metrics} <= set(measured.values["original"])
    problem = skills.problem(0, True, tmp_path / "compare")
    for arm in skills.TASK.baselines.values():
        assert {name.lstrip("-") for name in skills.TASK.metrics} <= set(arm(problem))
    for method in (SkillUnlearning(), *(make() for make in skills.TASK.variants.values())):
        assert {name.lstrip("-") for name in skills.TASK.metrics} <= set(skills.TASK.evaluate(method, problem))
    assert ROOM.tasks["skill"] is skills.TASK


def test_without_arguments_the_command_forgets_arithmetic(tiny: None, tmp_path: Path) -> None:
    with Run(tmp_path / "out", config={}) as job:
        found = run(SkillUnlearning(scale=1e6), Inputs(), job)
    before, after = found["table"]
    assert {"forget_accuracy", "retain_accuracy", "copy_accuracy"} <= set(before)
    assert after["forget_nll"] > before["forget_nll"]
    assert found["examples"]["forget_set"] == 80
