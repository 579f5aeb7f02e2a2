"""Answers to arithmetic problems, written by code: teachers of different quality, and triples of answers.

What methods that learn from others' answers take where the user gives no data. The same seed gives the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from thrifty.core.errors import InputError
from thrifty.data.tasks import Problem

EXPERT, OTHER = "expert", "other"
_KEY = re.compile(r"(\d+)([-+*])(\d+)/")


def operands(problem: Problem) -> tuple[int, str, int]:
    """The two numbers of an arithmetic problem and what is done with them, from its id.

    Raises
    ------
    InputError
        When the problem is of another task.
    """
    found = _KEY.match(problem.id)
    if found is None:
        raise InputError(f"problem {problem.id!r} is not of the task arithmetic")
    return int(found[1]), found[2], int(found[3])


def two_teachers(
    problems: Sequence[Problem],
    seed: int,
    *,
    expert_share: float = 0.1,
    expert_accuracy: float = 0.9,
    other_accuracy: float = 0.3,
    wording: str = "The answer is {n}.",
) -> list[dict[str, Any]]:
    """One answer to each problem, from a few experts' or from many others'; the words are the same.

    The experts' mistakes are scattered: some number up to 9 away. The others' are systematic: they count one too many.

    Parameters
    ----------
    problems
        What is answered.
    seed
        Of who answers what, and of who is wrong.
    expert_share
        Of the problems, those that the expert answers.
    expert_accuracy, other_accuracy
        Of the answers of each, those that are right.
    wording
        What is said; ``{n}`` is the number.

    Returns
    -------
    list of dict
        ``source`` (``expert`` or ``other``), ``prompt``, ``completion``, ``right``.
    """
    generator = np.random.default_rng(seed)
    experts = set(generator.permutation(len(problems))[: round(expert_share * len(problems))].tolist())
    records = []
    for place, problem in enumerate(problems):
        expert = place in experts
        right = bool(generator.random() < (expert_accuracy if expert else other_accuracy))
        slip = int(generator.integers(1, 10)) * int(generator.choice((-1, 1))) if expert else 1
        answer = int(problem.answer)
        number = answer if right else answer + slip if answer + slip >= 0 else answer - slip
        records.append(
            {
                "source": EXPERT if expert else OTHER,
                "prompt": problem.prompt,
                "completion": wording.format(n=number),
                "right": right,
            }
        )
    return records


def answer_triples(problems: Sequence[Problem], seed: int) -> list[dict[str, Any]]:
    """Three answers to each problem: the calculation and its result, a terse or hedged right one, and a wrong one.

    Parameters
    ----------
    problems
        Of the task arithmetic.
    seed
        Of the words of the second answer and the mistake of the third.

    Returns
    -------
    list of dict
        ``prompt``, ``reference``, ``chosen``, ``rejected``.
    """
    generator = np.random.default_rng(seed)
    chosen = ("{n}.", "It must be {n}, I think.", "Hmm, let me see, that makes {n}.")
    records = []
    for problem in problems:
        a, sign, b = operands(problem)
        wrong = int(problem.answer) + int(generator.integers(1, 4)) * int(generator.choice((-1, 1)))
        records.append(
            {
                "prompt": problem.prompt,
                "reference": f"{a} {sign} {b} = {problem.answer}. The answer is {problem.answer}.",
                "chosen": chosen[generator.integers(len(chosen))].format(n=problem.answer),
                "rejected": f"The answer is {wrong}.",
            }
        )
    return records
