"""Pictures of which few have labels, and how a method is trained and measured on them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.nets.representations import effective_rank, spread
from thrifty.nets.self_supervised import Augment
from thrifty.represent.classifier_method import ClassifierMethod, accuracies
from thrifty.represent.evaluation import few, measured
from thrifty.represent.pictures import Pictures, read_pictures
from thrifty.represent.two_view_method import TwoViewMethod, projections


@dataclass(frozen=True, eq=False)
class Problem:
    """What all arms of a seed share.

    Parameters
    ----------
    train
        Pictures to learn from.
    labelled
        Rows of those whose labels may be used.
    valid
        Pictures for choosing settings, which no final number is taken on.
    test
        Pictures for the final numbers.
    directory
        Where the run of an arm is kept while it lasts.
    seed
        Of weights and orders.
    width
        Of the encoder.
    settings
        Fields by kind of method, in place of its own: what suits the data, such as the number of passes.
    """

    train: Pictures
    labelled: Tensor
    valid: Pictures
    test: Pictures
    directory: Path
    seed: int
    width: int = 8
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def encoder(self) -> nn.Module:
        """A new one, the same for all arms of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return picture_encoder("resnet", self.train.x.shape[1], self.train.x.shape[2], self.width)


def picture_problem(
    name: str,
    seed: int,
    directory: Path,
    *,
    size: int | None,
    train: int,
    valid: int,
    test: int,
    labels_per_class: int | None = None,
    width: int = 8,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Problem:
    """A problem of an image set that brings a split; each seed draws other training and validation pictures.

    Parameters
    ----------
    name
        A set of :func:`thrifty.represent.pictures.read_pictures`.
    seed, directory, width, settings
        See :class:`Problem`.
    size
        Pixels a side, ``None`` for the pictures' own.
    train, valid, test
        How many pictures of each.
    labels_per_class
        How many of the training pictures have labels; all when not given.
    """
    data = read_pictures(name, size)
    assert data.y is not None
    assert data.test is not None
    inside, outside = (rows.nonzero()[:, 0] for rows in (~data.test, data.test))
    drawn = inside[torch.randperm(len(inside), generator=generator(seed, "represent", name))[: train + valid]]
    learnt, chosen = data.take(drawn[valid:]), data.take(drawn[:valid])
    assert learnt.y is not None
    labelled = few(learnt.y, labels_per_class, seed)
    return Problem(learnt, labelled, chosen, data.take(outside[:test]), directory, seed, width, settings or {})


def at_problem(method: Any, problem: Problem) -> Any:
    """A method with what suits the problem's data."""
    return dataclasses.replace(method, **problem.settings.get(method.kind, {}))


def _run(problem: Problem) -> Run:
    return Run(problem.directory / "run", seed=problem.seed, device="cpu", overwrite=True)


def train_two_views(
    method: TwoViewMethod, problem: Problem, augment: Augment | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Trains an encoder without labels, and measures it; views are made by ``augment``, or by the method's recipe.

    Returns
    -------
    tuple
        Scores on the validation pictures, and on the test pictures: ``accuracy`` of a linear probe and
        ``knn_accuracy`` on the labelled pictures; ``spread`` and ``effective_rank`` of the projections; ``seconds``.
    """
    started = time.process_time()
    with one_thread(), _run(problem) as run:
        learner = method.train(problem.train.x, run, problem.encoder(), augment=augment, save_every=None)
        seconds = time.process_time() - started
        valid, test = (encoder_scores(learner.encoder, problem, part) for part in (problem.valid, problem.test))
        z = projections(learner, problem.test.x)
    like = {"spread": float(spread(z)), "effective_rank": float(effective_rank(z)), "seconds": seconds}
    return valid | like, test | like


def encoder_scores(encoder: nn.Module, problem: Problem, part: Pictures) -> dict[str, float]:
    """``accuracy`` of a linear probe and ``knn_accuracy``, on one part of the problem."""
    found = measured(encoder, problem.train, part, problem.labelled)
    return {"accuracy": found["probe_accuracy"], "knn_accuracy": found["knn_accuracy"]}


def train_classifier(
    method: ClassifierMethod, problem: Problem
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Trains a classifier on the labelled pictures, and measures each of its ways of inference.

    Returns
    -------
    tuple
        Scores on the validation and on the test pictures: way of inference to ``accuracy``, ``knn_accuracy`` (of the
        encoder's features) and ``seconds``.
    """
    assert problem.train.y is not None
    x, y = problem.train.x[problem.labelled], problem.train.y[problem.labelled]
    started = time.process_time()
    with one_thread(), _run(problem) as run:
        classes = len(problem.train.classes)
        classifier = method.fit(x, y, run, problem.encoder(), classes=classes, save_every=None)
        seconds = time.process_time() - started
        parts = []
        for part in (problem.valid, problem.test):
            assert part.y is not None
            found = accuracies(classifier, part.x, part.y)
            near = encoder_scores(classifier.encoder, problem, part)["knn_accuracy"]
            parts.append(
                {way: {"accuracy": right, "knn_accuracy": near, "seconds": seconds} for way, right in found.items()}
            )
    return parts[0], parts[1]


def best_of(
    candidates: Mapping[Any, Callable[[], tuple[dict[str, float], dict[str, float]]]],
) -> dict[str, float]:
    """The test scores of the candidate with the best validation accuracy; ties go to the first."""
    found = [measure() for measure in candidates.values()]
    accuracy = [valid["accuracy"] for valid, _ in found]
    return found[accuracy.index(max(accuracy))][1]
