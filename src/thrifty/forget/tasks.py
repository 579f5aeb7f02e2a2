"""Problems on which ways of forgetting are compared: a class of small pictures and a small residual network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError
from thrifty.core.method import Task
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.data.images import images
from thrifty.forget.base import Forgetter, device_of, forget_with
from thrifty.forget.baselines import BadTeacher, FineTune, GradientAscent, Retrain
from thrifty.forget.data import Labelled, Source
from thrifty.forget.evaluate import evaluate, predict
from thrifty.forget.ssd import SSD
from thrifty.nets.vision import WEIGHTS, ResNet, ResNetConfig, load_net, pixels, save_net

METRICS = (
    "-test_forget_accuracy",
    "test_retain_accuracy",
    "-mia_gap",
    "-forget_kl",
    "-seconds",
    "-seconds_ratio",
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A trained classifier, what it must forget, and how well it did.

    Parameters
    ----------
    model
        Trained on everything.
    sets
        ``forget_set``, ``retain_set`` and ``full_set``, as methods ask for them.
    valid
        ``forget`` and ``retain`` examples that no training saw, for choosing settings.
    judged
        The sets that the final scores are taken on.
    retrained
        The model trained without the forget set, with the same recipe.
    retrain_seconds
        What that took.
    retrained_mia
        Its membership score.
    directory
        Where methods that train keep their run.
    seed
        Of those runs.
    """

    model: nn.Module
    sets: Mapping[str, Source]
    valid: Mapping[str, Source]
    judged: Mapping[str, Source]
    retrained: nn.Module
    retrain_seconds: float
    retrained_mia: float
    directory: Path
    seed: int

    def run(self) -> Run:
        """A run for one method, begun anew: its seconds are measured, so it goes on with nothing."""
        device = str(device_of(self.model))
        return Run(self.directory / "run", seed=self.seed, device=device, overwrite=True)


def fresh(config: ResNetConfig, seed: int) -> ResNet:
    """A network with new weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(config)


def class_problem(
    name: str, forgotten: int, seed: int, directory: Path, *, train: int, valid: int, test: int, epochs: float
) -> Problem:
    """The problem of forgetting one class of an image set; trained networks are kept in ``directory``.

    Parameters
    ----------
    name
        An image set of :func:`thrifty.data.images.images`.
    forgotten
        The class to forget.
    seed
        Of the choice of pictures, the weights and the order of training.
    directory
        Where the original and the retrained network are kept, and the run of a method.
    train, valid, test
        How many pictures to take for training, for choosing settings, and for the scores.
    epochs
        Passes over the training pictures.
    """
    data = images(name)
    if not 0 <= forgotten < len(data.classes):
        raise InputError(f"{name} has the classes 0 to {len(data.classes) - 1}, not {forgotten}")
    chosen = torch.randperm(len(data.train_x), generator=generator(seed, "forget", name))[: train + valid]
    everything = Labelled(pixels(data.train_x[chosen.numpy()]), torch.from_numpy(data.train_y[chosen.numpy()]))
    full = everything.rows(torch.arange(min(train, len(everything) - valid)))
    held_out = everything.rows(torch.arange(len(full), len(everything)))
    final = Labelled(pixels(data.test_x[:test]), torch.from_numpy(data.test_y[:test]))
    gone, kept = split(full, forgotten)
    judged: dict[str, Source] = {
        "forget": gone,
        "retain": kept.rows(torch.arange(min(len(kept), 2000))),
        "test": final,
        **dict(zip(("test_forget", "test_retain"), split(final, forgotten), strict=True)),
    }
    config = ResNetConfig(len(data.classes), stem_stride=1 if data.train_x.shape[1] < 16 else 2)
    recipe = Retrain(partial(fresh, config, seed), epochs=epochs, seed=seed)
    original, _ = _kept(directory / "original", recipe, full)
    retrained, seconds = _kept(directory / "retrained", recipe, kept)
    return Problem(
        original,
        {"forget_set": gone, "retain_set": kept, "full_set": full},
        dict(zip(("forget", "retain"), split(held_out, forgotten), strict=True)),
        judged,
        retrained,
        seconds,
        evaluate(retrained, {k: judged[k] for k in ("forget", "retain", "test")})["mia"],
        directory,
        seed,
    )


def split(data: Labelled, forgotten: int) -> tuple[Labelled, Labelled]:
    """The examples of a class, and all others."""
    assert data.y is not None
    inside = data.y == forgotten
    return data.rows(inside.nonzero()[:, 0]), data.rows((~inside).nonzero()[:, 0])


def _kept(directory: Path, recipe: Retrain, data: Source) -> tuple[nn.Module, float]:
    note = directory / "seconds.json"
    if not (note.exists() and (directory / WEIGHTS).exists()):
        with one_thread():
            started = time.process_time()
            net = recipe.train(data, torch.device("cpu"))
            seconds = time.process_time() - started
        save_net(net, directory)
        write_json(note, {"seconds": seconds})
    return load_net(directory), float(json.loads(note.read_text(encoding="utf-8"))["seconds"])


def scores(problem: Problem, model: nn.Module, seconds: float) -> dict[str, float]:
    """How a model stands after forgetting, beside the retrained one."""
    found = evaluate(model, problem.judged, reference=problem.retrained)
    return found | {
        "mia_gap": abs(found["mia"] - problem.retrained_mia),
        "seconds": seconds,
        "seconds_ratio": seconds / problem.retrain_seconds,
    }


def run_method(method: Forgetter, problem: Problem) -> dict[str, float]:
    """Runs a method on a problem, with its seconds.

    They are the processor's, on one thread: equal to those of the clock on a quiet machine, and steady on a busy one.
    """
    with one_thread(), problem.run() as run:
        started = time.process_time()
        model = forget_with(method, problem.model, problem.sets, run)
        return scores(problem, model, time.process_time() - started)


def choose(candidates: Sequence[Forgetter], problem: Problem, **stored: Any) -> Forgetter:
    """The setting that keeps most and forgets most on held-out training data.

    It has the largest accuracy on retained minus accuracy on forgotten examples; the first of equals.

    Parameters
    ----------
    candidates
        Settings of one method.
    problem
        The problem; its final sets are not looked at.
    stored
        What takes the place of a set, such as importances that all candidates share.
    """

    def merit(method: Forgetter) -> float:
        with problem.run() as run:
            model = forget_with(method, problem.model, {**problem.sets, **stored}, run)
        kept, gone = (predict(model, problem.valid[name]).correct.mean() for name in ("retain", "forget"))
        return float(kept - gone)

    with one_thread():
        return max(candidates, key=merit)


def digits(seed: int, quick: bool, directory: Path) -> Problem:
    """Forget the 3 of 8x8 digits."""
    return class_problem("digits", 3, seed, directory, train=1200, valid=230, test=360, epochs=6 if quick else 12)


def fashion(seed: int, quick: bool, directory: Path) -> Problem:
    """Forget one class of Fashion-MNIST, another for each seed."""
    size, epochs = (2000, 2) if quick else (5000, 10)
    return class_problem(
        "fashion-mnist", (3 + 3 * seed) % 10, seed, directory, train=size, valid=1500, test=4000, epochs=epochs
    )


def baselines() -> dict[str, Callable[[Problem], Mapping[str, float]]]:
    """What the room's methods are compared with, at default settings."""
    return {
        "original": lambda problem: scores(problem, problem.model, 0.0),
        "retrain": lambda problem: scores(problem, problem.retrained, problem.retrain_seconds),
        "fine-tune": lambda problem: run_method(FineTune(), problem),
        "gradient ascent": lambda problem: run_method(GradientAscent(), problem),
        "bad teacher": lambda problem: run_method(BadTeacher(learning_rate=1e-3), problem),
    }


def _task(summary: str, prepare: Callable[[int, bool, Path], Problem]) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"model", "classifier", "images", "labels", "forget-set", "retain-set"}),
        prepare=prepare,
        evaluate=run_method,
        baselines=baselines(),
        metrics=METRICS,
        variants={"lfssd": lambda: SSD(label_free=True)},
    )


TASKS: Mapping[str, Task] = {
    "digits-class": _task("forget the 3 of 8x8 digits, with a small residual network", digits),
    "fashion-mnist-class": _task("forget a class of Fashion-MNIST, with a small residual network", fashion),
}
