"""Classifiers of pictures on which the ways of making one smaller are compared, all in one budget of training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from thrifty.core.method import Task
from thrifty.nets.vision import ResNetConfig
from thrifty.shrink.group_baselines import CutThenTune, Dense, GroupLasso
from thrifty.shrink.hesso import HESSO
from thrifty.shrink.n2n import N2N
from thrifty.shrink.picture_problem import METRICS, PictureProblem, run_method, scores, trained
from thrifty.shrink.pictures import drawn


def pretrained(seed: int, quick: bool, directory: Path, *, name: str, sparsity: float = 0.5) -> PictureProblem:
    """A residual network that was trained, and is trained on while it becomes smaller."""
    large = name != "digits"
    sizes = (1000 if quick else 5000, 1500, 4000) if large else (1200, 230, 360)
    train, valid, test = drawn(name, seed, *sizes)
    config = ResNetConfig(10, stem_stride=2 if large else 1)
    model = trained(config, train, seed, directory / "model", 2 if quick else 8)
    epochs = 6.0
    recipe = {"sparsity": sparsity, "epochs": epochs, "learning_rate": 0.05, "momentum": 0.9}
    # CRIC's cycles are to fit into so short a training.
    recipe |= {"start_epoch": 0.5, "pruning_epochs": epochs / 3, "sampling_steps": 3 if quick else 10}
    return PictureProblem(model, train, valid, test, recipe | _search(model, sparsity, quick))


def _search(model: nn.Module, sparsity: float, quick: bool) -> dict[str, Any]:
    """How a search for another architecture is to go on; its student learns as long as the network and its pruning."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {
        # Of a layer between two others that lose this share of their channels, so much is left.
        "max_parameters": round((1 - sparsity) ** 2 * weights),
        "iterations": 2 if quick else 10,
        "removal_rate": 0.02,
        "shrinkage_rate": 0.02,
        "child_epochs": 1.0 if quick else 2.0,
        "child_rate": 3e-3,
        "examples": 300 if quick else 1000,
        "fewest_channels": 4,
        "student_epochs": 4.0 if quick else 14.0,
    }


def _task(name: str, sparsity: float) -> Task:
    return Task(
        summary=f"a small residual network, trained on {name}, without {sparsity:.0%} of its groups of channels",
        gives=frozenset({"classifier", "model"}),
        prepare=partial(pretrained, name=name, sparsity=sparsity),
        evaluate=run_method,
        baselines={
            "magnitude": partial(run_method, CutThenTune(at=0)),
            "random": partial(run_method, CutThenTune(at=0, by="random")),
            "group lasso": partial(run_method, GroupLasso()),
            "trained on": partial(run_method, Dense()),
            "dense": lambda problem: scores(problem, problem.model, 0.0),
        },
        metrics=METRICS,
        axes=("gflops", "accuracy"),
        # A search needs the teacher's pictures too, as do those for other architectures, which need no model.
        variants={
            "hesso-cric": lambda: HESSO(cric=True, max_cycles=2),
            "n2n": lambda: N2N(scale="log2", constraint="relaxed"),
        },
    )


PICTURE_TASKS: Mapping[str, Task] = {
    "digits": _task("digits", 0.5),
    "fashion-mnist": _task("fashion-mnist", 0.5),
    "fashion-mnist-small": _task("fashion-mnist", 0.8),
}
