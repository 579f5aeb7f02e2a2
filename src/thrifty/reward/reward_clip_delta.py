"""On Designing Effective RL Reward at Training Time for LLM Reasoning (arXiv 2410.15115): Clip and Delta.

Scores of a process reward model become step rewards whose return a model can't raise by repeating easy steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.reward.rewarded import Given, Rewarded, step_summary
from thrifty.reward.step_records import scored_steps
from thrifty.reward.steps import StepRewards, rewards_to_go, to_token_rewards

Refinement = Literal["none", "length-normalised", "length-penalty", "clip", "delta", "clip-delta"]


@register("reward-clip-delta")
@dataclass(frozen=True)
class ClipDelta:
    r"""Makes step scores safe to train against, by clipping, by differences, or both.

    .. math::
        \text{Clip: } r_k = \min(s_k - \eta, 0) \qquad
        \text{Delta: } r_k = s_k - s_{k+1} \; (k < K-1), \quad r_{K-1} = s_{K-1}, \quad r_K = 0

    s are the K step scores of a response, and Clip-Delta is Clip first, then Delta of the clipped values. A response
    is worth :math:`\alpha \sum_k r_k + \mathrm{Correct}`. Under Clip-Delta the return from step k is
    :math:`\alpha \min(s_k - \eta, 0) + \mathrm{Correct}`, never above the reward of a right answer; the last step's
    score is dropped, since ``Correct`` judges it. Only these undiscounted sums are bounded: a single step reward may be
    positive for a good step before a bad one.

    The outcome variant of the paper (a model's probability that the answer is right, on the last token) needs no
    refinement: mix :class:`thrifty.reward.models.OutcomeModel` with the verifier. The labels and losses that reward
    models are trained with are in :mod:`thrifty.reward.labels`; the policy is trained by the objectives of ``align``.

    Parameters
    ----------
    method
        ``clip-delta``, ``clip`` or ``delta``; the paper's comparisons ``none`` (the scores as they are),
        ``length-normalised`` (divided by the number of steps) and ``length-penalty`` (each step costs ``penalty``),
        with which long answers can still win.
    threshold
        η, on the scale of the scores: steps at or above it are good enough and get 0. By default solved for from the
        scores of right answers, see ``zero_share``; the paper does not publish its values.
    zero_share
        Share of the steps of right answers that must get 0 when the threshold is solved for, in (0, 1).
    alpha
        α: weight of the step rewards beside ``Correct``. Not published: choose it so that a wholly wrong step costs
        less than a right answer earns, α η <= 0.5, and watch the ratio of standard deviations in the summary.
    penalty
        What each step costs under ``length-penalty``.

    Raises
    ------
    InputError
        When a value is out of range.

    References
    ----------
    Gao et al., "On Designing Effective RL Reward at Training Time for LLM Reasoning", arXiv 2410.15115, section 4.
    """

    method: Refinement = "clip-delta"
    threshold: float | None = None
    zero_share: float = 0.75
    alpha: float = 0.5
    penalty: float = 0.1

    def __post_init__(self) -> None:
        if self.method not in get_args(Refinement):
            raise InputError(f"method is {self.method!r}: {nearest(self.method, get_args(Refinement))}")
        if not 0 < self.zero_share < 1:
            raise InputError(f"zero_share must be within (0, 1), not {self.zero_share:g}")
        for name in ("alpha", "penalty"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name):g}")

    def fit(self, steps: StepRewards, correct: Float[Tensor, " B"]) -> ClipDelta:
        """The same with its threshold solved for, where the method has one and none was given.

        Do this once, on solutions of the policy before training, and again only when the reward model changes.

        Raises
        ------
        InputError
            When no answer is right.
        """
        if self.threshold is not None or self.method not in ("clip", "clip-delta"):
            return self
        right = steps.step_mask & (correct > 0)[:, None]
        if steps.truncated is not None:
            right = right & ~(steps.truncated[:, None] & is_last(steps.step_mask))
        if not right.any():
            raise InputError(
                "no response is right, so the threshold can't be solved for from right answers: give --threshold"
            )
        return replace(self, threshold=quantile_threshold(steps.score[right], self.zero_share))

    def shape(self, steps: StepRewards) -> Float[Tensor, "B K"]:
        """The refined step rewards, not yet multiplied by α.

        Raises
        ------
        InputError
            When the method clips and has no threshold yet.
        """
        if self.threshold is None and self.method in ("clip", "clip-delta"):
            raise InputError("no threshold yet: give threshold=..., or call fit(steps, correct) once")
        return shape_process_reward(
            steps.score,
            steps.step_mask,
            method=self.method,
            eta=self.threshold or 0.0,
            penalty=self.penalty,
            truncated=steps.truncated,
        )

    def token_rewards(
        self, steps: StepRewards, correct: Float[Tensor, " B"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """The whole reward on tokens: α times the refined one at step ends, ``Correct`` on the last token."""
        return to_token_rewards(self.shape(steps), steps.step_end, mask, correct, alpha=self.alpha)

    def rewards(self, given: Given, run: Run) -> Rewarded:
        """The refined rewards of a user's scored responses; what ``thrifty run`` calls."""
        steps, correct = scored_steps(given, run)
        fitted = self.fit(steps, correct)
        refined = fitted.shape(steps)
        reached = self.alpha * rewards_to_go(refined, steps.step_mask) + correct[:, None] * steps.step_mask
        rows = [
            {
                "correct": float(correct[number]),
                "step_scores": steps.score[number, :count].tolist(),
                "step_rewards": refined[number, :count].tolist(),
                "returns": reached[number, :count].tolist(),
            }
            for number, count in enumerate(steps.counts.tolist())
        ]
        named = {"step scores": replace(self, method="none").shape(steps), self.method: refined}
        table = [step_summary(name, reward, steps, correct, self.alpha) for name, reward in named.items()]
        return Rewarded(rows, table, {"threshold": fitted.threshold, "alpha": self.alpha})


def shape_process_reward(
    score: Float[Tensor, "B K"],
    step_mask: Bool[Tensor, "B K"],
    *,
    method: Refinement,
    eta: float = 0.0,
    penalty: float = 0.1,
    truncated: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, "B K"]:
    """The step rewards of a refinement; 0 in the padding.

    Parameters
    ----------
    score
        Of each step by a process reward model.
    step_mask
        True for the first K steps of each row.
    method, eta, penalty
        As for :class:`ClipDelta` (``threshold`` is η).
    truncated
        True where the last step is unfinished: it has no score, so its reward is 0.
    """
    last = is_last(step_mask)
    unscored = torch.zeros_like(last) if truncated is None else truncated[:, None] & last
    refined = {
        "none": lambda: score,
        "length-normalised": lambda: score / step_mask.sum(1, keepdim=True).clamp(min=1),
        "length-penalty": lambda: score - penalty,
        "clip": lambda: clip(score, eta),
        "delta": lambda: delta(score, step_mask),
        "clip-delta": lambda: delta(clip(score, eta), step_mask),
    }[method]()
    return torch.where(step_mask & ~unscored, refined, 0.0)


def clip(score: Float[Tensor, "B K"], eta: float) -> Float[Tensor, "B K"]:
    r""":math:`\min(s_k - \eta, 0)`: never above 0, so that more steps can't raise the sum."""
    return (score - eta).clamp(max=0)


def delta(score: Float[Tensor, "B K"], step_mask: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    r""":math:`s_k - s_{k+1}` for k < K-1, :math:`s_{K-1}`, and 0 for the last step.

    The sum from step k on telescopes to :math:`s_k`. It looks ahead: the usual potential-based form (current minus
    previous) telescopes to the last score instead, which a model can raise.
    """
    following = torch.cat([score[:, 1:], torch.zeros_like(score[:, :1])], 1)[:, : score.shape[1]]
    last = is_last(step_mask)
    before_last = torch.cat([last[:, 1:], torch.zeros_like(last[:, :1])], 1)[:, : score.shape[1]]
    return torch.where(last | ~step_mask, 0.0, score - torch.where(before_last, 0.0, following))


def is_last(step_mask: Bool[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
    """True at the last step of each row."""
    return step_mask & (step_mask.cumsum(1) == step_mask.sum(1, keepdim=True))


def quantile_threshold(scores: Float[Tensor, " N"], zero_share: float = 0.75) -> float:
    """The largest of the scores that leaves at least ``zero_share`` of them at or above it.

    Clipped at it, that share of the steps gets a reward of exactly 0.

    Parameters
    ----------
    scores
        Step scores of right answers of the policy before training.
    zero_share
        In (0, 1); 0.7 to 0.8 keeps most steps at 0, as the paper asks.

    Raises
    ------
    InputError
        When there are no scores.
    """
    if not len(scores):
        raise InputError("no step scores of right answers: the threshold can't be solved for")
    ordered = scores.double().sort(descending=True).values
    # Rounded first: 0.7 * 10 is a little above 7, and ceil would take one step more.
    wanted = int(-(-round(zero_share * len(ordered), 9) // 1))
    return float(ordered[max(wanted, 1) - 1])
