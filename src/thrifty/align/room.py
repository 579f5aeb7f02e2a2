"""How the command runs a method of the room: load, measure, let the method train, measure again, save."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from thrifty.align.arithmetic import ARITHMETIC
from thrifty.align.job import Inputs, Job
from thrifty.core.method import Room
from thrifty.core.run import Run


class Method(Protocol):
    """What the command asks of a method: the data it takes when none are given, and its work on a job.

    One that needs another kind of job (another kind of model, say) has a method ``job(inputs, run)`` that makes it.
    """

    embedded: ClassVar[str]

    def work(self, job: Job) -> dict[str, Any]:
        """Trains ``job.model``; returns the summary: its ``table`` is shown, the rest is kept."""
        ...


def run(method: Method, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Lets a method of the room train a model.

    The trained model is saved to ``model`` in the run's directory and loads with ``from_pretrained``.
    """
    own = getattr(method, "job", None)
    job = own(inputs, run) if own is not None else Job(inputs, run, method.embedded)
    summary = method.work(job)
    return {**summary, "model": job.save()}


ROOM = Room(inputs=Inputs, run=run, tasks={"arithmetic": ARITHMETIC}, parallel=True)
