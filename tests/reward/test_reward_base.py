"""Rewards as functions of lists: how they are called, and what is said of those that go wrong."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from thrifty.core.errors import InputError, RunError
from thrifty.reward.base import score, text_of
from thrifty.reward.mixture import Mixture, part_means

PROMPTS = ["2+2?", "3+3?", "4+4?"]
SAID = ["4", "six", "8!"]
COLUMNS = {"answer": ["4", "6", "8"], "level": [1, 2, 3]}


def trl(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    assert set(kwargs) == {"level", "completion_ids"}
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def completions_only(completions: list[str], level: list[int], **kwargs: Any) -> list[float]:
    return [len(c) * n for c, n in zip(completions, level, strict=True)]


def keyword_only(*, completions: list[str], answer: list[str]) -> list[float]:
    return [float(c.startswith(a)) for c, a in zip(completions, answer, strict=True)]


def all_keywords(**kwargs: Any) -> list[float]:
    return [float(len(p)) for p in kwargs["prompts"]]


class Scorer:
    def __call__(self, completions: list[str], scale: float = 2.0) -> list[float]:
        return [scale] * len(completions)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (trl, [1, 0, 0]),
        (completions_only, [1, 6, 6]),
        (keyword_only, [1, 0, 1]),
        (all_keywords, [4, 4, 4]),
        (lambda questions, texts: [len(q) + len(t) for q, t in zip(questions, texts, strict=True)], [5, 7, 6]),
        (lambda q, t, level: [n * len(x) for n, x in zip(level, t, strict=True)], [1, 6, 6]),
        (lambda q, t, **rest: [float(len(rest))] * len(t), [3, 3, 3]),
        (lambda texts: [len(t) for t in texts], [1, 3, 2]),
        (lambda *lists: [len(c) for c in lists[1]], [1, 3, 2]),
        (Scorer(), [2, 2, 2]),
        (functools.partial(Scorer(), scale=3.0), [3, 3, 3]),
        (lambda completion_ids: [len(ids) for ids in completion_ids], [1, 2, 3]),
    ],
)
def test_a_reward_is_called_with_what_it_asks_for(reward: Callable[..., Any], expected: list[float]) -> None:
    found = score(reward, PROMPTS, SAID, completion_ids=[[1], [1, 2], [1, 2, 3]], columns=COLUMNS)
    assert found.dtype == torch.float32
    assert found.tolist() == expected


@pytest.mark.parametrize(
    "returned", [torch.tensor([1, 2, 3]), np.array([1.0, 2, 3]), (1, 2, 3), [np.float64(1), torch.tensor(2.0), 3]]
)
def test_tensors_arrays_and_lists_are_all_the_same(returned: Any) -> None:
    assert score(lambda p, c: returned, PROMPTS, SAID).tolist() == [1, 2, 3]


def test_conversational_completions_are_messages_of_the_assistant() -> None:
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any) -> list[float]:
        seen.extend((prompts[0], completions[0]))
        return [len(completion[0]["content"]) for completion in completions]

    assert score(reward, PROMPTS, SAID, conversational=True).tolist() == [1, 3, 2]
    assert seen == [[{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": "4"}]]
    assert text_of(seen[1]) == "4"


def test_rewards_of_trl_are_accepted_as_they_are() -> None:
    rewards = pytest.importorskip("trl.rewards")
    said = ["<think>\nso\n</think>\n4", "no"]
    assert score(rewards.think_format_reward, ["a", "b"], said, conversational=True).tolist() == [1, 0]


def raises(error: type[Exception], match: str, reward: Any, **more: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        score(reward, PROMPTS, SAID, **more)
    assert "\n" not in str(caught.value)


def test_a_reward_that_raises_is_named_with_its_prompt() -> None:
    def broken(prompts: Any, completions: Any) -> Any:
        raise KeyError("no\nsuch thing")

    raises(RunError, r"reward 'broken' raised KeyError: .*begins with the prompt '2\+2\?'", broken)
    with pytest.raises(RunError) as caught:
        score(broken, PROMPTS, SAID)
    assert isinstance(caught.value.__cause__, KeyError)


def test_wrong_lengths_and_values_are_named() -> None:
    raises(RunError, "returned 2 values for 3 completions", lambda p, c: [1, 2])
    raises(RunError, r"returned nan for the prompt '3\+3\?'", lambda p, c: [1, math.nan, 2])
    raises(RunError, r"returned inf for the prompt '4\+4\?'", lambda p, c: torch.tensor([1, 2, math.inf]))
    raises(RunError, r"returned '1' for the prompt '2\+2\?'", lambda p, c: ["1", 2, 3])
    raises(RunError, "returned float, expected a list of 3 numbers", lambda p, c: 1.0)
    raises(RunError, "returned dict", lambda p, c: {"a": 1, "b": 2, "c": 3})
    raises(RunError, r"None \(does not apply\) for the prompt '3\+3\?'", lambda p, c: [1, None, 2])
    raises(RunError, r"returned \[1.0, 2.0\] for", lambda p, c: torch.ones(3, 2) * torch.tensor([1, 2]))

    async def later(prompts: Any, completions: Any) -> list[float]:
        return [1.0, 1.0, 1.0]

    raises(RunError, "'later' is asynchronous", later)


def test_missing_columns_and_wrong_lists_are_named() -> None:
    columns = {"answers": ["4", "6", "8"]}
    raises(InputError, "needs the column 'answer'.*did you mean 'answers'", keyword_only, columns=columns)
    raises(InputError, "does not take the completions", lambda prompts: prompts)
    raises(InputError, "parameter 'answer' like a column", lambda texts, answer: texts, columns=COLUMNS)
    raises(InputError, "answer has 1 entries for 3 completions", trl, columns={"answer": ["4"]})
    raises(InputError, "can't be called 'prompts'", trl, columns={"prompts": SAID})
    raises(InputError, "Linear is a bare model", torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="prompts has 1 entries for 3"):
        score(trl, ["a"], SAID)
    with pytest.raises(InputError, match="expected a string or messages"):
        text_of(3)  # type: ignore[arg-type]


def test_no_completions_are_no_scores() -> None:
    assert score(trl, [], []).shape == (0,)


def right(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    return [float(c == a) if a else None for c, a in zip(completions, answer, strict=True)]


def test_a_mixture_is_the_weighted_sum_of_what_applies() -> None:
    mixture = Mixture([right, lambda texts: [len(t) for t in texts]], weights=[10, 0.5])
    columns = {"answer": ["4", "6", None]}
    assert score(mixture, PROMPTS, SAID, columns=columns).tolist() == [10.5, 1.5, 1.0]
    parts = mixture.parts(PROMPTS, SAID, **columns)
    assert parts == {"right": [1.0, 0.0, None], "<lambda>": [1, 3, 2]}
    assert part_means(parts) == {"right": 0.5, "<lambda>": 2.0}
    assert math.isnan(part_means({"never": [None]})["never"])


def test_a_mixture_that_nowhere_applies_names_the_prompt() -> None:
    raises(RunError, r"'right' returned None.*'4\+4\?'", Mixture([right]), columns={"answer": ["4", "6", ""]})


def test_a_mixture_names_the_part_that_fails_and_passes_messages_on() -> None:
    def bad(prompts: Any, completions: Any) -> list[float]:
        return [1.0]

    raises(RunError, "reward 'bad' returned 1 values", Mixture([right, bad]), columns={"answer": SAID})
    inner = Mixture({"length": lambda p, c: [len(x[0]["content"]) for x in c]})
    assert score(Mixture([inner, inner]), PROMPTS, SAID, conversational=True).tolist() == [2, 6, 4]
    assert list(Mixture([right, right, right]).rewards) == ["right", "right 2", "right 3"]


def test_mixtures_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        Mixture([])
    with pytest.raises(InputError, match="2 weights for 1 rewards"):
        Mixture([right], [1, 2])
    with pytest.raises(InputError, match="weight of 'right' is nan"):
        Mixture([right], [math.nan])
