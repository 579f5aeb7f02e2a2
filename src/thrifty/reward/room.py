"""How the command runs a method of the room: read, score, write ``rewards.jsonl``, say what the rewards come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.data.readers import read
from thrifty.data.records import write_jsonl
from thrifty.reward.rewarded import Given, RewardMethod
from thrifty.reward.steps import BLANK_LINE, LINE


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    data
        Responses to score, as JSONL, Parquet, CSV or a saved ``datasets`` directory: with ``step_scores`` (a list of
        numbers), or ``prompt`` and ``completion`` for ``--model``; and with ``correct`` (1 or 0), or ``answer`` for
        the verifier. A column ``truncated`` marks responses that were cut off. By default embedded multi-step sums.
    model
        A process reward model that scores the steps: a directory or hub id of a token classifier, or of a causal
        language model that says one of two tokens after each step.
    verifier
        What judges answers where the data have no ``correct``: ``math``, ``exact``, ``number``, ``choice``,
        ``regex:PATTERN``, ``task:NAME``, ``python:module:function`` ...
    separator
        What ends a step of a response: a ``blank-line`` or a ``line``.
    step_token
        The model's own separator, which takes the place of the response's when the model reads it.
    good_token
        What a causal language model says after a good step.
    bad_token
        What it says after a bad one.
    limit
        Score the first so many rows; all by default.
    """

    data: str | None = None
    model: str | None = None
    verifier: str = "math"
    separator: Literal["blank-line", "line"] = "blank-line"
    step_token: str | None = None
    good_token: str = "+"  # noqa: S105  (a word of a language model)
    bad_token: str = "-"  # noqa: S105
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1, not {self.limit}")


def run(method: RewardMethod, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Scores rows with a method of the room, and writes ``rewards.jsonl`` into the run's directory."""
    data = None if inputs.data is None else read(inputs.data)
    if data is not None and inputs.limit is not None:
        data = data[: inputs.limit]
    options = {
        "verifier": inputs.verifier,
        "separator": {"blank-line": BLANK_LINE, "line": LINE}[inputs.separator],
        "step_token": inputs.step_token,
        "good_token": inputs.good_token,
        "bad_token": inputs.bad_token,
    }
    rewarded = method.rewards(Given(data, inputs.model, options), run)
    file = write_jsonl(run.directory / "rewards.jsonl", rewarded.rows, overwrite=True)
    return {"table": rewarded.table, "rewards": str(file), "rows": len(rewarded.rows), **rewarded.summary}


ROOM = Room(inputs=Inputs, run=run, tasks={})
