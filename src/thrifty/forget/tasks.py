"""The comparisons of the room: problems, what each is measured by, and what methods are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thrifty.core.method import Task
from thrifty.forget import author_problem, skills
from thrifty.forget.base import Forgetter
from thrifty.forget.baselines import BadTeacher, FineTune, GradientAscent
from thrifty.forget.laf import LAF
from thrifty.forget.npo import NPO
from thrifty.forget.picture_problems import digits, fashion, fashion_random, fashion_subclass, fashion_vit
from thrifty.forget.problems import METRICS, Problem, run_method, scores
from thrifty.forget.relearning import Relearning
from thrifty.forget.ssd import SSD

# Relearning has no better side: the goal is that of the retrained model, as it is for accuracy where what is
# forgotten is like what is kept.
_CLASS = (*METRICS, "relearn_steps")
_ALIKE = ("-forget_gap", "test_accuracy", "-mia_gap", "-forget_kl", "-seconds", "-seconds_ratio", "relearn_steps")
Prepare = Callable[[int, bool, Path], Problem]


def _simple(run: Callable[[Forgetter, Any], Mapping[str, float]]) -> dict[str, Callable[[Any], Mapping[str, float]]]:
    """What one would do without the room's methods, as a task runs it."""
    return {
        "fine-tune": lambda problem: run(FineTune(), problem),
        "gradient ascent": lambda problem: run(GradientAscent(), problem),
        "bad teacher": lambda problem: run(BadTeacher(learning_rate=1e-3), problem),
    }


def baselines() -> dict[str, Callable[[Problem], Mapping[str, float]]]:
    """What the room's methods are compared with, at default settings."""
    return {
        "original": lambda problem: scores(problem, problem.model, 0.0),
        "retrain": lambda problem: scores(problem, problem.retrained, problem.retrain_seconds),
        **_simple(run_method),
    }


def _task(summary: str, prepare: Prepare, metrics: Sequence[str], axes: tuple[str, str]) -> Task:
    def with_relearning(seed: int, quick: bool, directory: Path) -> Problem:
        return dataclasses.replace(prepare(seed, quick, directory), relearning=Relearning())

    return Task(
        summary=summary,
        gives=frozenset({"model", "classifier", "images", "labels", "forget-set", "retain-set"}),
        prepare=with_relearning,
        evaluate=run_method,
        baselines=baselines(),
        metrics=metrics,
        variants={"lfssd": lambda: SSD(label_free=True), "laf+r": lambda: LAF(repair_epochs=1.0)},
        axes=axes,
    )


def _class_task(summary: str, prepare: Prepare) -> Task:
    return _task(summary, prepare, _CLASS, ("-test_forget_accuracy", "test_retain_accuracy"))


def _alike_task(summary: str, prepare: Prepare) -> Task:
    return _task(summary, prepare, _ALIKE, ("-forget_gap", "test_accuracy"))


def _authors(seed: int, quick: bool, directory: Path) -> author_problem.AuthorProblem:
    return author_problem.author_problem(author_problem.SMALL if quick else author_problem.REAL, seed, directory)


def _author_task() -> Task:
    return Task(
        summary="forget fictitious authors that SmolLM2 was taught (with --quick, a small decoder)",
        gives=frozenset({"model", "language-model", "text", "forget-set", "retain-set"}),
        prepare=_authors,
        evaluate=author_problem.run_method,
        baselines={
            "original": lambda problem: problem.marks(problem.model) | {"seconds": 0.0},
            "retrain": lambda problem: problem.marks(problem.retained) | {"seconds": problem.retained_seconds},
            **_simple(author_problem.run_method),
        },
        metrics=author_problem.METRICS,
        variants={
            "npo+rt": lambda: NPO(retain="grad-diff"),
            "npo+kl": lambda: NPO(retain="kl"),
            "ga+rt": lambda: NPO(kind="ga", retain="grad-diff"),
            "dpo+rt": lambda: NPO(kind="dpo", retain="grad-diff"),
            "idk+rt": lambda: NPO(kind="idk", retain="grad-diff"),
        },
        axes=("-forget_probability", "model_utility"),
    )


TASKS: Mapping[str, Task] = {
    "authors": _author_task(),
    "digits-class": _class_task("forget the 3 of 8x8 digits, with a small residual network", digits),
    "fashion-mnist-class": _class_task("forget a class of Fashion-MNIST, with a small residual network", fashion),
    "fashion-mnist-class-vit": _class_task("forget a class of Fashion-MNIST, with a small ViT", fashion_vit),
    "fashion-mnist-subclass": _alike_task(
        "forget one kind of shoe where Fashion-MNIST's classes are merged into five, with a small residual network",
        fashion_subclass,
    ),
    "fashion-mnist-random": _alike_task(
        "forget a random tenth of the training pictures of Fashion-MNIST, with a small residual network", fashion_random
    ),
    "skill": skills.TASK,
}
