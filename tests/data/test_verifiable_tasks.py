"""Tasks: the last integer counts, splits are disjoint, a seed fixes everything."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.tasks import Arithmetic, Problem, ReasoningGym, Task, arithmetic, parse_integer, reasoning, task


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7 + 5 = 12.", 12),
        ("So the answer is **12**", 12),
        ("-5", -5),
        ("x = -5", -5),
        ("\u22128", -8),
        ("7-5", 5),
        ("(7-5)", 5),
        ("1,234 apples", 1234),
        ("between 3,4", 4),
        ("1234,567", 567),
        ("12.0", 12),
        ("$1,200.00", 1200),
        ("costs -$5.", -5),
        ("wait ...5", 5),
        ("3.5", None),
        (".5", None),
        ("no idea", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_last_integer_of_a_text(text: str, value: int | None) -> None:
    assert parse_integer(text) == value


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "I get {}.", "**{}**", "= {} apples", "{:,}", "5 and {}"])
)
def test_any_integer_is_read_back(value: int, frame: str) -> None:
    assert parse_integer(frame.format(value)) == value


@pytest.mark.parametrize("digits", [1, 2, 4])
@pytest.mark.parametrize("style", ["plain", "word", "mixed"])
def test_arithmetic_answers_are_right_and_operands_have_their_digits(digits: int, style: str) -> None:
    problems = arithmetic(digits, ("+", "-", "*"), style).problems(25, seed=3)  # type: ignore[arg-type]
    for problem in problems:
        match = re.fullmatch(r"(\d+)([-+*])(\d+)/\d+", problem.id)
        assert match
        a, operation, b = int(match[1]), match[2], int(match[3])
        assert {len(match[1]), len(match[3])} == {digits}
        assert int(problem.answer) == {"+": a + b, "-": a - b, "*": a * b}[operation] >= 0
        assert {str(a), str(b)} <= set(re.findall(r"\d+", problem.prompt))
        assert problem.prompt.startswith("What is") or style != "plain"
        assert "{" not in problem.prompt


def test_same_seed_same_problems_other_seed_others() -> None:
    sums = arithmetic(2)
    assert sums.problems(30, seed=1) == sums.problems(30, seed=1)
    assert sums.problems(30, seed=1) != sums.problems(30, seed=2)


@pytest.mark.parametrize("digits", [1, 4])
def test_splits_share_no_problem(digits: int) -> None:
    sums = arithmetic(digits, style="mixed")
    train = {problem.prompt for problem in sums.problems(500, seed=0)}
    test = {problem.prompt for problem in sums.problems(150, seed=0, split="test")}
    assert len(train) == 500
    assert len(test) == 150
    assert not train & test


def test_whole_pool_can_be_had_and_no_more() -> None:
    sums = Arithmetic(1, ("+",), "plain")
    sizes = {}
    for split in ("train", "test"):
        with pytest.raises(InputError, match=rf"arithmetic has \d+ {split} problems, 1000 were asked for") as caught:
            sums.problems(1000, seed=0, split=split)  # type: ignore[arg-type]
        sizes[split] = int(re.findall(r"has (\d+)", str(caught.value))[0])
        assert len(sums.problems(sizes[split], seed=5, split=split)) == sizes[split]  # type: ignore[arg-type]
    assert sum(sizes.values()) == 81
    assert 5 <= sizes["test"] <= 30


def test_score_is_one_for_the_last_integer_only() -> None:
    sums = arithmetic()
    problem = Problem("What is 7 + 5?", "12", "7+5/0")
    assert sums.score(problem, "7 + 5 = 12") == 1.0
    assert sums.score(problem, "12 is 7 + 5") == 0.0
    assert sums.score(problem, "I don't know") == 0.0


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Arithmetic(0), "digits is 0, expected 1 to 9"),
        (lambda: Arithmetic(operations=("/",)), "operations is"),
        (lambda: Arithmetic(operations=()), "operations is"),
        (lambda: Arithmetic(style="words"), "did you mean 'word'"),  # type: ignore[arg-type]
        (lambda: Arithmetic().problems(0, 0), "0 problems were asked for"),
        (lambda: Arithmetic().problems(1, 0, "dev"), "split is 'dev'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_named(make: object, line: str) -> None:
    with pytest.raises(InputError, match=line):
        make()  # type: ignore[operator]


def test_tasks_by_name() -> None:
    assert task("arithmetic") == Arithmetic(1)
    assert task("arithmetic:3") == Arithmetic(3)
    assert task("arithmetic:3").name == "arithmetic:3"
    assert task("arithmetic").name == "arithmetic"
    for unknown in ("algebra", "arithmetic:x", "reasoning-gym"):
        with pytest.raises(NotFoundError, match="unknown task"):
            task(unknown)


class TestReasoningGym:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("reasoning_gym")

    def test_right_answers_score_one_in_or_out_of_tags(self) -> None:
        legs: Task = task("reasoning-gym:leg_counting")
        assert legs.name == "reasoning-gym:leg_counting"
        for problem in legs.problems(5, seed=1):
            assert legs.score(problem, f"Let me see: <answer>{problem.answer}</answer>") == 1.0
            assert legs.score(problem, f"3 cats, so in total there are {problem.answer} legs.") == 1.0
            assert legs.score(problem, f"{int(problem.answer) + 1}") < 0.5
            assert legs.score(problem, "no idea") < 0.5

    def test_seeds_and_splits_do_not_overlap(self) -> None:
        sums = reasoning("chain_sum", min_terms=2, max_terms=3)
        train = sums.problems(40, seed=1)
        assert train == sums.problems(40, seed=1)
        assert not {p.prompt for p in train} & {p.prompt for p in sums.problems(40, seed=1, split="test")}
        assert len({p.prompt for p in train} & {p.prompt for p in sums.problems(40, seed=2)}) < 5

    def test_answer_in_words_is_the_last_line(self) -> None:
        words = reasoning("word_sorting")
        problem = words.problems(1, seed=0)[0]
        assert words.score(problem, f"Sorted:\n{problem.answer}") == 1.0
        assert words.score(problem, "") < 0.5

    def test_family_that_fails_on_nonsense_scores_zero(self) -> None:
        factors = reasoning("prime_factorization")
        assert factors.score(factors.problems(1, seed=0)[0], "I think it is prime") == 0.0

    def test_unknown_family_and_refused_settings_are_named(self) -> None:
        with pytest.raises(NotFoundError, match="did you mean 'leg_counting'"):
            ReasoningGym("leg_countin")
        with pytest.raises(InputError, match="reasoning-gym:chain_sum refuses"):
            reasoning("chain_sum", min_terms=-1)
        with pytest.raises(InputError, match="reasoning-gym:chain_sum refuses"):
            reasoning("chain_sum", no_such_setting=1)

    def test_exhausted_family_says_so(self) -> None:
        few = reasoning("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
        with pytest.raises(InputError, match="different train problems in"):
            few.problems(2000, seed=0)
