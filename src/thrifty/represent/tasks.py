"""The comparisons of the room: pictures of which some have labels, learnt from with and without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thrifty.core.method import Task
from thrifty.represent.classifier_baselines import DataAugmentation, IndependentEnsemble, MultiTask, Plain
from thrifty.represent.directpred import DirectPred
from thrifty.represent.problems import (
    Problem,
    at_problem,
    encoder_scores,
    picture_problem,
    train_classifier,
    train_two_views,
)
from thrifty.represent.sla import SLA
from thrifty.represent.two_view_baselines import BYOL, SimSiam

METRICS = ("accuracy", "knn_accuracy", "-seconds")


def _two_views(method: Any, problem: Problem) -> dict[str, float]:
    _, test = train_two_views(method, problem)
    return {name: test[name] for name in ("accuracy", "knn_accuracy", "seconds")}


def _labelled(method: Any, problem: Problem) -> dict[str, float]:
    _, test = train_classifier(method, problem)
    return next(iter(test.values()))


_RUNS: Mapping[str, Callable[[Any, Problem], dict[str, float]]] = {
    "two-views": _two_views,
    "labelled-pictures": _labelled,
}


def evaluate(method: Any, problem: Problem) -> dict[str, float]:
    """Trains a method, with what suits the problem's data.

    Returns
    -------
    dict
        ``accuracy`` on the test pictures (a linear probe's where features are learnt without labels), ``knn_accuracy``
        and the processor's ``seconds``.
    """
    return _RUNS[method.kind](at_problem(method, problem), problem)


def _untrained(problem: Problem) -> dict[str, float]:
    return encoder_scores(problem.encoder(), problem, problem.test) | {"seconds": 0.0}


def _digits(seed: int, quick: bool, directory: Path) -> Problem:
    settings: dict[str, dict[str, Any]] = {
        "two-views": {"epochs": 4.0 if quick else 40.0, "views": "drawing"},
        "labelled-pictures": {"epochs": 8.0 if quick else 100.0, "flip": 0.0, "batch_size": 50},
    }
    return picture_problem(
        "digits", seed, directory, size=None, train=1200, valid=100, test=360, labels_per_class=20, settings=settings
    )


def _fashion(seed: int, quick: bool, directory: Path) -> Problem:
    settings: dict[str, dict[str, Any]] = {
        "two-views": {"epochs": 1.0 if quick else 20.0},
        "labelled-pictures": {"epochs": 2.0 if quick else 60.0, "batch_size": 50},
    }
    return picture_problem(
        "fashion-mnist",
        seed,
        directory,
        size=14,
        train=1000 if quick else 4000,
        valid=100,
        test=2000,
        labels_per_class=50,
        settings=settings,
    )


BASELINES: Mapping[str, Callable[[Problem], Mapping[str, float]]] = {
    "untrained encoder": _untrained,
    "byol": lambda problem: evaluate(BYOL(), problem),
    "byol, linear predictor": lambda problem: evaluate(BYOL(head="linear"), problem),
    "simsiam": lambda problem: evaluate(SimSiam(), problem),
    "plain classifier": lambda problem: evaluate(Plain(), problem),
    "data augmentation": lambda problem: evaluate(DataAugmentation(), problem),
    "multi-task": lambda problem: evaluate(MultiTask(), problem),
    "independent ensemble": lambda problem: evaluate(IndependentEnsemble(), problem),
}


def _task(summary: str, prepare: Callable[[int, bool, Path], Problem]) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"images", "labels", "unlabeled"}),
        prepare=prepare,
        evaluate=evaluate,
        baselines=BASELINES,
        metrics=METRICS,
        variants={
            "directpred, code's spectrum": lambda: DirectPred(spectrum="relative"),
            "directcopy": lambda: DirectPred(rule="directcopy", eps=0.3),
            "sla, half turns": lambda: SLA(transformations="rotation2"),
        },
        axes=("-seconds", "accuracy"),
    )


TASKS: Mapping[str, Task] = {
    "fashion-mnist": _task("4,000 pieces of clothing at 14x14, of which 50 per class have labels", _fashion),
    "digits": _task("1,200 digits of 8x8, of which 20 per class have labels", _digits),
}
