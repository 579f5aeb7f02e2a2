"""How fast a model relearns what it forgot: knowledge that was only hidden is back within a few steps."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled
from thrifty.forget.base import check_finite, cross_entropy, device_of, trainable
from thrifty.forget.data import as_source, stream
from thrifty.forget.evaluate import predict

_SAMPLE = 512  # examples on which the accuracy is followed


@dataclass(frozen=True)
class Relearned:
    """How long relearning took.

    Parameters
    ----------
    steps
        Optimizer steps until the accuracy was back; the most that were allowed where it was not.
    seconds
        Of the processor, in those steps.
    accuracy
        On the forget set, from 0 to 1, at the end.
    back
        Whether the accuracy came back.
    """

    steps: int
    seconds: float
    accuracy: float
    back: bool


@dataclass(frozen=True)
class Relearning:
    r"""Trains a model on the forget set until it is as accurate there as the original was.

    .. math::
        \min \{ t : \mathrm{accuracy}_{D_f}(\theta_t) \ge \mathrm{accuracy}_{D_f}(\theta_\mathrm{original}) - \epsilon
        \}

    The goal is the number of steps of the model retrained without the forget set, not the largest number. Training is
    Adam's, in evaluation mode: on the forget set alone, the statistics of batch normalisation would drift.

    Parameters
    ----------
    learning_rate
        Of Adam.
    tolerance
        How far below the original's accuracy counts as back, from 0 to 1.
    most_steps
        Where to give up, at least 1.
    batch_size
        Examples in a batch.
    seed
        Of the order.

    Raises
    ------
    InputError
        When a setting is out of its range.

    References
    ----------
    The relearn time of: Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv 2205.08096; there in
    epochs, here in steps, which small forget sets need.
    """

    learning_rate: float = 1e-4
    tolerance: float = 0.02
    most_steps: int = 200
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate:g}")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance must be from 0 to below 1, not {self.tolerance:g}")
        if self.most_steps < 1 or self.batch_size < 1:
            raise InputError(
                f"most_steps and batch_size must be at least 1, not {self.most_steps} and {self.batch_size}"
            )

    def measure(self, model: nn.Module, forget_set: Any, original: nn.Module) -> Relearned:
        """How long a copy of the model takes; the model given stays as it is.

        Parameters
        ----------
        model
            The model that has forgotten: a classifier or a causal language model.
        forget_set
            What it forgot, with labels.
        original
            The model before.

        Raises
        ------
        InputError
            When the forget set is empty or has no labels, or no parameter has a gradient.
        NonFiniteError
            When the loss becomes NaN or infinite.
        """
        source = as_source(forget_set, "forget set")
        sample = next(stream(source, _SAMPLE, shuffle=self.seed))
        pupil, device = copy.deepcopy(model).eval(), device_of(model)
        optimizer = torch.optim.Adam(trainable(pupil).values(), lr=self.learning_rate)
        order = Shuffled(len(source), self.batch_size, self.seed)
        target = _accuracy(original, sample) - self.tolerance
        reached, steps, seconds = _accuracy(pupil, sample), 0, 0.0
        while reached < target and steps < self.most_steps:
            started = time.process_time()
            loss = cross_entropy(pupil, source.rows(order(steps)).to(device))
            check_finite(loss, f"the loss of relearning at step {steps}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            seconds += time.process_time() - started
            steps += 1
            reached = _accuracy(pupil, sample)
        return Relearned(steps, seconds, reached, reached >= target)


def _accuracy(model: nn.Module, data: Any) -> float:
    return float(predict(model, data, name="forget set").correct.mean())
