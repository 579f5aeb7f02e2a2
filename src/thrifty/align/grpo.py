"""Group-relative policy optimisation and its relatives: the objective that the online papers of the room set.

The four slots: sequences are sampled by the policy, several to a prompt; worth is any reward; credit compares an answer
with the others to its prompt; the loss is the clipped policy gradient with a divergence and an entropy term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.align.base import Objective, Training
from thrifty.align.credit import group_centred, group_normalised, leave_one_out
from thrifty.align.policy_gradient import (
    Aggregation,
    RatioLevel,
    aggregate,
    clipped_policy_loss,
    k3_divergence,
    policy_ratio,
)
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

Credit = Literal["group", "centred", "leave-one-out", "reward"]


@dataclass(frozen=True)
class GRPO(Objective):
    r"""Policy gradient on groups of answers, with the terms that its relatives switch on and off.

    .. math::
        L = c_\pi\, \overline{\max(-A\rho,\, -A\,\mathrm{clip}(\rho, 1-\epsilon_l, 1+\epsilon_h))}
            + \beta\, \overline{k_3(\pi_\text{ref}, \pi)} - c_H\, \overline{H(\pi)}

    Dr. GRPO is ``GRPO(credit="centred", aggregation="constant")``; DAPO ``GRPO(clip=0.2, clip_high=0.28,
    drop_cut_off=True)`` with ``Sampling(resample=...)``; GSPO ``GRPO(ratio="sequence", aggregation="sequence")``;
    RLOO ``GRPO(credit="leave-one-out", clip=None)``.

    Parameters
    ----------
    credit
        ``group``: reward minus the group's mean, divided by its deviation; ``centred``: not divided;
        ``leave-one-out``: minus the mean of the other answers; ``reward``: the reward as it is.
    credit_epsilon
        Added to the deviation of a group.
    clip
        How far the ratio may fall below 1, and unless ``clip_high`` says otherwise rise above it, before its gradient
        vanishes; ``None`` does not clip.
    clip_high
        How far the ratio may rise above 1.
    dual_clip
        c > 1: with a negative advantage the loss is at most c times its size.
    kl_coefficient
        Beta: weight of the divergence from the reference; 0 needs no reference.
    entropy_coefficient
        Weight of the entropy of the next-token distribution, which is raised.
    policy_coefficient
        Weight of the policy gradient itself; 0 leaves the other terms alone.
    aggregation
        ``token``, ``sequence`` or ``constant``: over what values per token are averaged (``constant`` divides by
        answers times ``longest``).
    longest
        Tokens of the longest answer, for ``constant``.
    ratio
        ``token``, or ``sequence``: the geometric mean over the answer.
    drop_cut_off
        Leave answers out of the loss that did not end by themselves.
    stale_ratio
        Leave answers out whose geometric-mean ratio is above this or below its inverse: the policy has left them too
        far behind. ``None`` keeps all.
    temperature
        At which answers were sampled.

    References
    ----------
    DeepSeekMath, arXiv 2402.03300 (GRPO); arXiv 2503.20783 (Dr. GRPO); arXiv 2503.14476 (DAPO); arXiv 2507.18071
    (GSPO); arXiv 2402.14740 (RLOO).
    """

    training: ClassVar[Training] = Training(learning_rate=1e-6)

    credit: Credit = "group"
    credit_epsilon: float = 1e-4
    clip: float | None = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    policy_coefficient: float = 1.0
    aggregation: Aggregation = "token"
    longest: int | None = None
    ratio: RatioLevel = "token"
    drop_cut_off: bool = False
    stale_ratio: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("clip", "clip_high"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0 (or None), not {value:g}")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise InputError(f"dual_clip must be above 1, not {self.dual_clip:g}")
        if self.stale_ratio is not None and not self.stale_ratio > 1:
            raise InputError(f"stale_ratio must be above 1, not {self.stale_ratio:g}")
        if self.aggregation == "constant" and self.longest is None:
            raise InputError("aggregation 'constant' divides by the longest answer: give longest (its tokens)")

    def needs(self) -> frozenset[str]:
        """The reference's log-probabilities where the divergence counts."""
        return frozenset({"behaviour_logps"} | ({"reference_logps"} if self.kl_coefficient else set()))

    def prepare(self, data: Sequences) -> Sequences:
        """Adds ``advantage [N, T]``, and takes answers that do not count out of the response mask's weight.

        Parameters
        ----------
        data
            With ``reward [N]`` and ``group [N]``; ``finished [N]`` where ``drop_cut_off`` asks for it.
        """
        counts = data.response_mask.any(1)
        if self.drop_cut_off:
            counts &= data["finished"].bool()
        return data.with_columns(advantage=self.advantages(data), counts=counts)

    def advantages(self, data: Sequences) -> Float[Tensor, "N T"]:
        """The credit of each token; here that of its answer."""
        reward = data["reward"].float()
        if self.credit == "group":
            reward = group_normalised(reward, data["group"], self.credit_epsilon)
        elif self.credit == "centred":
            reward = group_centred(reward, data["group"])
        elif self.credit == "leave-one-out":
            reward = leave_one_out(reward, data["group"])
        return reward[:, None] * data.response_mask

    def teaches(self, batch: Sequences) -> Bool[Tensor, " N"]:
        """Answers without credit are left out of the forward pass, unless another term looks at them."""
        if self.kl_coefficient or self.entropy_coefficient:
            return batch["counts"]
        return batch["counts"] & (batch["advantage"] != 0).any(1)

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's answers, with ``entropy`` and ``kl`` where they count, and the share of
        tokens whose ratio was clipped."""
        entropy = None
        if self.entropy_coefficient:
            logps, entropy = token_logps(model, batch, temperature=self.temperature, entropy=True)
        else:
            logps = token_logps(model, batch, temperature=self.temperature)
        return self.loss_of(logps, entropy, batch, whole)

    def loss_of(
        self, logps: Float[Tensor, "N T"], entropy: Float[Tensor, "N T"] | None, batch: Sequences, whole: Sequences
    ) -> Loss:
        """The same from log-probabilities and entropies that were computed before; see :meth:`loss`."""
        old = batch.columns.get("behaviour_logps", logps.detach())
        mask = batch.response_mask & batch["counts"][:, None]
        metrics: dict[str, Tensor | float] = {}
        if self.stale_ratio is not None:
            fresh = is_fresh(logps.detach(), old, batch.response_mask, self.stale_ratio)
            metrics["stale"] = 1 - fresh.float().mean()
            mask = mask & fresh[:, None]
        counted = whole.response_mask & whole["counts"][:, None]
        ratio = policy_ratio(logps, old, mask, self.ratio)
        policy = clipped_policy_loss(ratio, batch["advantage"], self.clip, self.clip_high, self.dual_clip)
        terms = {"policy": (self.policy_coefficient, policy)}
        if self.kl_coefficient:
            terms["kl"] = (self.kl_coefficient, k3_divergence(logps, batch["reference_logps"]))
        if entropy is not None:
            terms["entropy"] = (-self.entropy_coefficient, entropy)
        value = logps.new_zeros(())
        for name, (weight, values) in terms.items():
            value = value + weight * aggregate(values, mask, self.aggregation, counted, self.longest)
            if name != "policy":
                metrics[name] = torch.where(mask, values.detach(), 0.0).sum() / mask.sum().clamp(min=1)
        if self.clip is not None:
            metrics["clipped"] = self._clipped(ratio.detach(), batch["advantage"], mask)
        return Loss(value, metrics)

    def _clipped(self, ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        assert self.clip is not None
        high = self.clip if self.clip_high is None else self.clip_high
        out = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - self.clip) & (advantage < 0))
        return (out & mask).sum() / mask.sum().clamp(min=1)


def is_fresh(logps: Float[Tensor, "N T"], old_logps: Float[Tensor, "N T"], mask: Tensor, limit: float) -> Tensor:
    """Which answers ``[N]`` the policy has not left behind: geometric-mean ratio within ``[1/limit, limit]``."""
    ratio = policy_ratio(logps, old_logps, mask, "sequence")
    most = torch.where(mask, ratio, 1.0).amax(1)
    least = torch.where(mask, ratio, 1.0).amin(1)
    return (most <= limit) & (least >= 1 / limit)


def ppo_clip(clip: float = 0.2) -> GRPO:
    """PPO's clipped surrogate with the score as every token's advantage: what most practitioners would reach for."""
    return GRPO(credit="reward", clip=clip, aggregation="sequence")
