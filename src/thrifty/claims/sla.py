"""Joint labels of class and rotation beat rotations as augmentation, rotations as a second task, and none."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from thrifty.claims.harness import Claim, Condition
from thrifty.represent.classifier_baselines import DataAugmentation, MultiTask, Plain
from thrifty.represent.classifier_method import ClassifierMethod, Inference
from thrifty.represent.problems import Problem, picture_problem, train_classifier
from thrifty.represent.sla import SLA

# Two settings for each arm, chosen among by accuracy on other training pictures.
_RATES = (0.03, 0.1)
_EPOCHS, _BATCH, _WIDTH = 80.0, 50, 16

Scores = Mapping[str, Mapping[str, float]]


def _prepare(seed: int, quick: bool, directory: Path) -> Problem:
    return picture_problem(
        "fashion-mnist",
        seed,
        directory,
        size=14,
        train=200 if quick else 500,
        valid=300 if quick else 1000,
        test=500 if quick else 4000,
        width=_WIDTH,
        settings={"labelled-pictures": {"epochs": 5.0 if quick else _EPOCHS}},
    )


@functools.lru_cache(maxsize=16)
def _runs(method: ClassifierMethod, problem: Problem, stretch: float = 1.0) -> Sequence[tuple[Scores, Scores]]:
    """Scores on the validation and the test pictures at each rate; arms that differ only by inference share them."""
    epochs = stretch * problem.settings["labelled-pictures"]["epochs"]
    settings = {"epochs": epochs, "batch_size": _BATCH}
    return [train_classifier(replace(method, learning_rate=rate, **settings), problem) for rate in _RATES]


def _best(method: ClassifierMethod, problem: Problem, way: Inference, stretch: float = 1.0) -> Mapping[str, float]:
    found = _runs(method, problem, stretch)
    accuracy = [valid[way]["accuracy"] for valid, _ in found]
    return found[accuracy.index(max(accuracy))][1][way]


_JOINT, _DISTILLED = SLA(distill=False), SLA()

CLAIM = Claim(
    paper_id="sla",
    says=(
        "Learning the class and the rotation of a picture as one joint label is better than not using rotations, than "
        "rotations as augmentation and than rotations as a second task; one pass of a distilled head keeps most of it."
    ),
    setting=(
        "A residual network of 77 thousand weights on Fashion-MNIST at 14x14: 500 labelled pictures, 800 steps of 50, "
        "all turned four ways. "
        "Every arm chooses one of two learning rates on 1,000 other pictures and is measured on 4,000. The plain "
        "classifier is also given four times the steps, which is the work of the others. Seconds are the processor's, "
        "on one thread."
    ),
    prepare=_prepare,
    arms={
        "sla+ag": lambda problem: _best(_JOINT, problem, "aggregate"),
        "sla+sd": lambda problem: _best(_DISTILLED, problem, "distilled"),
        "sla+si": lambda problem: _best(_JOINT, problem, "single"),
        "plain": lambda problem: _best(Plain(), problem, "single"),
        "plain, 4 times the steps": lambda problem: _best(Plain(), problem, "single", 4.0),
        "data augmentation": lambda problem: _best(DataAugmentation(), problem, "single"),
        "data augmentation, aggregated": lambda problem: _best(DataAugmentation(), problem, "aggregate"),
        "multi-task": lambda problem: _best(MultiTask(), problem, "single"),
    },
    metrics=["accuracy", "knn_accuracy", "-seconds"],
    conditions=[
        Condition("accuracy", "sla+ag", "plain"),
        Condition("accuracy", "sla+ag", "plain, 4 times the steps"),
        Condition("accuracy", "sla+ag", "sla+si"),
        Condition("accuracy", "sla+ag", "data augmentation, aggregated"),
        Condition("accuracy", "sla+sd", "plain"),
        Condition("accuracy", "sla+si", "data augmentation"),
        Condition("accuracy", "sla+si", "multi-task"),
    ],
    seeds=3,
    tried=(
        "1,000 labelled pictures in batches of 128 and a network of half the width, 280 steps at one rate: the joint "
        "labels were not learnt yet (loss 1.6), and SLA+AG was behind the plain classifier (0.724 against 0.742), "
        "SLA+SD level with it (0.744); augmentation and the second task were far behind (0.618 and 0.654)."
    ),
)
