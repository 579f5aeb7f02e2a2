"""Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs (arXiv 2503.14286).

The four slots: sequences are logged, or sampled anew each iteration; worth is a score minus a baseline; credit is
the same for all tokens; the loss is REINFORCE with the negatives tapered by a truncated importance ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.align.asking import Sampling, signed
from thrifty.align.base import Objective, Training
from thrifty.align.job import Job
from thrifty.align.ratios import Limits, Ratio, importance_log_ratio, ratio_weighted_loss, truncated_ratio
from thrifty.align.reference import with_behaviour_logps
from thrifty.align.training import iterate, train
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences


@register("topr")
@dataclass(frozen=True)
class TOPR(Objective):
    r"""Trains on right and wrong answers of an older policy, for many steps, without collapse.

    .. math::
        \nabla J = \sum_{R \ge 0} \mu\, R\, \nabla\log\pi + \sum_{R < 0} \mu\, [\pi/\mu]_0^1\, R\, \nabla\log\pi

    Good answers are learnt like supervised examples. Bad ones are pushed away with the truncated ratio of the
    policy to the one that sampled them, so the push fades as the policy leaves them: the objective is bounded above.
    There is no KL term, no reference model and no critic.

    Other limits give the relatives: negatives ``(0, 0)`` is supervised fine-tuning on the good answers; all
    ``(1, 1)`` naive REINFORCE; all ``(0, inf)`` off-policy REINFORCE; all ``(0, 1)`` truncated importance sampling.

    Parameters
    ----------
    baseline
        c: subtracted from every score; the sign and size of the rest decide. It sets how much of the push comes
        from good answers: -1 drops the bad ones of +1/-1 scores.
    positive_fraction
        Wanted share of the total push that comes from good answers, in (0, 1); the paper finds 0.10-0.20 best. The
        baseline is then solved for from the data, and ``baseline`` is not used.
    positive_limits
        (a+, b+): the ratio's limits for scores at or above the baseline.
    negative_limits
        (a-, b-): the ratio's limits for scores below it; a- above 0 degenerates in the end.
    ratio
        ``sequence`` is the paper's; ``token`` and ``geometric`` (length-normalised) are what other libraries call TOPR.
    length_normalise
        Divide each answer's loss by its number of tokens, as the paper does (the ratio is never divided).
    curation
        ``first-positive`` keeps, of each prompt, the first good answer and all bad ones ("Anna Karenina sampling").
    temperature
        What the answers were sampled at: log-probabilities are compared at the same one.

    Raises
    ------
    InputError
        When limits are not ``0 <= a <= b``, or the fraction is not within (0, 1).

    References
    ----------
    Le Roux et al., "Tapered Off-Policy REINFORCE", NeurIPS 2025: sections 3 (objective, Table 1), 3.3 (baseline).
    """

    training: ClassVar[Training] = Training(optimizer="adafactor", learning_rate=5e-7, epochs=1.0, clip_norm=1.0)

    baseline: float = 0.0
    positive_fraction: float | None = None
    positive_limits: Limits = (1.0, 1.0)
    negative_limits: Limits = (0.0, 1.0)
    ratio: Ratio = "sequence"
    length_normalise: bool = True
    curation: Literal["all", "first-positive"] = "all"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("positive_limits", "negative_limits"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise InputError(f"{name} must be 0 <= low <= high, not {low:g} and {high:g}")
        if self.positive_fraction is not None and not 0 < self.positive_fraction < 1:
            raise InputError(f"positive_fraction must be within (0, 1), not {self.positive_fraction:g}")

    def needs(self) -> frozenset[str]:
        """Who answered, to be compared with."""
        return frozenset({"behaviour_logps"})

    def prepare(self, data: Sequences) -> Sequences:
        """Curates logged answers and turns their ``reward`` into the ``worth`` that :meth:`loss` uses.

        Parameters
        ----------
        data
            With the columns ``reward [B]`` and, where the limits let the ratio matter, ``behaviour_logps [B,T]``; for
            curation also ``group [B]`` (which prompt), in the order of sampling.

        Raises
        ------
        InputError
            When nothing is below the baseline although bad answers should count: TOPR would silently be plain
            supervised fine-tuning.
        """
        reward = data["reward"].float()
        if self.curation == "first-positive":
            data = data.select(keep_first_positive(data["group"], reward).nonzero()[:, 0])
            reward = data["reward"].float()
        baseline = self.baseline
        if self.positive_fraction is not None:
            baseline = baseline_for_rewards(reward, self.positive_fraction)
        worth = reward - baseline
        if self.negative_limits[1] > 0 and not (worth < 0).any():
            raise InputError(
                f"no reward is below the baseline {baseline:g} (rewards {reward.min():g} to {reward.max():g}), so this "
                "would be plain supervised fine-tuning: score wrong answers -1, or give --positive-fraction 0.15"
            )
        return data.with_columns(worth=worth)

    def work(self, job: Job) -> dict[str, Any]:
        """Trains on the user's log, or with ``iterations`` on answers that the policy samples in rounds."""
        if not job.inputs.iterations:
            data = with_behaviour_logps(job.model, job.logged(), job.run.device, self.temperature)
            training = job.training(self.training)
            return job.compared(lambda: train(job.model, self, data, job.run.stage("train"), training))
        records, reward = job.prompts()
        sampling = job.sampling(Sampling(samples=4, prompts_per_rollout=len(records), temperature=self.temperature))
        return job.compared(
            lambda: iterate(
                job.model,
                job.tokenizer,
                self,
                records,
                signed(reward),
                job.run,
                iterations=job.inputs.iterations,
                sampling=sampling,
                training=job.training(self.training),
            )
        )

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's prepared answers, with what tells how it goes.

        Returns
        -------
        Loss
            With ``positive_logp`` and ``negative_logp`` (mean log-probability of an answer's tokens), and
            ``negative_weight`` (the mean truncated ratio of the bad answers: 1 at first, fading as they are left).
        """
        logps = token_logps(model, batch, temperature=self.temperature)
        found = topr_loss(
            logps,
            batch.response_mask,
            batch.columns.get("behaviour_logps", logps.detach()),
            batch["worth"],
            positive_limits=self.positive_limits,
            negative_limits=self.negative_limits,
            ratio=self.ratio,
            length_normalise=self.length_normalise,
        )
        # The mean is over the answers of the whole step.
        return Loss(found.value * (len(batch) / len(whole)), found.metrics)


def topr_loss(
    logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    behaviour_logps: Float[Tensor, "B T"] | Float[Tensor, " B"],
    reward: Float[Tensor, " B"],
    *,
    baseline: float = 0.0,
    positive_limits: Limits = (1.0, 1.0),
    negative_limits: Limits = (0.0, 1.0),
    ratio: Ratio = "sequence",
    length_normalise: bool = True,
) -> Loss:
    r""":math:`-\frac1B\sum_i w_i R'_i \log\pi(y_i) / |y_i|`, :math:`R' = R - c`, :math:`w` truncated by its sign.

    Parameters
    ----------
    logps
        Log-probabilities under the policy; the gradient flows through them.
    mask
        True where the model spoke.
    behaviour_logps
        Under the policy that sampled: by token, or one sum a response.
    reward
        Score of each response.
    baseline, positive_limits, negative_limits, ratio, length_normalise
        As for :class:`TOPR`.
    """
    worth = reward.float() - baseline
    weight = truncated_ratio(
        importance_log_ratio(logps, mask, behaviour_logps, ratio), worth, positive_limits, negative_limits
    )
    value = ratio_weighted_loss(logps, mask, weight, worth, length_normalise=length_normalise)
    lengths = mask.sum(1).clamp(min=1)
    mean_logps = (logps.detach() * mask).sum(1) / lengths
    mean_weight = (weight * mask).sum(1) / lengths
    negative = (worth < 0).float()
    many, few = (1 - negative).sum().clamp(min=1), negative.sum().clamp(min=1)
    return Loss(
        value,
        {
            "positive_logp": (mean_logps * (1 - negative)).sum() / many,
            "negative_logp": (mean_logps * negative).sum() / few,
            "negative_weight": (mean_weight * negative).sum() / few,
        },
    )


def effective_positive_fraction(p: float, baseline: float) -> float:
    r""":math:`\tilde p = p(1-c) / (1 + c(1-2p))`: the share of the push that is positive, for +1/-1 rewards.

    Parameters
    ----------
    p
        Share of +1 rewards.
    baseline
        c, in [-1, 1].
    """
    return p * (1 - baseline) / (1 + baseline * (1 - 2 * p))


def baseline_for_positive_fraction(p: float, target: float) -> float:
    r""":math:`c = (p - \tilde p) / (p + \tilde p (1 - 2p))`: the baseline at which the push is ``target`` positive.

    Parameters
    ----------
    p
        Share of +1 rewards among +1/-1 ones, in (0, 1).
    target
        Wanted effective share, in (0, 1].

    Raises
    ------
    InputError
        When ``p`` or ``target`` is out of range.
    """
    if not (0 < p < 1 and 0 < target <= 1):
        raise InputError(f"need 0 < p < 1 and 0 < target <= 1, not p = {p:g} and target = {target:g}")
    return (p - target) / (p + target * (1 - 2 * p))


def baseline_for_rewards(reward: Float[Tensor, " N"], target: float) -> float:
    r"""The baseline at which :math:`\sum_{R>c}(R-c) / \sum|R-c|` is ``target``, for rewards of any size.

    Equal to :func:`baseline_for_positive_fraction` for +1/-1 rewards. The share falls from 1 at the smallest reward
    to 0 at the largest, so the solution is found by bisection.

    Raises
    ------
    InputError
        When all rewards are the same: no baseline divides them.
    """
    values = reward.double()
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise InputError(f"all rewards are {low:g}: no baseline divides them into good and bad; log varied answers")
    for _ in range(200):
        middle = (low + high) / 2
        rest = values - middle
        share = float(rest.clamp(min=0).sum() / rest.abs().sum())
        low, high = (middle, high) if share > target else (low, middle)
        if math.isclose(low, high, rel_tol=0, abs_tol=1e-12):
            break
    return (low + high) / 2


def keep_first_positive(group: Int[Tensor, " N"], reward: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Which answers "Anna Karenina sampling" keeps: of each prompt the first right one and all wrong ones.

    Parameters
    ----------
    group
        The prompt of each answer.
    reward
        Its score; right means above 0. The order is that of sampling.
    """
    positive = reward > 0
    _, prompt = torch.unique(group, return_inverse=True)
    position = torch.arange(len(group), device=group.device)
    nowhere = len(group)
    first = torch.full((int(prompt.max()) + 1,) if len(prompt) else (0,), nowhere, device=group.device)
    first = first.scatter_reduce(0, prompt[positive], position[positive], "amin")
    return ~positive | (position == first[prompt])
