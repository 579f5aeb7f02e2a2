"""From a user's rows to scored steps: scores that stand in the rows, or a process reward model's."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.data.records import Records, require_columns
from thrifty.reward.base import score
from thrifty.reward.models import ProcessModel
from thrifty.reward.rewarded import Given
from thrifty.reward.step_format import StepFormat
from thrifty.reward.steps import StepRewards
from thrifty.reward.sums import sums
from thrifty.reward.verifiers import verifier


def scored_steps(given: Given, run: Run) -> tuple[StepRewards, Float[Tensor, " B"]]:
    """The step scores of each row, and whether its answer is right (1 or 0).

    Rows hold ``step_scores`` (a list of numbers), or ``prompt`` and ``completion`` for a process reward model; and
    ``correct``, or ``answer`` for a verifier. Without data, embedded sums.

    Raises
    ------
    InputError
        When a column is missing or a value of the wrong kind: the row is named.
    """
    if given.data is None:
        if given.model is not None:
            raise InputError("a model without responses to score: give --data with prompt and completion")
        data = sums(seed=run.seed)
    else:
        data = given.data
    if given.model is None:
        require_columns(data, ["step_scores"], data.source)
        scores = [_floats(value, data.source, number) for number, value in enumerate(data["step_scores"], start=1)]
        steps = StepRewards.from_lists(scores, truncated=_truncated(data))
    else:
        steps = _by_model(data, given, run)
    return steps, torch.tensor(_correct(data, given))


def _by_model(data: Records, given: Given, run: Run) -> StepRewards:
    require_columns(data, ["prompt", "completion"], data.source)
    options = given.options
    form = StepFormat(options["separator"], options["step_token"], options["good_token"], options["bad_token"])
    model = ProcessModel.load(str(given.model), format=form, output="probability", device=run.device, dtype=run.dtype)
    return model.steps(data["prompt"], data["completion"], truncated=_truncated(data))


def _truncated(data: Records) -> list[bool] | None:
    if "truncated" not in data.columns:
        return None
    return [bool(_flag(value, "truncated", data.source, at)) for at, value in enumerate(data["truncated"], start=1)]


def _correct(data: Records, given: Given) -> list[float]:
    if "correct" in data.columns:
        return [_flag(value, "correct", data.source, at) for at, value in enumerate(data["correct"], start=1)]
    if "answer" not in data.columns:
        raise InputError(
            f"{data.source} has neither correct (1 or 0) nor answer for a verifier: it has {', '.join(data.columns)}"
        )
    require_columns(data, ["completion"], data.source)
    prompts = data["prompt"] if "prompt" in data.columns else [""] * len(data)
    further = {
        name: data[name]
        for name in data.columns
        if name not in ("prompt", "completion", "completions", "prompts", "completion_ids")
        and all(name in row for row in data)
    }
    return (
        (score(verifier(given.options["verifier"]), prompts, data["completion"], columns=further) >= 1).float().tolist()
    )


def _flag(value: Any, name: str, source: str, row: int) -> float:
    words = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise InputError(f"{source}: row {row} has {name} {value!r}, expected 1 or 0 (true or false)")
    return found


def _floats(value: Any, source: str, row: int) -> list[float]:
    if isinstance(value, str):  # CSV has no lists
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{source}: row {row} has step_scores {value!r}, expected a list [0.9, 0.4]") from error
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{source}: row {row} has step_scores {value!r}, expected a list with a number for each step")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise InputError(f"{source}: row {row} has the step score {number!r}, expected a finite number")
    return [float(number) for number in value]
