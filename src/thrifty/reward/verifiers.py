"""Verifiers by name, from patterns, from tasks, and from other columns."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data.optional import first_line
from thrifty.data.tasks import Problem, Task
from thrifty.data.tasks import task as find_task
from thrifty.reward.answers import (
    answer_tag_accuracy,
    choice_answer,
    equality,
    exact_answer,
    last_number,
    math_answer,
    think_answer_format,
)
from thrifty.reward.base import Reward, Text, checked_values, reward_name, text_of
from thrifty.reward.constraints import constraint_answer

VERIFIERS: dict[str, Reward] = {
    "math": math_answer,
    "exact": exact_answer,
    "number": last_number,
    "choice": choice_answer,
    "equality": equality,
    "answer-tag": answer_tag_accuracy,
    "think-answer-format": think_answer_format,
    "constraint": constraint_answer,
}
"""Names that the command line knows, beside those that begin with one of :data:`PREFIXES`."""


def verifier(name: str, *, column: str = "answer") -> Reward:
    """A verifier by its name.

    Parameters
    ----------
    name
        One of :data:`VERIFIERS`; ``regex:PATTERN`` (the whole completion must match); ``task:NAME`` such as
        ``task:arithmetic`` or ``task:reasoning-gym:chain_sum``; or ``python:MODULE:FUNCTION`` for your own function,
        whose module is imported.
    column
        Where the right answers stand.

    Raises
    ------
    NotFoundError
        When nothing has that name; the nearest are offered.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PREFIXES and rest:
        return reading(PREFIXES[prefix](rest), column)
    if name not in VERIFIERS:
        hint = nearest(name, [*VERIFIERS, *(f"{prefix}:..." for prefix in PREFIXES)])
        if colon and prefix not in PREFIXES:
            hint = f"for a function of your own write python:{name}"
        raise NotFoundError(f"no verifier {name!r}: {hint or 'known: ' + ', '.join(VERIFIERS)}")
    return reading(VERIFIERS[name], column)


def matches(pattern: str, *, full: bool = True) -> Callable[..., list[float]]:
    r"""A reward of 1 where the completion matches a regular expression, else 0.

    Parameters
    ----------
    pattern
        As Python's ``re`` reads it; ``.`` matches line ends too.
    full
        Whether the whole completion must match, or any part of it.

    Raises
    ------
    InputError
        When the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}") from error
    test = compiled.fullmatch if full else compiled.search

    def matching(completions: Sequence[Text], **_: Any) -> list[float]:
        return [float(test(text_of(said)) is not None) for said in completions]

    matching.__name__ = f"matches({pattern})"
    return matching


def task_reward(task: Task, problems: Sequence[Problem] | None = None) -> Callable[..., list[float]]:
    """A reward that is a task's own score of the completion, in [0, 1].

    Parameters
    ----------
    task
        Any task of :mod:`thrifty.data.tasks`, the families of reasoning-gym included.
    problems
        The problems that are asked, found again by their prompts. Without them, the columns ``answer`` and ``id`` say
        which problem a row is (``id`` may be absent where the task does without).

    Raises
    ------
    InputError
        By the reward, when a prompt is none of the problems, or the task needs the column ``id``.
    """
    if problems is not None:
        by_prompt = {problem.prompt: problem for problem in problems}

        def known(prompts: Sequence[Text], completions: Sequence[Text], **_: Any) -> list[float]:
            texts = [text_of(prompt) for prompt in prompts]
            strange = next((text for text in texts if text not in by_prompt), None)
            if strange is not None:
                raise InputError(f"the prompt {strange[:80]!r} is none of the {len(by_prompt)} problems of {task.name}")
            pairs = zip(texts, completions, strict=True)
            return [task.score(by_prompt[text], text_of(said)) for text, said in pairs]

        known.__name__ = task.name
        return known

    def told(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        answer: Sequence[Any],
        id: Sequence[str] | None = None,
        **_: Any,
    ) -> list[float]:
        ids = [""] * len(completions) if id is None else [str(one) for one in id]
        rows = zip(prompts, completions, answer, ids, strict=True)
        try:
            return [task.score(Problem(text_of(p), str(right), i), text_of(said)) for p, said, right, i in rows]
        except (ValueError, LookupError) as error:
            if id is not None or isinstance(error, InputError):
                raise
            raise InputError(f"the task {task.name} needs the column 'id' of its problems") from error

    told.__name__ = task.name
    return told


@dataclass(frozen=True)
class Reading:
    """A reward that finds its ``answer`` in another column."""

    reward: Reward
    column: str

    @property
    def name(self) -> str:
        """That of the reward."""
        return reward_name(self.reward)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward with the column under the name ``answer``."""
        if self.column not in columns:
            hint = nearest(self.column, columns) or "there are no columns"
            raise InputError(f"reward {self.name!r} needs the column {self.column!r}, which the data lack: {hint}")
        renamed = {**columns, "answer": columns[self.column]}
        return checked_values(self.reward, prompts, completions, completion_ids=completion_ids, columns=renamed)


def reading(reward: Reward, column: str) -> Reward:
    """The same verifier with its right answers in another column than ``answer``."""
    return reward if column == "answer" else Reading(reward, column)


def _imported(path: str) -> Reward:
    module, _, name = path.rpartition(":")
    if not module or not name:
        raise InputError(f"python:{path} names no function: write python:MODULE:FUNCTION")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise NotFoundError(f"python:{path}: the module {module} can't be imported: {first_line(error)}") from error
    if not hasattr(found, name):
        raise NotFoundError(f"python:{path}: {module} has no {name!r}: {nearest(name, vars(found))}".rstrip(": "))
    reward: Reward = getattr(found, name)
    if not callable(reward):
        raise InputError(f"python:{path} is {type(reward).__name__}, expected a function of lists")
    return reward


PREFIXES: dict[str, Callable[[str], Reward]] = {
    "regex": matches,
    "task": lambda name: task_reward(find_task(name)),
    "python": _imported,
}
"""What may stand before a colon, and what makes a reward of what follows it."""
