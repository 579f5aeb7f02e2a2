"""The comparisons on few-shot episodes: every method of the room that can label them, whatever its kind."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod, Prototypes
from thrifty.adapt.few_shot_job import measured
from thrifty.adapt.generalised_em import paddle, soft_k_means
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.settings.letters import Training, few_shot_letters
from thrifty.adapt.transductive_clustering import TransductiveClustering, k_means, k_modes, laplacian_shot
from thrifty.core.errors import InputError
from thrifty.core.method import Task
from thrifty.core.run import Run
from thrifty.core.statistics import mean_interval

_BASE_CLASSES = 200  # that a head learns before an episode's, for those that calibrate new classes by old ones
_HEAD_EPISODES = 200  # a head takes one episode at a time, some a tenth of a second for each


@dataclass(frozen=True, eq=False)
class FewShotProblem:
    """Episodes to label, and others to learn from.

    Parameters
    ----------
    novel, validation
        Episodes of different classes.
    base
        Features and labels of classes that the encoder knows, for heads that learn classes one after another.
    directory
        Where learning is logged.
    """

    novel: Episodes
    validation: Episodes
    base: tuple[torch.Tensor, np.ndarray[Any, np.dtype[np.int64]]]
    directory: Path


def prepared(design: Design, count: int) -> Callable[[int, bool, Path], FewShotProblem]:
    """A function that makes a task's problem from letters of the world's scripts."""

    def prepare(seed: int, quick: bool, directory: Path) -> FewShotProblem:
        directory.mkdir(parents=True, exist_ok=True)
        found = few_shot_letters(0, Training.quick() if quick else None)
        drawn = [
            found.episodes(design, number, seed=seed, validation=validation)
            for number, validation in ((50 if quick else count, False), (20 if quick else 200, True))
        ]
        known = found.base[1] < _BASE_CLASSES
        return FewShotProblem(drawn[0], drawn[1], (found.base[0][known], found.base[1][known]), directory)

    return prepare


def evaluate(method: Any, problem: FewShotProblem) -> Mapping[str, float]:
    """Labels all episodes with a method of the room.

    Raises
    ------
    InputError
        When the method is of no kind that labels episodes.
    """
    if isinstance(method, FewShotMethod):
        solver, novel = method, method.ready(problem.novel)
        if method.learns:
            place = problem.directory / f"learning-{method.paper_id}"
            with Run(place, device="cpu", overwrite=place.exists()) as run:
                solver = method.learn(method.ready(problem.validation), run)
        return measured(solver, novel)
    if isinstance(method, StreamingHead):
        return _head(method, problem)
    raise InputError(f"{type(method).__name__} is neither a few-shot method nor a head")


def _head(method: StreamingHead, problem: FewShotProblem) -> Mapping[str, float]:
    """The first episodes' classes as new classes of a head that knows the base classes; only they can be chosen."""
    features, labels = problem.base
    known: StreamingHead = clone(method).partial_fit(features, labels)
    episodes, right = problem.novel.take(slice(0, _HEAD_EPISODES)), []
    first = int(labels.max()) + 1
    started = time.perf_counter()
    assert episodes.query_labels is not None
    for at in range(len(episodes)):
        head = copy.deepcopy(known).partial_fit(episodes.support[at], episodes.support_labels[at] + first)
        columns = np.searchsorted(head.classes_, np.arange(episodes.classes) + first)
        scores = torch.as_tensor(head.decision_function(episodes.query[at]))[:, torch.from_numpy(columns)]
        right.append(float((scores.argmax(1) == episodes.query_labels[at]).double().mean()))
    milliseconds = 1000 * (time.perf_counter() - started) / len(episodes)
    interval = mean_interval(right)
    return {"accuracy": interval.mean, "interval": (interval.high - interval.low) / 2, "milliseconds": milliseconds}


def _solved(method: FewShotMethod, problem: FewShotProblem) -> Mapping[str, float]:
    return measured(method, problem.novel)


def _task(summary: str, design: Design, count: int = 1000) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"features", "labels", "unlabeled"}),
        prepare=prepared(design, count),
        evaluate=evaluate,
        baselines={
            "prototypes": partial(_solved, Prototypes()),
            "soft k-means": partial(_solved, soft_k_means()),
            "PADDLE": partial(_solved, paddle()),
        },
        metrics=("accuracy", "-interval", "-milliseconds"),
        variants={
            "SLK-Means": partial(TransductiveClustering, prototype="mean"),
            "K-means": k_means,
            "K-modes": k_modes,
            "LaplacianShot": laplacian_shot,
        },
    )


FEW_SHOT_TASKS: Mapping[str, Task] = {
    "episodes-balanced": _task(
        "1,000 episodes of 5 Latin letters, one drawing of each and 75 queries, 15 of each letter; the encoder was "
        "trained on other scripts",
        Design(ways=5, shots=1, queries=75),
    ),
    "episodes-few-present": _task(
        "1,000 episodes of 20 Latin letters, one drawing of each and 40 queries that show only 5 of them; the encoder "
        "was trained on other scripts",
        Design(ways=20, shots=1, queries=40, present=5, balance="pooled"),
    ),
}
"""What ``thrifty compare adapt --task`` knows of episodes."""
