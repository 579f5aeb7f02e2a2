"""Where Light-R1's questions and a teacher's answers come from: the user's files, or a program."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from thrifty.align.asking import Record
from thrifty.align.job import Job, as_record
from thrifty.core.errors import InputError
from thrifty.core.seeding import derive_seed, generator
from thrifty.data.chains import Chains, operations
from thrifty.data.readers import read, require_columns
from thrifty.data.tasks import Problem

_log = logging.getLogger("thrifty")
EMBEDDED = Chains()
_QUESTIONS, _SLIPS = 64, 0.15


def balanced(rows: Sequence[Record], most: int | None, seed: int) -> list[Record]:
    """At most so many rows of each ``category``, drawn at random; all where there is no such column or limit."""
    if most is None or any("category" not in row for row in rows):
        return list(rows)
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(str(row["category"]), []).append(number)
    kept: list[int] = []
    for name, numbers in groups.items():
        order = torch.randperm(len(numbers), generator=generator(seed, "category", name))
        kept += [numbers[at] for at in order[:most].tolist()]
    return [rows[number] for number in sorted(kept)]


def read_teacher(file: str, questions: Sequence[Record]) -> list[list[str]]:
    """A teacher's answers from a file, for each question those that are there.

    Parameters
    ----------
    file
        Rows with ``prompt``, and ``completion`` or a list of ``answers``.
    questions
        With ``prompt``.

    Raises
    ------
    InputError
        When a column is missing, or no question has an answer.
    """
    records = read(file)
    require_columns(records, ["prompt"], file)
    many = any("answers" in row for row in records)
    require_columns(records, ["answers" if many else "completion"], file)
    found: dict[str, list[str]] = {}
    for row in records:
        found.setdefault(str(row["prompt"]), []).extend(row["answers"] if many else [row["completion"]])
    answers = [found.get(str(question["prompt"]), []) for question in questions]
    missing = sum(not of_it for of_it in answers)
    if missing == len(answers):
        raise InputError(f"{file} has no answer to any of the {len(answers)} questions: their prompts must be the same")
    if missing:
        _log.warning("the teacher has no answer to %d of %d questions", missing, len(answers))
    return answers


def embedded_questions(job: Job) -> list[Record]:
    """Chains of sums, with their number of operations as ``category``."""
    many = min(_QUESTIONS, job.inputs.limit or _QUESTIONS)
    problems = EMBEDDED.problems(many, derive_seed(job.run.seed, "questions"), "train")
    return [{**as_record(problem), "category": operations(problem)} for problem in problems]


def programmed_teacher(questions: Sequence[Record], samples: int, seed: int) -> list[list[str]]:
    """Answers of a program that writes steps and slips now and then, so that long chains are hard for it too."""
    draw = np.random.default_rng(derive_seed(seed, "teacher"))
    problems = [Problem(question["prompt"], question["answer"], question["id"]) for question in questions]
    return [[EMBEDDED.solution(problem, _SLIPS, draw) for _ in range(samples)] for problem in problems]
