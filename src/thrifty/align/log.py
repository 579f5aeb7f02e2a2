"""Logged answers with their scores, read from a user's file or from the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from thrifty.core.errors import InputError
from thrifty.data.readers import read, require_columns
from thrifty.data.tasks import Problem
from thrifty.lm.records import from_records
from thrifty.lm.sequences import Sequences

EMBEDDED_LOG = "arithmetic"
INSTRUCTION = " Answer in one short sentence."
LONGEST_ANSWER = 32  # tokens, in the embedded log


def embedded_log() -> Path:
    """The log of SmolLM2-135M-Instruct's own answers to small arithmetic problems."""
    return Path(str(files("thrifty.align"))) / "arithmetic.jsonl"


def as_logged(problems: Sequence[Problem]) -> list[Problem]:
    """Problems in the words in which the embedded log asked them."""
    return [replace(problem, prompt=problem.prompt + INSTRUCTION) for problem in problems]


def read_log(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward: str = "reward",
    max_length: int = 1024,
    limit: int | None = None,
    optional: Sequence[str] = (),
) -> Sequences:
    """Logged answers with their scores as sequences.

    Parameters
    ----------
    source
        A file or directory that :func:`thrifty.data.readers.read` reads, or ``arithmetic``.
    tokenizer
        Of the model that is trained.
    reward
        The column of the scores.
    max_length
        In tokens.
    limit
        Only the first so many.
    optional
        Further columns of numbers or booleans to keep, where the records have them.

    Raises
    ------
    InputError
        For a missing column, or a score that is no finite number (the record is named).
    """
    records = read(embedded_log() if source == EMBEDDED_LOG else source)
    require_columns(records, ["prompt", "completion", reward], source)
    rows = list(records)[:limit]
    group = _groups(rows)
    scored = []
    for number, row in enumerate(rows, start=1):
        score = row[reward]
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(
                f"{source}: {reward} of record {number} is {score!r}: give a finite number, or leave the record out"
            )
        scored.append({**row, "reward": float(score), "group": group[number - 1]})
    further = [name for name in optional if any(name in row for row in rows[:1])]
    return from_records(scored, tokenizer, max_length=max_length, columns=("reward", "group", *further))


def _groups(rows: list[dict[str, Any]]) -> list[int]:
    """The number of each record's prompt, in order of first appearance."""
    seen: dict[str, int] = {}
    return [seen.setdefault(str(row["prompt"]), len(seen)) for row in rows]
