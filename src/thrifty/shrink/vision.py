"""A classifier of the user's: read with its pictures, measured before and after, saved."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from thrifty.core.atomic import room_on_disk, write_json
from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.data.images import images
from thrifty.nets.chain import ChainNet, vgg
from thrifty.nets.vision import CONFIG, pixels, save_net
from thrifty.shrink.base import Shrinker, shrink_with
from thrifty.shrink.candidates import initialised
from thrifty.shrink.classifiers import Classifier, load_classifier
from thrifty.shrink.picture_measure import measured
from thrifty.shrink.pictures import Pictures
from thrifty.shrink.storing import save_shrunk
from thrifty.shrink.surgery_attributes import shrunk

_HELD_OUT = 0.2
_EMBEDDED = 400


class Inputs(Protocol):
    """The room's inputs, as far as classifiers go."""

    @property
    def model(self) -> str | None: ...
    @property
    def data(self) -> str | None: ...
    @property
    def test(self) -> str | None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A classifier with its pictures.

    Parameters
    ----------
    classifier
        The model.
    train, valid, test
        For training, for choosing, and for the final numbers.
    """

    classifier: Classifier
    train: Pictures
    valid: Pictures
    test: Pictures


def run(method: Shrinker, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Makes a classifier smaller, and measures it before and after.

    Parameters
    ----------
    method
        A method for classifiers; its ``needs`` are among ``train`` and ``valid``.
    inputs
        The user's model and pictures.
    run
        Where the smaller model goes.
    """
    given = _given(inputs, run)
    model = given.classifier.model
    before = measured(model, given.test)
    started = time.perf_counter()
    smaller = shrink_with(method, model, {"train": given.train, "valid": given.valid}, run)
    seconds = time.perf_counter() - started
    after = measured(smaller, given.test)
    save_classifier(given.classifier, smaller, run.directory / "model")
    return {
        "table": [{"model": "before"} | before, {"model": "after"} | after | {"seconds": seconds}],
        "model": str(run.directory / "model"),
        "removed": 1 - after["parameters"] / before["parameters"],
        "pictures": {name: len(getattr(given, name)) for name in ("train", "valid", "test")},
    }


def save_classifier(classifier: Classifier, model: nn.Module, directory: Path) -> None:
    """Saves a model so that the directory appears only when it is whole; an older one is replaced."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    config: Any = getattr(model, "config", None)
    ours = hasattr(model, "config_class") and dataclasses.is_dataclass(config)
    with room_on_disk(directory):
        shutil.rmtree(temporary, ignore_errors=True)
        if ours and shrunk(model) is None:
            save_net(model, temporary)
        else:
            save_shrunk(model, temporary)
            if ours:
                # What it was before the cut, so that it loads without that.
                write_json(temporary / CONFIG, {"net": type(model).__name__, **dataclasses.asdict(config)})
        if classifier.processor is not None:
            classifier.processor.save_pretrained(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)


def _given(inputs: Inputs, run: Run) -> Given:
    if inputs.model is None:
        if inputs.data is not None or inputs.test is not None:
            raise InputError("pictures without a model: give --model, the classifier that was trained on them")
        return _digits(run)
    if inputs.data is None:
        raise InputError("a classifier without its pictures: give --data, an image folder or an NPZ file with x and y")
    classifier = load_classifier(inputs.model, run)
    draw = generator(run.seed, "shrink", "pictures")
    train, held = classifier.read(inputs.data).split(_HELD_OUT, draw)
    if inputs.test is not None:
        return Given(classifier, train, held, classifier.read(inputs.test))
    valid, test = held.split(0.5, draw)
    return Given(classifier, train, valid, test)


def _digits(run: Run) -> Given:
    """A chain of four convolutions, trained on 8x8 digits."""
    data = images("digits")
    train, test = (
        Pictures(pixels(x), torch.from_numpy(y)) for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    )
    train, valid = train.split(_HELD_OUT, generator(run.seed, "shrink", "pictures"))
    config = vgg(len(data.classes), size=(8, 8), widths=(24, 48), depth=2)
    net = initialised(lambda: ChainNet(config), run.seed)
    learn(net, train, epochs=10, seed=run.seed)
    classifier = Classifier(net.to(run.device), data.classes)
    save_classifier(classifier, net, run.directory / "original")
    # A thousand children learn from few pictures in minutes.
    return Given(classifier, train.part(torch.arange(_EMBEDDED)), valid, test)


def learn(net: nn.Module, train: Pictures, *, epochs: int, seed: int, peak: float = 3e-3, batch_size: int = 64) -> None:
    """Trains a small network on labels in seconds: AdamW in one cycle.

    Parameters
    ----------
    net
        Changed in place, and then in evaluation mode.
    train
        The pictures.
    epochs
        Passes over them.
    seed
        Of the order.
    peak
        Largest learning rate.
    batch_size
        Pictures in a batch.
    """
    order = Shuffled(len(train), batch_size, seed, last="drop")
    steps = epochs * order.per_epoch
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    net.train()
    with one_thread():
        for step in range(steps):
            rows = order(step)
            loss = nn.functional.cross_entropy(net(train.inputs(rows)), train.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
