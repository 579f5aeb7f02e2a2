"""How the command runs a method of the room: read, train, measure on labels, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.nets.picture_encoders import picture_encoder, save_encoder
from thrifty.nets.representations import effective_rank, feature_size, spread
from thrifty.represent.classifier_baselines import Plain
from thrifty.represent.classifier_method import ClassifierMethod, accuracies
from thrifty.represent.evaluation import few, measured
from thrifty.represent.pictures import Pictures, read_pictures, split_and_limit
from thrifty.represent.saving import save_classifier
from thrifty.represent.tasks import TASKS
from thrifty.represent.two_view_method import TwoViewMethod, projections

DEFAULT_LIMIT, DEFAULT_SIZE = 3000, 14


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        The encoder to train: ``resnet`` or ``vit``, small and new; a folder that thrifty saved; or the folder or hub id
        of a Hugging Face vision model.
    data
        ``fashion-mnist``, ``digits``, ``mnist``, ``letters``; a folder with a sub-folder of pictures for each class, or
        of pictures without classes; or an NPZ file with an array x, and y, test_x and test_y where there are some. By
        default ``fashion-mnist`` at 14 pixels, or ``digits`` where that can't be fetched.
    image_size
        Pixels a side to resize pictures to. By default as they are; those of a folder 32.
    width
        Channels of a new encoder's first stage; it gives four times as many features.
    limit
        Use at most so many pictures, evenly over the classes; all by default, 3000 of the default data.
    test_share
        Share held out for testing, where the data bring no split.
    labels_per_class
        Use the labels of so many training pictures per class only; all by default.
    """

    model: str = "resnet"
    data: str | None = None
    image_size: int | None = None
    width: int = 16
    limit: int | None = None
    test_share: float = 0.2
    labels_per_class: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "width", "limit", "labels_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, eq=False)
class Given:
    """A user's pictures, cut, with the rows whose labels may be used."""

    train: Pictures
    test: Pictures
    labelled: Tensor

    def encoder(self, inputs: Inputs) -> nn.Module:
        """A new one, or the user's."""
        _, channels, height, width = self.train.x.shape
        if height != width:
            raise InputError(f"the pictures are {height}x{width}, no squares: give --image-size")
        return picture_encoder(inputs.model, channels, height, inputs.width)


def given(inputs: Inputs, seed: int) -> Given:
    """Reads and cuts what the user gives.

    Raises
    ------
    InputError
        When it can't be read or cut.
    """
    size = inputs.image_size if inputs.image_size is not None or inputs.data else DEFAULT_SIZE
    limit = inputs.limit if inputs.limit is not None or inputs.data else DEFAULT_LIMIT
    data = split_and_limit(read_pictures(inputs.data or "", size), test_share=inputs.test_share, limit=limit, seed=seed)
    assert data.test is not None
    train, test = (data.take(rows.nonzero()[:, 0]) for rows in (~data.test, data.test))
    labelled = torch.arange(len(train.x)) if train.y is None else few(train.y, inputs.labels_per_class, seed)
    return Given(train, test, labelled)


def run(method: Any, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Trains an encoder or a classifier on pictures, and measures it on pictures that it has not seen.

    Raises
    ------
    InputError
        When the data or the encoder don't fit.
    """
    return _RUNS[method.kind](method, inputs, run)


def _two_views(method: TwoViewMethod, inputs: Inputs, run: Run) -> dict[str, Any]:
    data = given(inputs, run.seed)
    encoder = data.encoder(inputs)
    untrained = measured(encoder, data.train, data.test, data.labelled)
    started = time.perf_counter()
    learner = method.train(data.train.x, run, encoder)
    seconds = time.perf_counter() - started
    z = projections(learner, data.test.x)
    save_encoder(learner.encoder.eval(), run.directory / "encoder")
    paper: str = method.paper_id  # type: ignore[attr-defined]
    row = measured(learner.encoder, data.train, data.test, data.labelled)
    return {
        "table": [{"encoder": "untrained"} | untrained, {"encoder": paper} | row | {"seconds": seconds}],
        "projections": {"spread": float(spread(z)), "effective_rank": float(effective_rank(z))},
        "data": data.train.name,
        "pictures": {"train": len(data.train.x), "labelled": _labels(data), "test": len(data.test.x)},
        "encoder": str(run.directory / "encoder"),
    }


def _labels(data: Given) -> int:
    return 0 if data.train.y is None else len(data.labelled)


def _labelled(method: ClassifierMethod, inputs: Inputs, run: Run) -> dict[str, Any]:
    paper: str = method.paper_id  # type: ignore[attr-defined]
    data = given(inputs, run.seed)
    if data.train.y is None or data.test.y is None:
        raise InputError(
            f"{paper} learns from labels, and {data.train.name} has none: give a sub-folder per class, or y"
        )
    x, y, classes = data.train.x[data.labelled], data.train.y[data.labelled], data.train.classes
    rows: list[dict[str, Any]] = []
    for name, each in (("plain classifier", Plain.like(method)), (paper, method)):
        stage = run.stage(name.replace(" ", "-"))
        encoder = data.encoder(inputs)
        started = time.perf_counter()
        classifier = each.fit(x, y, stage, encoder, classes=len(classes))
        seconds = time.perf_counter() - started
        for way, accuracy in accuracies(classifier, data.test.x, data.test.y).items():
            rows.append({"classifier": name, "inference": way, "accuracy": accuracy, "training_seconds": seconds})
    features = feature_size(classifier.encoder, x[:2].to(run.device).float() / 127.5 - 1)
    save_classifier(classifier, method, features, classes, run.directory / "classifier")
    return {
        "table": rows,
        "data": data.train.name,
        "pictures": {"train": len(x), "test": len(data.test.x)},
        "classes": list(classes),
        "classifier": str(run.directory / "classifier"),
    }


# What a method learns from, to how that is read, trained, measured and saved.
_RUNS: Mapping[str, Callable[[Any, Inputs, Run], dict[str, Any]]] = {
    "two-views": _two_views,
    "labelled-pictures": _labelled,
}

ROOM = Room(inputs=Inputs, run=run, tasks=TASKS)
