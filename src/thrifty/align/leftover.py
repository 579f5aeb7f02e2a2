"""The losses of "Leftover Lunch" (arXiv 2305.14718): likelihood weighted by worth, and by a ratio without gradient.

Shapes: B answers, T tokens. Sums over tokens, means over answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.align.ratios import importance_log_ratio, ratio_weighted_loss, truncated_ratio
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.logps import sequence_logps

Variant = Literal["nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl"]


class Terms(NamedTuple):
    """What a variant multiplies an answer's log-likelihood by, and whether it has a penalty.

    Parameters
    ----------
    worth
        1 (``one``), the reward R, or the advantage max(R - V, 0).
    ratio
        ``none``; the token's own ``probability``, at least a floor; the clipped ratio to the reference of the whole
        ``sequence`` or of each ``token``.
    divergence
        Whether the log-ratio to the reference is added.
    """

    worth: Literal["one", "reward", "advantage"]
    ratio: Literal["none", "probability", "sequence", "token"] = "none"
    divergence: bool = False

    @property
    def reference(self) -> bool:
        """Whether the reference's log-probabilities are used."""
        return self.divergence or self.ratio in ("sequence", "token")


VARIANTS: Mapping[str, Terms] = {
    "nll": Terms("one"),
    "wbc": Terms("reward"),
    "r_gold": Terms("reward", "probability"),
    "r_lol": Terms("reward", "sequence"),
    "a_lol": Terms("advantage", "sequence"),
    "a_lol_ref_free": Terms("advantage"),
    "a_lol_seq": Terms("advantage", "token"),
    "a_lol_kl": Terms("advantage", divergence=True),
}
"""The variants by name."""


def worth_of(reward: Float[Tensor, " B"], value: Float[Tensor, " B"] | None, terms: Terms) -> Float[Tensor, " B"]:
    r"""1, :math:`R`, or the advantage :math:`\max(R - V, 0)`, as the variant has it.

    Parameters
    ----------
    reward
        Of each answer.
    value
        Of its prompt.
    terms
        The variant's.

    Raises
    ------
    InputError
        When the advantage is wanted and there is no value.
    """
    if terms.worth == "one":
        return torch.ones_like(reward)
    if terms.worth == "reward":
        return reward
    if value is None:
        raise InputError("an advantage is a reward minus a value: give the column value (see with_values)")
    return (reward - value).clamp(min=0)


def a_lol_loss(
    logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    reference_logps: Float[Tensor, "B T"] | None,
    reward: Float[Tensor, " B"],
    value: Float[Tensor, " B"] | None,
    *,
    variant: Variant = "a_lol",
    clip: float | None = 0.9,
    kl_coefficient: float = 0.1,
    gold_floor: float = 0.1,
) -> Loss:
    r""":math:`\frac1B \sum_i w_i \sum_t r_{it} (-\log\pi(y_{it}))`, with worth and ratio as the variant has them.

    Parameters
    ----------
    logps
        Log-probabilities under the policy; the gradient flows through them.
    mask
        Where the model spoke.
    reference_logps
        Under the reference, for the variants that compare with it.
    reward
        Of each answer.
    value
        Of its prompt, for the variants with an advantage.
    variant, clip, kl_coefficient, gold_floor
        As for :class:`thrifty.align.a_lol.ALoL`.

    Raises
    ------
    InputError
        When what the variant needs is missing.
    """
    terms = VARIANTS[variant]
    if terms.reference and reference_logps is None:
        raise InputError(f"variant {variant} compares with a reference: give reference_logps")
    worth = worth_of(reward.float(), value, terms)
    ratio = _ratio(logps, mask, reference_logps, terms, clip, gold_floor)
    loss = ratio_weighted_loss(logps, mask, ratio, worth, length_normalise=False)
    means = sequence_logps(logps.detach(), mask, "mean")
    metrics = {"worth": worth.mean(), "logp": means.mean()}
    if terms.ratio != "none":
        metrics["ratio"] = ratio.sum() / mask.sum().clamp(min=1)
    if terms.divergence:
        assert reference_logps is not None
        divergence = sequence_logps(logps - reference_logps, mask, "sum").mean()
        loss = loss + kl_coefficient * divergence
        metrics["log_ratio"] = divergence.detach()
    return Loss(loss, metrics)


def _ratio(
    logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    reference_logps: Float[Tensor, "B T"] | None,
    terms: Terms,
    clip: float | None,
    gold_floor: float,
) -> Float[Tensor, "B T"]:
    """What each token's log-likelihood is multiplied by, 0 outside of the mask; no gradient flows through it."""
    if terms.ratio == "none":
        return mask.float()
    if terms.ratio == "probability":
        return logps.detach().float().exp().clamp(min=gold_floor) * mask
    assert reference_logps is not None
    limits = (0.0, math.inf) if clip is None else (1 - clip, 1 + clip)
    log_ratio = importance_log_ratio(logps, mask, reference_logps, terms.ratio)
    return truncated_ratio(log_ratio, torch.ones(len(logps), device=logps.device), limits, limits) * mask
