"""Learning Impact Measurement: LIMR: Less is More for RL Scaling (arXiv 2502.11886)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.select.base import best_first, check_budget, check_history
from thrifty.select.history import AccuracyHistory

Fill = Literal["backward_one", "none", "forward"]


class LimResult(NamedTuple):
    """What :func:`lim_scores` finds.

    Attributes
    ----------
    scores
        float64 ``[N]``, at most 1; NaN for a prompt that was dropped.
    kept
        ``[N]``: False for a prompt that still lacks an epoch after filling.
    average
        float64 ``[K]``: mean accuracy of the kept prompts in each epoch.
    filled
        How many missing epochs were filled in.
    """

    scores: Float[Tensor, " N"]
    kept: Bool[Tensor, " N"]
    average: Float[Tensor, " K"]
    filled: int

    @property
    def dropped(self) -> int:
        """How many prompts have no score."""
        return int((~self.kept).sum())


@register("limr")
@dataclass(frozen=True)
class LIMR:
    r"""Keeps the prompts whose accuracy rose, over an earlier run, the way the average of all prompts did.

    .. math::
        s_i = 1 - \frac{\sum_k (r_i^k - \bar r^k)^2}{\sum_k (1 - \bar r^k)^2}, \qquad \text{keep } s_i > \theta

    The history comes from a whole run of reinforcement learning on the full pool, which has to be paid for first; what
    is saved is every run after it. Scores are those of the model that made the history, and do not carry over to
    another.

    Parameters
    ----------
    threshold
        theta: prompts with a score above it are kept (the paper's 0.6; its script has 0.2 as the default, and keeps a
        score that equals it). It has no fixed scale: the nearer the average curve is to 1, the further scores spread.
    fill
        What becomes of an epoch in which a prompt was not asked. ``backward_one`` copies the next epoch, if that was
        observed, as the authors' code does; ``forward`` copies the last one observed before; ``none`` leaves it.
        Prompts that still lack one are dropped.
    budget
        Keep so many of the best instead of those above the threshold.
    epochs
        Look at the first so many only; all by default (the paper's run has 21).

    Raises
    ------
    InputError
        When the threshold is not below 1, or the budget or the epochs are below 1.

    References
    ----------
    Li, Zou and Liu, "LIMR: Less is More for RL Scaling", arXiv 2502.11886, section 2.2.
    """

    threshold: float = 0.6
    fill: Fill = "backward_one"
    budget: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not self.threshold < 1:
            raise InputError(f"threshold must be below 1, which no score exceeds, not {self.threshold:g}")
        check_budget(self.budget)
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs must be at least 1, not {self.epochs}")

    def score(self, pool: AccuracyHistory | Float[Tensor, "N K"]) -> LimResult:
        """The score of each prompt of a history, in the history's order (see :func:`lim_scores`).

        Parameters
        ----------
        pool
            A history, or its matrix of accuracies with NaN where a prompt was not asked.
        """
        history, observed = pool.matrix()[1:] if isinstance(pool, AccuracyHistory) else (pool, None)
        # Cut before filling: what lies behind the cut is not known to a run of so many epochs.
        cut = slice(self.epochs)
        return lim_scores(history[:, cut], None if observed is None else observed[:, cut], fill=self.fill)

    def select(self, pool: AccuracyHistory | Float[Tensor, "N K"], budget: int | None = None) -> Int[Tensor, " M"]:
        """The indices of the prompts worth keeping, the best first.

        Parameters
        ----------
        pool
            As for :meth:`score`.
        budget
            Keep so many of the best, whatever their score; the method's own by default.

        Raises
        ------
        InputError
            When the history is no history of accuracies, or no prompt has a score.
        """
        check_budget(budget)
        result = self.score(pool)
        return self.choose(result, budget)

    def choose(self, result: LimResult, budget: int | None = None) -> Int[Tensor, " M"]:
        """As :meth:`select`, from scores that were computed before."""
        most = budget if budget is not None else self.budget
        if most is not None:
            return best_first(result.scores, result.kept)[:most]
        return best_first(result.scores, result.kept & (result.scores > self.threshold))


def lim_scores(
    history: Float[Tensor, "N K"], observed: Bool[Tensor, "N K"] | None = None, *, fill: Fill = "backward_one"
) -> LimResult:
    r""":math:`s_i = 1 - \sum_k (r_i^k - \bar r^k)^2 / \sum_k (1 - \bar r^k)^2`.

    A prompt that follows the average curve scores 1, one that was always solved exactly 0, one that was never solved
    less. The denominator is the same for all, so the order is that of the squared distance to the average curve.

    Parameters
    ----------
    history
        r: share of right answers of each prompt in each epoch, in [0, 1].
    observed
        Where it was measured; by default everywhere but at NaN.
    fill
        As for :class:`LIMR`.

    Raises
    ------
    InputError
        When an accuracy is outside [0, 1] (raw rewards change the order), every prompt lacks an epoch, or all kept
        ones are always solved.
    """
    observed = check_history(history, observed)
    filled, known = fill_missing(history.double(), observed, fill)
    kept = known.all(1)
    if not kept.any():
        never = (~known).all(0).nonzero()[:, 0].tolist()
        why = f"epoch {never[0]} was observed for none" if never else "longer epochs or a shorter cut leave fewer gaps"
        raise InputError(f"all {len(kept)} prompts lack an epoch, so none has a score: {why}")
    average = filled[kept].mean(0)
    scale = (1 - average).square().sum()
    if scale == 0:
        raise InputError("every prompt is solved in every epoch, so none can be told from another: use harder prompts")
    scores = 1 - (filled - average).square().sum(1) / scale
    return LimResult(scores.where(kept, torch.nan), kept, average, int((known & ~observed).sum()))


def fill_missing(
    history: Float[Tensor, "N K"], observed: Bool[Tensor, "N K"], fill: Fill
) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
    """A history with missing epochs filled in, and the mask of what is known then; unknown ones are 0.

    Parameters
    ----------
    history, observed, fill
        As for :func:`lim_scores`.
    """
    known = observed.clone()
    filled = history.where(observed, 0.0)
    if fill == "backward_one":
        # Not chained: a gap of two epochs keeps its first one, as in the authors' single pass from left to right.
        copied = ~observed[:, :-1] & observed[:, 1:]
        filled[:, :-1] = filled[:, 1:].where(copied, filled[:, :-1])
        known[:, :-1] |= copied
    elif fill == "forward":
        epoch = torch.arange(history.shape[1], device=history.device)
        last = epoch.where(observed, -1).cummax(1).values
        filled, known = filled.gather(1, last.clamp(min=0)), last >= 0
    elif fill != "none":
        raise InputError(f"fill must be backward_one, forward or none, not {fill!r}")
    return filled, known
