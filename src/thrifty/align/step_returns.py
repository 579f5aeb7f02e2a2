"""Policy gradient on rewards of steps: each token is credited with what comes after it.

The four slots: sequences are sampled by the policy, several to a prompt; worth is a score for each step and whether the
answer is right; credit is the return of each token minus what the other answers get; the loss is the clipped policy
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.align.base import Objective, Training
from thrifty.align.credit import at_last_token, group_statistics, leave_one_out
from thrifty.align.grpo import GRPO
from thrifty.align.policy_gradient import Aggregation, k3_divergence, policy_ratio
from thrifty.align.step_credit import (
    check_groups,
    less_step_baseline,
    rloo_token_advantage,
    whiten_nonzero,
)
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences
from thrifty.reward.steps import rewards_to_go


@dataclass(frozen=True)
class StepReturns(Objective):
    r"""Learns from rewards of steps, such as those of :class:`thrifty.reward.reward_clip_delta.ClipDelta`.

    .. math::
        r_t = c_P\, \text{step}_t + c_V\, \text{right} \cdot 1[t = |y|] - \beta\, \mathrm{kl}_t, \qquad
        G_t = \sum_{t' \ge t} r_{t'}, \qquad A_t = G_t - b

    Parameters
    ----------
    process_coefficient
        :math:`c_P`: weight of the step rewards.
    verifiable_coefficient
        :math:`c_V`: weight of a right answer's 1, on the last token.
    kl_reward_coefficient
        :math:`\beta`: weight of the divergence from the reference, which is taken off each token's reward; 0 needs no
        reference.
    kl_estimator
        ``k3``, never negative, or ``k1``, the plain difference of log-probabilities.
    baseline
        ``returns``: the mean return of the other answers' tokens (see
        :func:`~thrifty.align.step_credit.rloo_token_advantage`). ``token`` or ``step``: what the others get per token
        or per step, taken off the rewards before they are summed (see
        :func:`~thrifty.align.step_credit.less_step_baseline`).
    mask_separators
        With the baselines ``token`` and ``step``, give no advantage to the last tokens of steps, the separators.
    whiten
        Normalise advantages over all tokens of a rollout.
    longest
        Tokens of the longest answer that could be given, for the baseline ``returns``; ``thrifty run`` takes
        ``max_new_tokens``.
    clip
        How far the ratio may leave 1 before its gradient vanishes; ``None`` does not clip.
    aggregation
        ``token``: the loss is a mean over all tokens; ``sequence``: over answers, of each one's mean.
    largest_ratio
        Skip an update (a part of it, where it has several) whose mean ratio is above this: the policy has run away.
        ``None`` never skips.
    temperature
        At which answers were sampled.

    Raises
    ------
    InputError
        When a value is out of range.
    """

    training: ClassVar[Training] = Training(learning_rate=1e-6)

    process_coefficient: float = 1.0
    verifiable_coefficient: float = 1.0
    kl_reward_coefficient: float = 1e-3
    kl_estimator: Literal["k3", "k1"] = "k3"
    baseline: Literal["returns", "token", "step"] = "returns"
    mask_separators: bool = True
    whiten: bool = True
    longest: int | None = None
    clip: float | None = 0.2
    aggregation: Literal["token", "sequence"] = "token"
    largest_ratio: float | None = 10.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        self._policy()
        for name in ("process_coefficient", "verifiable_coefficient", "kl_reward_coefficient"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name):g}")
        for name, low in (("longest", 1), ("largest_ratio", 1.0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} must be at least {low:g} (or None), not {value:g}")

    def _policy(self) -> GRPO:
        how: Aggregation = self.aggregation
        return GRPO(clip=self.clip, aggregation=how, temperature=self.temperature)

    def needs(self) -> frozenset[str]:
        """Who answered, and the reference's log-probabilities where the divergence counts."""
        return frozenset({"behaviour_logps"} | ({"reference_logps"} if self.kl_reward_coefficient else set()))

    def counts(self, data: Sequences) -> Bool[Tensor, " N"]:
        """Which answers are learnt from, and compared with."""
        return data.response_mask.any(1)

    def step_rewards(self, score: Float[Tensor, "N T"], step_end: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """The reward of each step, made of its score: here the score itself."""
        return torch.where(step_end, score, 0.0)

    def prepare(self, data: Sequences) -> Sequences:
        """Adds ``advantage [N, T]`` and ``counts [N]``.

        Parameters
        ----------
        data
            With ``step_score [N, T]`` and ``step_end [N, T]`` (True at each step's last token), ``right [N]`` (1
            for a right answer, 0 also where nothing was checked) and ``group [N]``.

        Raises
        ------
        InputError
            When a prompt has one answer only, or ``longest`` is not known.
        """
        check_groups(group_statistics(torch.zeros(len(data)), data["group"])[2])
        counts = self.counts(data)
        # Whoever is left alone by what does not count has nothing to be compared with.
        alone = group_statistics(counts.float(), data["group"])
        counts = counts & (alone[0] * alone[2] > 1.5)
        advantage = torch.zeros(data.input_ids.shape)
        rows = counts.nonzero()[:, 0]
        if len(rows):
            advantage[rows] = self.advantages(data.select(rows))
        return data.with_columns(advantage=advantage, counts=counts)

    def advantages(self, data: Sequences) -> Float[Tensor, "N T"]:
        """The credit of each token of answers that count."""
        mask = data.response_mask
        step_end = data["step_end"].bool() & mask
        process = self.process_coefficient * self.step_rewards(data["step_score"].float(), step_end)
        right = self.verifiable_coefficient * data["right"].float()
        divergence = self.kl_reward_coefficient * self._divergence(data)
        if self.baseline == "returns":
            if self.longest is None:
                raise InputError("the baseline divides by the tokens of the longest answer: give longest")
            reward = process + at_last_token(right, mask) - divergence
            return rloo_token_advantage(
                reward, mask, data["group"], longest=self.longest, whitened=self.whiten
            )[0]  # fmt: skip
        process = less_step_baseline(process, step_end, mask, data["group"], self.baseline)
        reward = process + at_last_token(leave_one_out(right, data["group"]), mask) - divergence
        advantage = rewards_to_go(reward, mask)
        if self.mask_separators:
            advantage = torch.where(step_end, 0.0, advantage)
        return whiten_nonzero(advantage, mask) if self.whiten else advantage

    def _divergence(self, data: Sequences) -> Float[Tensor, "N T"]:
        if not self.kl_reward_coefficient:
            return torch.zeros(data.input_ids.shape)
        logps, reference = data["behaviour_logps"], data["reference_logps"]
        found = k3_divergence(logps, reference) if self.kl_estimator == "k3" else logps - reference
        return torch.where(data.response_mask, found, 0.0)

    def teaches(self, batch: Sequences) -> Bool[Tensor, " N"]:
        """Answers with any advantage."""
        return self._policy().teaches(batch)

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The clipped policy gradient, with ``steps`` (mean number) and ``verified`` (share of right answers)."""
        logps = token_logps(model, batch, temperature=self.temperature)
        found = self._policy().loss_of(logps, None, batch, whole)
        value = found.value
        metrics = {
            "steps": (whole["step_end"].bool() & whole.response_mask).sum(1).float().mean(),
            "verified": whole["right"].float().mean(),
        }
        if self.largest_ratio is not None and "behaviour_logps" in batch.columns:
            ratio = mean_ratio(logps.detach(), batch["behaviour_logps"], batch.response_mask)
            skipped = bool(ratio > self.largest_ratio)
            value = logps.sum() * 0.0 if skipped else value
            metrics |= {"ratio": ratio.clamp(max=1e6), "skipped": torch.tensor(float(skipped))}
        return Loss(value, {**found.metrics, **metrics})


def mean_ratio(
    logps: Float[Tensor, "N T"], old_logps: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """The mean over answers of the mean ratio of their tokens, by which an update is judged to have run away."""
    ratio = torch.where(mask, policy_ratio(logps, old_logps, mask), 0.0)
    return (ratio.sum(1) / mask.sum(1).clamp(min=1)).mean()
