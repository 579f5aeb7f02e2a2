"""The policy-gradient losses: ratio, clip, divergence from a reference, and over what they are averaged.

Shapes: N answers, T tokens. All results are per token; :func:`aggregate` makes a loss of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError

Aggregation = Literal["token", "sequence", "constant"]
RatioLevel = Literal["token", "sequence"]


def policy_ratio(
    logps: Float[Tensor, "N T"],
    old_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    level: RatioLevel = "token",
) -> Float[Tensor, "N T"]:
    r""":math:`\rho_t = \pi(y_t) / \pi_\text{old}(y_t)`; at the level of the sequence, its geometric mean (GSPO).

    Parameters
    ----------
    logps, old_logps
        Under the policy (the gradient flows through these) and under the one that sampled.
    mask
        Where the model spoke.
    level
        ``token``, or ``sequence``: :math:`\exp(\frac{1}{|y|} \sum_t \log\rho_t)`, the same value at every token.
    """
    log_ratio = (logps - old_logps) * mask
    if level == "sequence":
        log_ratio = (log_ratio.sum(1) / mask.sum(1).clamp(min=1))[:, None] * mask
    # exp overflows where no clip lets the gradient through anyway.
    return log_ratio.clamp(max=80.0).exp()


def clipped_policy_loss(
    ratio: Float[Tensor, "N T"],
    advantage: Float[Tensor, "N T"],
    low: float | None = 0.2,
    high: float | None = None,
    dual: float | None = None,
) -> Float[Tensor, "N T"]:
    r""":math:`\max(-A\rho,\; -A\,\text{clip}(\rho, 1-\epsilon_l, 1+\epsilon_h))`, per token.

    Parameters
    ----------
    ratio
        From :func:`policy_ratio`.
    advantage
        Of each token.
    low, high
        :math:`\epsilon_l` and :math:`\epsilon_h`; ``high`` is ``low`` when ``None``, and without ``low`` nothing is
        clipped.
    dual
        c > 1: where the advantage is negative the loss is at most :math:`-cA` (dual-clip PPO), so that a ratio far
        above 1 can't push without bound.

    References
    ----------
    Schulman et al., arXiv 1707.06347, equation 7; Ye et al., arXiv 1912.09729, equation 5 (dual clip).
    """
    plain = -advantage * ratio
    if low is None:
        return plain
    clipped = -advantage * ratio.clamp(1 - low, 1 + (low if high is None else high))
    loss = torch.maximum(plain, clipped)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def k3_divergence(logps: Float[Tensor, "N T"], reference_logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    r""":math:`e^{\Delta} - \Delta - 1`, :math:`\Delta = \log\pi_\text{ref} - \log\pi`: unbiased for KL, never negative.

    References
    ----------
    Schulman, "Approximating KL Divergence" (2020), estimator k3.
    """
    difference = reference_logps - logps
    return difference.clamp(max=80.0).exp() - difference - 1


def aggregate(
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    how: Aggregation,
    whole: Bool[Tensor, "M S"] | None = None,
    longest: int | None = None,
) -> Float[Tensor, ""]:
    """A loss from values per token.

    Parameters
    ----------
    values
        Per token; what stands outside the mask is left out.
    mask
        Where the model spoke.
    how
        ``token``: mean over all tokens (long answers weigh more). ``sequence``: mean over answers of each one's mean
        (tokens of long answers weigh less). ``constant``: sum divided by answers times ``longest`` (Dr. GRPO).
    whole
        The mask of the whole step, where this is a part of it: sums are divided by what the step holds, so that the
        losses of its parts add up to that of the step.
    longest
        For ``constant``: the longest answer that could have been given.

    Raises
    ------
    InputError
        For ``constant`` without ``longest``.
    """
    whole = mask if whole is None else whole
    # Not values * mask: what stands outside may be infinite.
    values = torch.where(mask, values, 0.0)
    if how == "token":
        return values.sum() / whole.sum().clamp(min=1).to(values.device)
    if how == "sequence":
        return (values.sum(1) / mask.sum(1).clamp(min=1)).sum() / max(len(whole), 1)
    if longest is None:
        raise InputError("aggregation 'constant' needs the length of the longest answer")
    return values.sum() / (max(len(whole), 1) * longest)
