"""The setting of the claims: what is right, how the rule scores it, and that an arm can be run in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thrifty.align.process_worth import ProcessWorth
from thrifty.align.pure import PURE
from thrifty.align.settings import steps_task
from thrifty.align.settings.sum_chains import (
    ANSWER,
    END,
    LONGEST,
    SEPARATOR,
    Rule,
    StepScores,
    prompt_of,
    running_sums,
    verify,
)

EXACT = StepScores(good=0.8, wrong=-0.8, filler=0.25, solved=0.9, unsolved=-0.7, noise=0.0)
PROMPT = prompt_of([3, 4, 0, 1, 2])


def said(*digits: int, answer: int | None = None) -> list[int]:
    """Steps by place and digit, in the order of places; a digit of -1 says the last step again."""
    first = running_sums(prompt_of([0] * 5))
    ids: list[int] = []
    place = 0
    for digit in digits:
        ids += ids[-2:] if digit < 0 else [first[place] + digit, SEPARATOR]
        place += digit >= 0
    return ids if answer is None else [*ids, ANSWER, first[-1] + answer, END]


def test_running_sums_by_hand() -> None:
    # 3 + 4 = 7, + 0, + 1 = 8, + 2 = 10, modulo five.
    assert [a - b for a, b in zip(running_sums(PROMPT), running_sums(prompt_of([0] * 5)), strict=True)] == [2, 2, 3, 0]


@pytest.mark.parametrize(
    ("ids", "scores"),
    [
        (said(2, 2, 3, 0, answer=0), [0.8, 0.8, 0.8, 0.8, 0.9]),
        (said(2, -1, -1, 2, answer=2), [0.8, 0.25, 0.25, 0.8, -0.7]),
        (said(2, 1, 2, 4, answer=4), [0.8, -0.8, -0.8, -0.8, -0.7]),
        (said(1, 2, answer=0), [-0.8, -0.8, 0.9]),  # a verifier does not see how the answer was found
        (said(2, 2), [0.8, 0.8]),
        ([SEPARATOR] * 3, [-0.8, 0.25, 0.25]),
    ],
)
def test_the_rule_by_hand(ids: list[int], scores: list[float]) -> None:
    steps = Rule(EXACT, 0).steps([PROMPT], [""], completion_ids=[ids])
    assert steps.score[0].tolist() == pytest.approx(scores)
    assert int(steps.step_end[0, -1]) == len(ids) - 1
    assert verify([PROMPT], [ids]) == [float(scores[-1] == 0.9)]


def test_an_arm_runs_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_task, "LEARNING_RATES", (1e-3,))
    torch.manual_seed(0)
    setting = steps_task.prepare(0, True, tmp_path)
    prompts = [tuple(p) for part in (setting.prompts, setting.validation, setting.test) for p in part]
    assert len(set(prompts)) == len(prompts)
    method = PURE(longest=LONGEST, kl_reward_coefficient=0.0)
    found = steps_task.measure(method, lambda _: ProcessWorth(Rule(EXACT, 0), verify), setting, share=0.1)
    assert 0 <= found["solve rate"] <= 1
    assert found["learning rate"] in steps_task.LEARNING_RATES
    assert sum("answer" in record for record in steps_task.records(setting.prompts, 0.1)) == 51
    steps, right = steps_task.scored_answers(setting, Rule(EXACT, 0))
    assert len(steps) == len(right) == 512
