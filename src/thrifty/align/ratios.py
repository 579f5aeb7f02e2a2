"""Losses on sequences from another policy: one formula, of which the methods are settings.

A response's log-probability under the policy is multiplied by its worth and by a truncated importance ratio
through which no gradient flows. Shapes: B responses, T tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError

Ratio = Literal["sequence", "token", "geometric"]
Limits = tuple[float, float]


def importance_log_ratio(
    logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    behaviour_logps: Float[Tensor, "B T"] | Float[Tensor, " B"],
    kind: Ratio = "sequence",
) -> Float[Tensor, "B T"]:
    r"""The log of :math:`\rho = \pi(y|x) / \mu(y|x)`, the same for all tokens of a response unless by token.

    Parameters
    ----------
    logps
        Log-probabilities of the tokens under the policy.
    mask
        True where the model spoke.
    behaviour_logps
        Log-probabilities under the policy that sampled: by token, or one sum a response.
    kind
        ``sequence``: the ratio of whole responses, a product over tokens; ``geometric``: its geometric mean
        over the tokens; ``token``: each token's own ratio.

    Returns
    -------
    Float[Tensor, "B T"]
        Detached, float32; 0 outside of the mask.

    Raises
    ------
    InputError
        For token ratios when the behaviour's log-probabilities are sums.
    """
    mask_ = mask.float()
    logps = logps.detach().float() * mask_
    if kind == "token":
        if behaviour_logps.ndim != 2:
            raise InputError("token ratios need the behaviour's log-probability of each token, not their sum")
        return logps - behaviour_logps.float() * mask_
    behaviour = behaviour_logps.float()
    total = logps.sum(1) - ((behaviour * mask_).sum(1) if behaviour.ndim == 2 else behaviour)
    if kind == "geometric":
        total = total / mask_.sum(1).clamp(min=1)
    return total[:, None] * mask_


def truncated_ratio(
    log_ratio: Float[Tensor, "B T"], worth: Float[Tensor, " B"], positive: Limits, negative: Limits
) -> Float[Tensor, "B T"]:
    r"""The weight :math:`[\rho]_a^b`, with limits of their own for responses worth >= 0 and < 0.

    Parameters
    ----------
    log_ratio
        From :func:`importance_log_ratio`.
    worth
        What each response is multiplied by in the loss; its sign decides the limits.
    positive, negative
        ``(a, b)`` for either sign; ``b`` may be infinite.
    """
    sign = (worth >= 0)[:, None]
    low = torch.where(sign, positive[0], negative[0])
    high = torch.where(sign, positive[1], negative[1])
    # exp overflows where the limit would cut it anyway.
    return torch.minimum(torch.maximum(log_ratio.clamp(max=80.0).exp(), low), high)


def ratio_weighted_loss(
    logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    weight: Float[Tensor, "B T"],
    worth: Float[Tensor, " B"],
    *,
    length_normalise: bool = True,
) -> Float[Tensor, ""]:
    r""":math:`-\frac1B \sum_i \frac{1}{|y_i|} \sum_t w_{it}\, R_i \log\pi(y_{it})`, no gradient through :math:`w`.

    Parameters
    ----------
    logps, mask
        As for :func:`importance_log_ratio`; the gradient flows through ``logps``.
    weight
        From :func:`truncated_ratio`.
    worth
        Multiplier of each response.
    length_normalise
        Divide each response's sum by its number of tokens.
    """
    mask_ = mask.to(logps.dtype)
    per_response = (weight.detach().to(logps.dtype) * logps * mask_).sum(1)
    if length_normalise:
        per_response = per_response / mask_.sum(1).clamp(min=1)
    return -(worth.to(logps.dtype) * per_response).mean()
