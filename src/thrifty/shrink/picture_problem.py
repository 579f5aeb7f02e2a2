"""A problem of making a classifier of pictures smaller, how a method is run on it, and how well it did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.nets.vision import ResNet, ResNetConfig, load_net, save_net
from thrifty.shrink.base import scratch_run, shrink_with, with_settings
from thrifty.shrink.picture_measure import measured
from thrifty.shrink.pictures import Pictures, accuracy, drawn
from thrifty.shrink.train_once import TrainOnce
from thrifty.shrink.vision import learn
from thrifty.shrink.zero_groups import construct_subnet, output_difference

METRICS = ("accuracy", "removed", "-parameters", "-gflops", "-milliseconds", "-seconds")
EXACT_METRICS = (*METRICS, "zero_groups", "-output_difference")


@dataclass(frozen=True, eq=False)
class PictureProblem:
    """A classifier, what it is trained on, and what it is judged by.

    Parameters
    ----------
    model
        With trained weights, or with new ones.
    train, valid, test
        For training, for choosing settings, and for the final numbers.
    recipe
        Settings that all methods take which have them: sparsity and training.
    """

    model: nn.Module
    train: Pictures
    valid: Pictures
    test: Pictures
    recipe: Mapping[str, Any] = field(default_factory=dict)


def scores(problem: PictureProblem, model: nn.Module, seconds: float) -> dict[str, float]:
    """How a model stands: right answers on held-out pictures, size and speed."""
    found = measured(model, problem.test)
    before = sum(parameter.numel() for parameter in problem.model.parameters())
    return found | {"removed": 1 - 1e6 * found["parameters"] / before, "seconds": seconds}


def run_method(method: Any, problem: PictureProblem) -> dict[str, float]:
    """Runs a method on a problem, on one thread, with the processor's seconds."""
    given = {"training": problem.train, "train": problem.train, "valid": problem.valid}
    with one_thread(), scratch_run() as run:
        started = time.process_time()
        model = shrink_with(with_settings(method, problem.recipe), problem.model, given, run)
        return scores(problem, model, time.process_time() - started)


def train_once(method: TrainOnce, problem: PictureProblem) -> dict[str, float]:
    """The same for a method that trains, with how exact it was.

    ``zero_groups`` is the share of groups that are zero, ``output_difference`` that between the trained model and the
    one without them.
    """
    with one_thread(), scratch_run() as run:
        started = time.process_time()
        trained, groups = with_settings(method, problem.recipe).train(problem.model, problem.train, run)
        smaller = construct_subnet(trained, groups).eval()
        seconds = time.process_time() - started
        return scores(problem, smaller, seconds) | {
            "valid_accuracy": accuracy(smaller, problem.valid),
            "zero_groups": float((groups.squared_norms() == 0).float().mean()),
            "output_difference": output_difference(trained, smaller, groups),
        }


def best_of(candidates: Sequence[TrainOnce], problem: PictureProblem) -> dict[str, float]:
    """The setting that is right most often on pictures held out for choosing; the first of equals.

    Its ``seconds`` are those of its own training.
    """
    found = [train_once(method, problem) for method in candidates]
    return max(found, key=lambda scored: scored["valid_accuracy"])


def fresh(config: ResNetConfig, seed: int) -> ResNet:
    """A residual network with new weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "fresh") % 2**31)
        return ResNet(config)


def trained(config: ResNetConfig, data: Pictures, seed: int, directory: Path, epochs: int) -> nn.Module:
    """A residual network that has learnt some pictures; kept in ``directory``."""
    if not (directory / "config.json").exists():
        net = fresh(config, seed)
        learn(net, data, epochs=epochs, seed=seed)
        save_net(net, directory)
    return load_net(directory)


def from_scratch(seed: int, quick: bool, directory: Path, *, sparsity: float) -> PictureProblem:
    """A residual network with new weights on 8x8 digits."""
    del directory
    train, valid, test = drawn("digits", seed, 1200, 230, 360)
    model = fresh(ResNetConfig(10, width=8), seed)
    recipe = {"sparsity": sparsity, "epochs": 3.0 if quick else 10.0, "drops": 1, "batch_size": 32}
    return PictureProblem(model, train, valid, test, recipe)
