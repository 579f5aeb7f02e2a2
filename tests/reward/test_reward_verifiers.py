"""Verifiers against the examples of the papers' cards, and lengths against numbers worked out by hand."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from thrifty.core.errors import InputError, NotFoundError, RunError
from thrifty.data.tasks import arithmetic, task
from thrifty.reward.answers import (
    answer_tag_accuracy,
    choice_answer,
    chosen,
    equality,
    exact_answer,
    last_number,
    math_answer,
    normalised,
    think_answer_format,
)
from thrifty.reward.base import score
from thrifty.reward.lengths import cosine, cosine_length, length_limit, length_target
from thrifty.reward.verifiers import matches, reading, task_reward, verifier

LABEL = "<answer> Annual Crop Land </answer>"
CLS_RL = [
    ("<think>fields</think> <answer>annual crop land</answer>", 1, 1, 0),
    ("Annual Crop Land", 1, 0, 1),
    ("annual crop land", 1, 0, 0),
    ("<answer>River</answer>", 0, 0, 0),
    ("<think>x</think><answer>River</answer>", 0, 1, 0),
    ("The answer is Annual Crop Land", 0, 0, 0),
]


@pytest.mark.parametrize(("said", "accuracy", "form", "equal"), CLS_RL)
def test_rewards_of_cls_rl(said: str, accuracy: int, form: int, equal: int) -> None:
    assert answer_tag_accuracy([said], [LABEL]) == [accuracy]
    assert think_answer_format([said]) == [form]
    assert equality([said], [LABEL]) == [equal]


def test_what_crosses_line_ends_in_cls_rl_and_what_does_not() -> None:
    assert think_answer_format(["<think>a\nb</think>\n\n<answer>c\nd</answer>"]) == [1]
    assert think_answer_format(["so <think>a</think><answer>b</answer>", "<think>a</think> x <answer>b</answer>"]) == [
        0,
        0,
    ]
    assert answer_tag_accuracy(["<answer>\nRiver\n</answer>"], ["River"]) == [0]
    assert answer_tag_accuracy(["<answer>A</answer><answer>River</answer>"], ["River"]) == [0]
    assert equality(["River\n", " river."], ["River", "River"]) == [0, 0]
    assert equality(["River\n", " river."], ["River", "River"], strict=False) == [1, 1]


def test_last_number_of_tulu_3() -> None:
    said = ["So 1,200 + 34 = 1,234.", "18.00", "x is -3", "costs $5 for 2 pens", "No number", "1,234,567"]
    right = ["1234", "18", "-3", "5", "no number", "1234567"]
    assert last_number(said, right) == [1, 0, 1, 0, 1, 1]
    assert last_number(said, right, signed=False) == [1, 0, 0, 0, 1, 1]
    assert last_number(["x is -3"], ["3"], signed=False) == [1]
    assert last_number(["it is -3.5"], ["-3.5"], signed=False) == [1]
    assert last_number(["it is 7"], [7]) == [1]


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        (r"so $\boxed{\frac{1}{2}}$", "0.5", 1),
        (r"The answer is \boxed{12}", r"$12$", 1),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1),
        ("I think the answer is 41", "She has 6 * 7 = 42.\n#### 42", 0),
        ("I think the answer is 42", "She has 6 * 7 = 42.\n#### 42", 1),
        ("no idea", "42", 0),
        ("42", "", None),
        ("42", None, None),
    ],
)
def test_math_answers(said: str, right: str, expected: float | None) -> None:
    assert math_answer([said], [right]) == [expected]


def test_math_answers_outside_of_the_main_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(math_answer, [r"\boxed{\frac{2}{4}}"], ["1/2"]).result() == [1]


def test_math_answers_without_the_library_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match=r"math answers need the library math_verify: `pip install 'thrifty\[lm\]'`"):
        math_answer(["1"], ["1"])


def test_exact_answers_ignore_case_spaces_and_outer_punctuation() -> None:
    assert exact_answer(["  The  Nile.", "the nile!", "Nile"], ["the Nile"] * 3) == [1, 1, 0]
    assert normalised("\uff21\u00a0b") == "a b"


CHOICES = ["a cat", "a dog", "a bird", "none of these"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", 1),
        ("(b)", None),
        ("(B) because it barks", 1),
        ("C. a bird", 2),
        ("The answer is (D).", 3),
        ("Answer: B", 1),
        ("It might be A. The answer is B", 1),
        ("<think>A or B?</think><answer>C</answer>", 2),
        (r"so \boxed{D}", 3),
        (r"so \boxed{\text{A}}", 0),
        ("a dog", 1),
        ("It is a dog, I believe", 1),
        ("a cat or a dog", None),
        ("A dog it is", 1),
        ("E", None),
        ("", None),
    ],
)
def test_choices(said: str, expected: int | None) -> None:
    assert chosen(said, CHOICES) == expected


def test_choice_answers_are_letters_numbers_or_texts() -> None:
    said, choices = ["B", "a dog", "(B)", "A"], [CHOICES] * 4
    assert choice_answer(said, ["B", 1, "a dog", "b"], choices=choices) == [1, 1, 1, 0]
    assert choice_answer(["Answer: C", "B", "?"], ["C", "A", None]) == [1, 0, None]
    with pytest.raises(InputError, match="the answer 'E' is none of the choices 'a cat'"):
        choice_answer(["B"], ["E"], choices=[CHOICES])
    with pytest.raises(InputError, match="the answer 4 is none"):
        choice_answer(["B"], [4], choices=[CHOICES])


def test_patterns() -> None:
    assert matches(r"<a>.*</a>")(["<a>1\n2</a>", "x<a></a>"]) == [1, 0]
    assert matches(r"\d", full=False)(["abc1", "abc"]) == [1, 0]
    with pytest.raises(InputError, match="no regular expression"):
        matches("(")


def test_length_limit_falls_over_its_last_part() -> None:
    reward, ids = length_limit(10, soft=4), [[0] * n for n in (3, 6, 7, 10, 25)]
    assert reward([""] * 5, ids) == [0, 0, -0.25, -1, -1]
    assert length_limit(10)([""] * 5, ids) == [0, 0, 0, 0, -1]
    assert length_target(4, unit="characters")(["1234", "12", "123456", "1" * 50]) == [0, -0.5, -0.5, -1]
    with pytest.raises(InputError, match="needs completion_ids"):
        reward(["a"])
    with pytest.raises(InputError, match="0 <= soft <= limit"):
        length_limit(3, soft=4)
    with pytest.raises(InputError, match="at least 1"):
        length_target(0)


def test_the_cosine_has_its_ends_and_its_middle() -> None:
    found = cosine(torch.tensor([0.0, 50, 100]), 100, a=2.0, b=-1.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.5, -1.0]))
    assert float(cosine(torch.tensor([25.0]), 100, 1.0, 0.0)) == pytest.approx(0.853553, abs=1e-6)


def test_cosine_length_prefers_short_right_and_long_wrong_answers() -> None:
    reward = cosine_length(exact_answer, 8, right=(2.0, 1.0), wrong=(-10.0, 0.0), exceeded=-20.0)
    ids = [[0] * n for n in (0, 4, 4, 8)]
    columns: dict[str, Any] = {"answer": ["a"] * 4}
    found = score(reward, ["p"] * 4, ["a", "a", "b", "a"], completion_ids=ids, columns=columns)
    torch.testing.assert_close(found, torch.tensor([2.0, 1.5, -5.0, -20.0]))
    with pytest.raises(RunError, match="None"):
        score(reward, ["p"], ["a"], completion_ids=[[1]], columns={"answer": [None]})


def test_a_task_judges_its_own_problems() -> None:
    sums = arithmetic()
    problems = sums.problems(3, seed=0)
    said = [f"So it is {p.answer}" for p in problems[:2]] + ["don't know"]
    prompts = [p.prompt for p in problems]
    columns = {"answer": [p.answer for p in problems]}
    assert score(task_reward(sums), prompts, said, columns=columns).tolist() == [1, 1, 0]
    assert score(task_reward(sums, problems), prompts, said, conversational=True).tolist() == [1, 1, 0]
    assert score(verifier("task:arithmetic"), prompts, said, columns=columns).tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="'Why' is none of the 3 problems"):
        score(task_reward(sums, problems), ["Why"], ["?"])


def test_a_family_of_reasoning_gym_is_a_verifier() -> None:
    pytest.importorskip("reasoning_gym")
    family = task("reasoning-gym:chain_sum")
    problem = family.problems(1, seed=3)[0]
    columns = {"answer": [problem.answer], "id": [problem.id]}
    reward = verifier("task:reasoning-gym:chain_sum")
    assert score(reward, [problem.prompt], [f"<answer>{problem.answer}</answer>"], columns=columns).tolist() == [1]
    assert score(reward, [problem.prompt], ["<answer>1234567</answer>"], columns=columns).tolist() < [1]
    with pytest.raises(InputError, match="needs the column 'id'"):
        score(reward, [problem.prompt], ["1"], columns={"answer": [problem.answer]})


def test_verifiers_by_name() -> None:
    assert verifier("number") is last_number
    assert verifier("regex:a+")(["aaa", "b"]) == [1, 0]
    with pytest.raises(NotFoundError, match=r"no verifier 'exakt': did you mean 'exact'\?"):
        verifier("exakt")
    with pytest.raises(NotFoundError, match=r"write python:pkg\.mod:function"):
        verifier("pkg.mod:function")
    with pytest.raises(NotFoundError, match="unknown task"):
        verifier("task:arithmatic")


def test_own_functions_are_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_rewards")
    module.short = lambda texts: [-len(text) for text in texts]  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    assert score(verifier("python:my_rewards:short"), ["p"], ["abc"]).tolist() == [-3]
    with pytest.raises(NotFoundError, match="my_rewards has no 'shrt': did you mean 'short'"):
        verifier("python:my_rewards:shrt")
    with pytest.raises(InputError, match="is int, expected a function"):
        verifier("python:my_rewards:number")
    with pytest.raises(InputError, match="names no function"):
        verifier("python:my_rewards")
    with pytest.raises(NotFoundError, match="can't be imported"):
        verifier("python:there_is_none:f")
    with pytest.raises(NotFoundError, match="no verifier"):
        verifier("my_rewards:short")


def test_another_column_holds_the_answers() -> None:
    reward = verifier("number", column="solution")
    assert score(reward, ["p"], ["it is 4"], columns={"solution": ["4"]}).tolist() == [1]
    with pytest.raises(InputError, match=r"'last_number' needs the column 'solution'.*did you mean 'solutions'"):
        score(reward, ["p"], ["it is 4"], columns={"solutions": ["4"]})
    assert reading(last_number, "answer") is last_number
