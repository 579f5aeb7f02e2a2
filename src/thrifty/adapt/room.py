"""What the room tells the command: the user's inputs, how a method runs on them, and the comparisons there are."""

from __future__ import annotations

from typing import Any

from thrifty.adapt.few_shot import FewShotMethod
from thrifty.adapt.few_shot_job import run_few_shot
from thrifty.adapt.few_shot_tasks import FEW_SHOT_TASKS
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.inputs import Inputs
from thrifty.adapt.stream_job import run_head
from thrifty.adapt.stream_tasks import STREAM_TASKS
from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run


def run(method: Any, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Runs a method of the room in the way of its kind.

    Raises
    ------
    InputError
        When the method is of no kind that the room knows, or the inputs don't fit.
    """
    if isinstance(method, StreamingHead):
        return run_head(method, inputs, run)
    if isinstance(method, FewShotMethod):
        return run_few_shot(method, inputs, run)
    # A method that learns no stream (a decision rule, say) shows itself in its own way.
    if hasattr(method, "demonstrate"):
        found: dict[str, Any] = method.demonstrate(inputs, run)
        return found
    raise InputError(f"{type(method).__name__} is no head on features that learns a stream")


ROOM = Room(inputs=Inputs, run=run, tasks={**STREAM_TASKS, **FEW_SHOT_TASKS})

__all__ = ["ROOM", "Inputs", "run"]
