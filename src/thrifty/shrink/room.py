"""How the command runs a method of the room: read, measure, make smaller, measure again, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.shrink import language
from thrifty.shrink.base import Shrinker
from thrifty.shrink.tasks import TASKS


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        What is made smaller: a directory or hub id of a Hugging Face causal language model, or a directory that thrifty
        saved. By default SmolLM2-135M-Instruct.
    data
        Calibration text: a .txt file, records with a column ``text``, or the name of a text set. By default
        news articles (``bbc-news``).
    test
        Text of the same form on which perplexity is measured; by default a tenth of the data, which is left out
        of the calibration.
    windows
        How many windows of text to calibrate on.
    window_length
        Tokens of a window, in calibration and in measuring.
    evaluate
        How many windows perplexity is measured on.
    problems
        Problems of arithmetic to ask before and after; none when 0.
    """

    model: str | None = None
    data: str | None = None
    test: str | None = None
    windows: int = 128
    window_length: int = 256
    evaluate: int = 48
    problems: int = 40

    def __post_init__(self) -> None:
        for name, least in (("windows", 1), ("window_length", 2), ("evaluate", 1), ("problems", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")


def run(method: Shrinker, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Makes a model smaller, and measures it before and after; it is saved to ``model`` in the run's directory."""
    return _RUNS[method.kind](method, inputs, run)


# What a method makes smaller, to how that is read, measured and saved.
_RUNS: Mapping[str, Callable[[Any, Any, Run], dict[str, Any]]] = {"language-model": language.run}

ROOM = Room(inputs=Inputs, run=run, tasks=TASKS)
