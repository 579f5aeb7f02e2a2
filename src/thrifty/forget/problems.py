"""A problem of forgetting, how a method is run on it, and how well it did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from thrifty.core.run import Run
from thrifty.core.threads import one_thread
from thrifty.forget.base import Forgetter, device_of, forget_with
from thrifty.forget.data import Source
from thrifty.forget.evaluate import evaluate, predict
from thrifty.forget.relearning import Relearning

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
        ``forget`` and ``retain`` examples that no training saw, for choosing settings. Of a random subset there are no
        further examples to forget, and it is the subset itself.
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
    retrained_forget
        Its accuracy on the forget set; with it, ``forget_gap`` is scored.
    relearning
        How to measure relearning; not measured when ``None``.
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
    retrained_forget: float | None = None
    relearning: Relearning | None = None

    def run(self) -> Run:
        """A run for one method, begun anew: its seconds are measured, so it goes on with nothing."""
        device = str(device_of(self.model))
        return Run(self.directory / "run", seed=self.seed, device=device, overwrite=True)


def scores(problem: Problem, model: nn.Module, seconds: float) -> dict[str, float]:
    """How a model stands after forgetting, beside the retrained one."""
    found = evaluate(model, problem.judged, reference=problem.retrained)
    found |= {
        "mia_gap": abs(found["mia"] - problem.retrained_mia),
        "seconds": seconds,
        "seconds_ratio": seconds / problem.retrain_seconds,
    }
    if problem.retrained_forget is not None:
        found["forget_gap"] = abs(found["forget_accuracy"] - problem.retrained_forget)
    if problem.relearning is not None:
        with one_thread():
            again = problem.relearning.measure(model, problem.sets["forget_set"], problem.model)
        found |= {"relearn_steps": float(again.steps), "relearn_seconds": again.seconds}
    return found


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
