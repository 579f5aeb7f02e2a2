"""The baselines that every method on logged answers is measured beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from thrifty.align.base import Training
from thrifty.align.topr import TOPR
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class SFT:
    r"""Supervised fine-tuning on answers worth more than a threshold: :math:`-\frac1N\sum_t \log\pi(y_t|y_{<t})`.

    Parameters
    ----------
    threshold
        Answers with a ``reward`` at or below it are left out; without a reward column all are kept.
    """

    training: ClassVar[Training] = Training()
    mean_over: ClassVar[Literal["answers", "tokens"]] = "tokens"

    threshold: float = 0.0

    def prepare(self, data: Sequences) -> Sequences:
        """Keeps the good answers.

        Raises
        ------
        InputError
            When there is none.
        """
        if "reward" not in data.columns:
            return data
        good = (data["reward"] > self.threshold).nonzero()[:, 0]
        if not len(good):
            raise InputError(f"no answer has a reward above {self.threshold:g}: there is nothing to learn from")
        return data.select(good)

    def loss(self, model: nn.Module, batch: Sequences) -> Loss:
        """Mean negative log-likelihood of the batch's response tokens."""
        return Loss(-token_logps(model, batch).sum() / batch.response_mask.sum().clamp(min=1))


def naive_reinforce() -> TOPR:
    """REINFORCE that takes logged answers for its own: every ratio is 1, so bad answers are pushed without end."""
    return TOPR(negative_limits=(1.0, 1.0))


def truncated_importance_sampling() -> TOPR:
    """Off-policy REINFORCE with the ratio truncated to [0, 1] for good and bad answers alike."""
    return TOPR(positive_limits=(0.0, 1.0))
