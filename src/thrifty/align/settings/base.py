"""What settings share: problems are dealt out, decoders learn on the CPU, and of several the best is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from thrifty.align.base import Objective, Training
from thrifty.align.training import train
from thrifty.core.run import Run
from thrifty.lm.sequences import Sequences, from_rows

Choice = TypeVar("Choice")
Model = TypeVar("Model")
Problem = TypeVar("Problem")


def split(problems: Sequence[Problem], draw: torch.Generator, *sizes: int) -> list[list[Problem]]:
    """Shuffled problems in parts of the given sizes, and the rest."""
    order = [problems[place] for place in torch.randperm(len(problems), generator=draw).tolist()]
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size])
        start += size
    return [*parts, order[start:]]


def examples(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], pad: int, **columns: Sequence[float]) -> Sequences:
    """Prompts and answers in tokens as sequences to learn from.

    Parameters
    ----------
    pairs
        Of each row, the prompt and the answer with its end.
    pad
        Token that fills the space behind an answer.
    columns
        Of each, a number for every row.
    """
    rows = [([*asked, *said], [False] * len(asked) + [True] * len(said)) for asked, said in pairs]
    return from_rows(rows, pad_id=pad, row_columns=columns)


def budget(rate: float, epochs: float, rows: int = 64, **others: Any) -> Training:
    """So many epochs of batches that go through the model whole.

    Parameters
    ----------
    rate, epochs, others
        The learning rate, and more settings of :class:`~thrifty.align.base.Training`.
    rows
        In a batch.
    """
    return Training(learning_rate=rate, epochs=epochs, batch_size=rows, micro_batch_size=rows, **others)


def cpu_run(directory: Path, seed: int) -> Run:
    """A run on the CPU, in full precision, in place of what is there."""
    return Run(directory, seed=seed, device="cpu", dtype="float32", overwrite=True)


def taught(
    model: Model, method: Objective, data: Any, training: Training, directory: Path, seed: int, **online: Any
) -> Model:
    """The model itself, trained in a run of its own.

    Parameters
    ----------
    model, method, data, training
        See :func:`thrifty.align.training.train`.
    directory, seed
        Of the run.
    online
        What training on a model's own answers takes: ``reward``, ``sampling``, ``tokenizer``.
    """
    with cpu_run(directory, seed) as run:
        train(model, method, data, run, training, save_every=None, **online)
    return model


def best(
    choices: Iterable[Choice], learn: Callable[[Choice], Model], score: Callable[[Model], float]
) -> tuple[Choice, Model]:
    """The choice (a learning rate, say) whose model scores highest, and that model; the first of equals.

    Parameters
    ----------
    choices
        What there is to choose from.
    learn
        Makes the model of a choice.
    score
        Of a model on development data.
    """
    found: tuple[Choice, Model] | None = None
    highest = -math.inf
    for choice in choices:
        model = learn(choice)
        reached = score(model)
        if found is None or reached > highest:
            found, highest = (choice, model), reached
    assert found is not None
    return found
