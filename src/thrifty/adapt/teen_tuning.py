"""How much a new class should lean on the base classes, found out on base classes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thrifty.adapt.accumulator import as_labels
from thrifty.adapt.evaluation import run_stream
from thrifty.adapt.protocols import few_shot_incremental
from thrifty.adapt.teen import TEEN
from thrifty.core.errors import InputError

BASE_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


def choose_base_weight(
    X: Any,
    y: Any,
    *,
    shots: int = 5,
    new_share: float = 0.25,
    weights: Sequence[float] = BASE_WEIGHTS,
    tau: float = 16.0,
    draws: int = 5,
    seed: int = 0,
) -> float:
    """The ``base_weight`` with the best harmonic mean when some base classes are treated as if they were new.

    Half of each class's examples, but no fewer than ``shots``, are learnt, and the others tested. An encoder trained on
    all base classes knows the pretended new ones better than real ones, so the choice leans towards small weights.

    Parameters
    ----------
    X
        Features of base examples ``[N, D]``.
    y
        Labels ``[N]``.
    shots
        Examples of each pretended new class, as few as the real ones will have.
    new_share
        Share of the classes in (0, 1) that are pretended to be new, at least one.
    weights
        What to choose among; of equally good ones the first is taken.
    tau
        As for :class:`thrifty.adapt.teen.TEEN`.
    draws
        How many times classes are drawn.
    seed
        Of the draws.

    Raises
    ------
    InputError
        When there are fewer than two classes, or one has no more than ``shots`` examples.
    """
    labels = as_labels(y)
    classes, counts = np.unique(labels, return_counts=True)
    new = max(round(new_share * len(classes)), 1)
    if new >= len(classes):
        raise InputError(f"{len(classes)} classes with {new} of them new leave no base class: give more classes")
    if counts.min() <= shots:
        scarce = classes[counts.argmin()].item()
        raise InputError(f"class {scarce!r} has {counts.min()} examples: {shots} shots and one to test need more")
    scores = np.zeros(len(weights))
    for draw in range(draws):
        random = np.random.default_rng((seed, draw))
        order = random.permutation(len(labels))
        learnt: list[int] = []
        for name, count in zip(classes, counts, strict=True):
            learnt += order[labels[order] == name][: max(count // 2, shots)].tolist()
        train = np.zeros(len(labels), dtype=bool)
        train[learnt] = True
        stream = few_shot_incremental(
            X[train],
            labels[train],
            X[~train],
            labels[~train],
            len(classes) - new,
            way=new,
            shots=shots,
            seed=seed * draws + draw,
        )
        for place, weight in enumerate(weights):
            scores[place] += run_stream(TEEN(tau=tau, base_weight=weight), stream).harmonic_mean
    return float(weights[int(scores.argmax())])
