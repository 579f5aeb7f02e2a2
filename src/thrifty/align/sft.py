"""The baselines that every method on logged answers is measured beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from thrifty.align.base import NothingToLearnError, Objective
from thrifty.align.nll import Level, token_weights, weighted_nll
from thrifty.align.topr import TOPR
from thrifty.core.loop import Loss
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class SFT(Objective):
    r"""Supervised fine-tuning: :math:`-\sum_{it} w_{it} \log\pi(y_{it}) / \sum_{it} w_{it}`.

    Parameters
    ----------
    threshold
        Answers with a ``reward`` at or below it are left out; without a reward column all are kept.
    level
        ``token``: the mean over all tokens; ``sequence``: every answer counts the same.
    reduction
        ``mean`` over a step's weights, as above, or their ``sum``, without the division.
    """

    threshold: float = 0.0
    level: Level = "token"
    reduction: Literal["mean", "sum"] = "mean"

    def prepare(self, data: Sequences) -> Sequences:
        """Keeps the good answers; a column ``weight`` (of each answer or token) is used, 1 where there is none.

        Raises
        ------
        NothingToLearnError
            When there is none.
        """
        if "reward" in data.columns:
            good = (data["reward"] > self.threshold).nonzero()[:, 0]
            if not len(good):
                raise NothingToLearnError(
                    f"no answer has a reward above {self.threshold:g}: there is nothing to learn from"
                )
            data = data.select(good)
        if "weight" in data.columns:
            return data
        return data.with_columns(weight=data.response_mask.float())

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """Weighted mean (or sum) of the negative log-likelihood of the step's response tokens."""
        total: float | Tensor = 1.0
        if self.reduction == "mean":
            total = token_weights(whole.response_mask, whole["weight"], self.level).sum()
        logps = token_logps(model, batch)
        return Loss(weighted_nll(logps, batch.response_mask, batch["weight"], level=self.level, denominator=total))


def naive_reinforce() -> TOPR:
    """REINFORCE that takes logged answers for its own: every ratio is 1, so bad answers are pushed without end."""
    return TOPR(negative_limits=(1.0, 1.0))


def truncated_importance_sampling() -> TOPR:
    """Off-policy REINFORCE with the ratio truncated to [0, 1] for good and bad answers alike."""
    return TOPR(positive_limits=(0.0, 1.0))
