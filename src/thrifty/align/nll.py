"""Weighted negative log-likelihood: supervised fine-tuning and all that is supervised with weights."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

Level = Literal["token", "sequence"]


def token_weights(
    mask: Bool[Tensor, "N T"], weight: Float[Tensor, " N"] | Float[Tensor, "N T"], level: Level = "token"
) -> Float[Tensor, "N T"]:
    r"""The weight of each token: :math:`w_i`, or :math:`w_i / |y_i|`.

    Parameters
    ----------
    mask
        Where the model spoke.
    weight
        Of each answer, or of each token.
    level
        ``token``: every token of an answer has its weight. ``sequence``: the answer's tokens share it, so that each
        answer counts the same whatever its length.
    """
    by_token = weight[:, None] if weight.ndim == 1 else weight
    spread = mask.to(by_token.dtype) * by_token
    return spread if level == "token" else spread / mask.sum(1, keepdim=True).clamp(min=1)


def weighted_nll(
    logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    weight: Float[Tensor, " N"] | Float[Tensor, "N T"],
    *,
    level: Level = "token",
    denominator: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    r""":math:`-\sum_{it} w_{it} \log\pi(y_{it}) \,/\, \sum_{it} w_{it}`.

    Multiplying all weights by a constant changes nothing.

    Parameters
    ----------
    logps
        Log-probabilities of the tokens; the gradient flows through them.
    mask, weight, level
        As for :func:`token_weights`.
    denominator
        The sum of weights over the whole (distributed, accumulated) batch; that of this part when ``None``.
    """
    weights = token_weights(mask, weight, level).to(logps.dtype)
    total = weights.sum() if denominator is None else denominator
    # A batch without any weight has no loss, rather than NaN.
    total = total.to(logps.device).clamp(min=1e-12) if isinstance(total, Tensor) else max(total, 1e-12)
    return -(weights * logps).sum() / total
