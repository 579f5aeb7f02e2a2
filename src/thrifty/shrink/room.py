"""How the command runs a method of the room: read, measure, make smaller, measure again, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.shrink import architectures, language, search_tasks, trained, vision
from thrifty.shrink.base import Shrinker
from thrifty.shrink.picture_tasks import PICTURE_TASKS
from thrifty.shrink.tasks import TASKS


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        What is made smaller: a directory or hub id of a Hugging Face causal language model or image classifier, or a
        directory that thrifty saved. By default SmolLM2-135M-Instruct, or a small network for methods of classifiers.
    data
        Calibration text: a .txt file, records with a column ``text``, or the name of a text set. By default
        news articles (``bbc-news``). For classifiers: an image folder or an NPZ file with ``x`` and ``y``. For
        searches: pictures (``digits``, ``fashion-mnist``, a folder, an NPZ file), a table of metrics, or
        ``nas-bench-graph:cora``.
    test
        Text or pictures of the same form to measure on; by default a tenth of the text, or a fifth of the pictures,
        which is left out of the training.
    windows
        How many windows of text to calibrate on.
    window_length
        Tokens of a window, in calibration and in measuring.
    evaluate
        How many windows perplexity is measured on.
    problems
        Problems of arithmetic to ask before and after; none when 0.
    objective
        For searches in a table of metrics (``--data TABLE.csv``): its column with what architectures are worth, empty
        where that is not known yet, ``objective`` by default; or ``python:MODULE:FUNCTION``, called with a row.
    architectures
        For searches: how many architectures to draw from the space.
    candidate_epochs
        Passes over the pictures with which a candidate is trained to be compared.
    final_epochs
        Passes with which the one that was found is trained.
    train_pictures
        Most pictures to train candidates on; more are left out.
    """

    model: str | None = None
    data: str | None = None
    test: str | None = None
    windows: int = 128
    window_length: int = 256
    evaluate: int = 48
    problems: int = 40
    objective: str | None = None
    architectures: int = 100
    candidate_epochs: int = 4
    final_epochs: int = 16
    train_pictures: int = 2000

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")


_LEAST = {
    "windows": 1,
    "window_length": 2,
    "evaluate": 1,
    "problems": 0,
    "architectures": 1,
    "candidate_epochs": 1,
    "final_epochs": 1,
    "train_pictures": 8,
}


def run(method: Shrinker, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Makes a model smaller, and measures it before and after; it is saved to ``model`` in the run's directory."""
    return _RUNS[method.kind](method, inputs, run)


# What a method makes smaller, to how that is read, measured and saved.
_RUNS: Mapping[str, Callable[[Any, Any, Run], dict[str, Any]]] = {
    "language-model": language.run,
    "architectures": architectures.run,
    "classifier": vision.run,
    "trained": trained.run,
}

ROOM = Room(inputs=Inputs, run=run, tasks={**TASKS, **PICTURE_TASKS, **search_tasks.TASKS})
