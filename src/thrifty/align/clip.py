"""The clipped surrogate of PPO on logged sequences: the baseline that most practitioners would reach for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.align.base import Training
from thrifty.core.loop import Loss
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class PPOClip:
    r"""Proximal policy optimisation's surrogate with the score as every token's advantage.

    Parameters
    ----------
    clip
        Epsilon: how far a token's ratio may leave 1 before its gradient vanishes.

    References
    ----------
    Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equation 7.
    """

    training: ClassVar[Training] = Training()
    mean_over: ClassVar[Literal["answers", "tokens"]] = "answers"

    clip: float = 0.2

    def prepare(self, data: Sequences) -> Sequences:
        """The log as it is; it must hold ``reward`` and ``behaviour_logps``."""
        return data.with_columns(reward=data["reward"], behaviour_logps=data["behaviour_logps"])

    def loss(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch of logged answers."""
        logps = token_logps(model, batch)
        return Loss(clipped_surrogate(logps, batch.response_mask, batch["behaviour_logps"], batch["reward"], self.clip))


def clipped_surrogate(
    logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    behaviour_logps: Float[Tensor, "B T"],
    advantage: Float[Tensor, " B"],
    clip: float,
) -> Float[Tensor, ""]:
    r""":math:`-\text{mean}_i \frac{1}{|y_i|}\sum_t \min(\rho_t A_i, \text{clip}(\rho_t, 1-\epsilon, 1+\epsilon) A_i)`.

    Parameters
    ----------
    logps
        Under the policy; the gradient flows through them.
    mask
        True where the model spoke.
    behaviour_logps
        Under the policy that sampled.
    advantage
        Of each response.
    clip
        Epsilon.
    """
    ratio = ((logps - behaviour_logps) * mask).exp()
    worth = advantage[:, None]
    surrogate = torch.minimum(ratio * worth, ratio.clamp(1 - clip, 1 + clip) * worth) * mask
    return -(surrogate.sum(1) / mask.sum(1).clamp(min=1)).mean()
