"""Decoders on which the ways of making one smaller are compared, all at one sparsity."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.core.method import Task
from thrifty.core.run import pick_dtype
from thrifty.core.seeding import generator
from thrifty.data.text import texts
from thrifty.lm.load import load_lm
from thrifty.shrink.base import Shrinker, scratch_run, shrink_with, with_settings
from thrifty.shrink.baselines import CutUnits, Magnitude, SparseGPT, Wanda
from thrifty.shrink.calibration import windows_of
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP
from thrifty.shrink.measure import measured, perplexity, removed
from thrifty.shrink.small_decoder import Bytes, small_decoder, test_prose, train_prose
from thrifty.shrink.training import Windows

MODEL, NEWS = "smollm2-135m-instruct", "bbc-news"
METRICS = ("-perplexity", "accuracy", "removed", "-parameters", "-gflops", "-milliseconds", "-seconds")


@dataclass(frozen=True, eq=False)
class Problem:
    """A decoder, what to calibrate it on, and what it is judged by.

    Parameters
    ----------
    model
        The dense model.
    windows
        Calibration text.
    valid
        Text that no final score is taken on, for choosing settings (see :func:`best_of`).
    test
        Text that perplexity is measured on.
    sparsity
        What all methods remove.
    tokenizer
        ``None`` where no problems are asked.
    problems
        How many.
    recipe
        Settings of methods that train: they learn the calibration text, and share of groups is what they remove.
    """

    model: Any
    windows: Tensor
    valid: Tensor
    test: Tensor
    sparsity: float
    tokenizer: Any = None
    problems: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)


def scores(problem: Problem, model: Any, seconds: float) -> dict[str, float]:
    """How a model stands: perplexity on held-out text, right answers, what is gone, size and speed."""
    found = measured(model, problem.test, problem.tokenizer, problem.problems)
    del found["sparsity"]  # a share of what is left, while removed is one of the dense model
    return found | {"removed": removed(problem.model, model), "seconds": seconds}


def run_method(method: Any, problem: Problem) -> dict[str, float]:
    """Runs a method at the problem's sparsity; its seconds are those of the clock."""
    started = time.perf_counter()
    model = shrunk(method, problem)
    return scores(problem, model, time.perf_counter() - started)


def best_of(methods: Sequence[Any], problem: Problem) -> dict[str, float]:
    """Runs each of several settings, and scores the one whose model says the text held out for choosing best."""
    found = []
    for method in methods:
        started = time.perf_counter()
        model = shrunk(method, problem)
        seconds = time.perf_counter() - started
        found.append((perplexity(model, problem.valid), seconds, model))
    _, seconds, model = min(found, key=lambda one: one[0])
    return scores(problem, model, seconds)


def evaluate(method: Any, problem: Problem) -> dict[str, float]:
    """One method, or the best of several settings of one."""
    return best_of(method, problem) if isinstance(method, tuple) else run_method(method, problem)


def shrunk(method: Any, problem: Problem) -> Any:
    """The model that a method makes at the problem's sparsity."""
    at = with_settings(method, {"sparsity": problem.sparsity, **problem.recipe})
    given = {"windows": problem.windows, "training": Windows(problem.windows)}
    with scratch_run() as run:
        return shrink_with(at, problem.model, given, run)


def small(seed: int, quick: bool, directory: Path, *, sparsity: float = 0.3) -> Problem:
    """A small decoder of bytes."""
    model = small_decoder(directory / "model", seed, 100 if quick else 600)
    draw = generator(seed, "shrink", "small")

    def cut(found: list[str], count: int) -> Tensor:
        return windows_of(found, Bytes(), count, 64, draw)

    held = test_prose()
    return Problem(
        model, cut(train_prose(), 32), cut(held[::2], 16), cut(held[1::2], 32), sparsity, recipe=_recipe(1e-3, 20)
    )


def smollm2(
    seed: int,
    quick: bool,
    directory: Path,
    *,
    sparsity: float = 0.3,
    windows: int = 64,
    length: int = 256,
    test: int = 48,
    problems: int = 60,
) -> Problem:
    """SmolLM2-135M-Instruct, calibrated on news articles and judged on others; each seed takes other windows."""
    del directory
    model, tokenizer = load_lm(MODEL, dtype=pick_dtype("auto", torch.device("cpu")))
    news = texts(NEWS)
    draw = generator(seed, "shrink", "smollm2")
    if quick:
        windows, test, problems = 8, 8, min(problems, 8)
    held = list(news.test_texts)
    calibration = windows_of(list(news.train_texts), tokenizer, windows, length, draw)
    valid, final = (windows_of(held[part::2], tokenizer, test // 2 or 1, length, draw) for part in (0, 1))
    return Problem(model, calibration, valid, final, sparsity, tokenizer, problems, _recipe(1e-4, 2))


def _recipe(learning_rate: float, epochs: float) -> dict[str, Any]:
    """How methods that train are to train on a language model's text."""
    return {
        "variant": "adamw",
        "learning_rate": learning_rate,
        "weight_decay": 0.01,
        "batch_size": 4,
        "epochs": epochs,
        "start_epoch": epochs / 8,
        "pruning_epochs": epochs / 2,
    }


def for_claim(seed: int, quick: bool, directory: Path, *, sparsity: float) -> Problem:
    """What the claims on language models are measured on: SmolLM2 without questions, or the small decoder if quick."""
    if quick:
        return small(seed, quick, directory, sparsity=sparsity)
    return smollm2(seed, quick, directory, sparsity=sparsity, windows=32, problems=0)


Arms = dict[str, Callable[[Problem], Mapping[str, float]]]


def arms_of(methods: Mapping[str, Shrinker]) -> Arms:
    """What to compare: each method at the problem's sparsity, and the dense model."""
    found: Arms = {name: partial(run_method, method) for name, method in methods.items()}
    return found | {"dense": lambda problem: scores(problem, problem.model, 0.0)}


def baselines() -> Arms:
    """What the room's methods for language models are compared with."""
    return arms_of(
        {
            "magnitude": Magnitude(),
            "wanda": Wanda(),
            "sparsegpt": SparseGPT(),
            "wanda-sp": CutUnits(),
            "magnitude-sp": CutUnits(by="magnitude"),
        }
    )


def _task(summary: str, prepare: Callable[[int, bool, Path], Problem], metrics: tuple[str, ...] = METRICS) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"language-model", "model", "text"}),
        prepare=prepare,
        evaluate=evaluate,
        baselines=baselines(),
        metrics=metrics,
        axes=("gflops", "perplexity"),
        variants={
            "flap ul-um": lambda: FLAP(structure="ul-um"),
            "dsnot magnitude": lambda: DSnoT(initial="magnitude"),
            "dsnot falling": lambda: DSnoT(accept="falling"),
            "dsnot, accept chosen": lambda: (DSnoT(), DSnoT(accept="falling"), DSnoT(accept="same-sign")),
        },
    )


TASKS: Mapping[str, Task] = {
    "smollm2": _task("SmolLM2-135M-Instruct without 30% of the weights of its layers", smollm2),
    "smollm2-half": _task(
        "SmolLM2-135M-Instruct without 50% of the weights of its layers", partial(smollm2, sparsity=0.5)
    ),
    "small-decoder": _task(
        "a small decoder of bytes without 30% of the weights of its layers",
        small,
        tuple(name for name in METRICS if name != "accuracy"),
    ),
}
