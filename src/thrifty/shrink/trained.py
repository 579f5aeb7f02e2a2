"""A model that is trained while it is made smaller: a classifier of pictures, new or trained, or a language model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed, generator
from thrifty.data.fetch import fetch
from thrifty.data.image_files import LabelledImages, read_images
from thrifty.data.images import images
from thrifty.nets.vision import ResNet, ResNetConfig, is_net, pixels
from thrifty.shrink import language
from thrifty.shrink.classifiers import Classifier, architecture_of, load_classifier
from thrifty.shrink.picture_measure import measured
from thrifty.shrink.pictures import Pictures
from thrifty.shrink.train_once import TrainOnce
from thrifty.shrink.vision import save_classifier
from thrifty.shrink.zero_groups import construct_subnet, output_difference

_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Given:
    """A classifier with its pictures.

    Parameters
    ----------
    classifier
        The model.
    train, test
        For training, and for the numbers before and after.
    """

    classifier: Classifier
    train: Pictures
    test: Pictures


def run(method: TrainOnce, inputs: language.Inputs, run: Run) -> dict[str, Any]:
    """Trains a model smaller, and measures it before and after.

    Parameters
    ----------
    method
        A method that trains.
    inputs
        The user's model, and the pictures or text to train it on. Without a model a small residual network is trained
        from new weights, on the user's pictures or on 8x8 digits.
    run
        Where the smaller model goes.
    """
    if inputs.model is not None and _speaks(inputs.model):
        return language.run(method, inputs, run)
    given = _given(inputs, run)
    before = measured(given.classifier.model, given.test)
    started = time.perf_counter()
    trained, groups = method.train(given.classifier.model, given.train, run)
    smaller = construct_subnet(trained, groups).eval()
    seconds = time.perf_counter() - started
    after = measured(smaller, given.test)
    save_classifier(given.classifier, smaller, run.directory / "model")
    return {
        "table": [{"model": "before"} | before, {"model": "after"} | after | {"seconds": seconds}],
        "model": str(run.directory / "model"),
        "removed": 1 - after["parameters"] / before["parameters"],
        "groups": len(groups),
        "zero_groups": float((groups.squared_norms() == 0).float().mean()),
        "output_difference": output_difference(trained, smaller, groups),
        "pictures": {"train": len(given.train), "test": len(given.test)},
    }


def _speaks(name: str) -> bool:
    """Whether the model is a causal language model."""
    folder = fetch(name)
    return not is_net(folder) and architecture_of(folder, name).endswith(("ForCausalLM", "LMHeadModel"))


def _given(inputs: language.Inputs, run: Run) -> Given:
    if inputs.model is not None:
        if inputs.data is None:
            raise InputError("a model without its pictures: give --data, an image folder or an NPZ file with x and y")
        classifier = load_classifier(inputs.model, run)
        return _split(classifier, classifier.read(inputs.data), inputs.test, classifier.read, run)
    if inputs.data is None:
        if inputs.test is not None:
            raise InputError("--test without --data: give the pictures to train on too")
        data = images("digits")
        train, test = (
            Pictures(pixels(x), torch.from_numpy(y))
            for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y))
        )
        return Given(Classifier(_fresh(len(data.classes), data.train_x.shape[1:], run), data.classes), train, test)
    found = read_images(fetch(inputs.data))
    classifier = Classifier(_fresh(len(found.classes), found.x.shape[1:], run), found.classes)
    return _split(classifier, _numbered(found), inputs.test, classifier.read, run)


def _numbered(found: LabelledImages) -> Pictures:
    return Pictures(found.x, torch.from_numpy(found.y), pixels)


def _split(
    classifier: Classifier, data: Pictures, test: str | None, read: Callable[[str], Pictures], run: Run
) -> Given:
    if test is not None:
        return Given(classifier, data, read(test))
    return Given(classifier, *data.split(_HELD_OUT, generator(run.seed, "shrink", "pictures")))


def _fresh(classes: int, shape: tuple[int, ...], run: Run) -> ResNet:
    """A small residual network with new weights for pictures [H, W] or [H, W, 3]."""
    if classes < 2:
        raise InputError("the pictures are all of one class: give those of others too")
    config = ResNetConfig(classes, channels=1 if len(shape) == 2 else 3, stem_stride=1 if shape[0] < 16 else 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(run.seed, "fresh") % 2**31)
        return ResNet(config).to(run.device)
