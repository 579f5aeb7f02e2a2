"""Other ways to choose prompts by their history: variance, slope, chance, and bands of difficulty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError, nearest
from thrifty.select.base import check_history
from thrifty.select.history import AccuracyHistory
from thrifty.select.limr import lim_scores

Ranking = Literal["std", "lim", "linear", "random"]


def rank_by_history(
    history: AccuracyHistory | Mapping[str, Sequence[float]], *, method: Ranking = "std", seed: int = 0
) -> list[tuple[str, float]]:
    """The prompts with their scores, the best first; equal scores keep their order.

    Parameters
    ----------
    history
        Accuracies of each prompt, epoch by epoch; their number may differ between prompts.
    method
        ``std`` is one-shot RLVR's historical variance: the population standard deviation over all of a prompt's own
        accuracies. ``lim`` is LIMR's score over the shortest length, ``linear`` is :func:`linear_scores` over each
        prompt's own length, ``random`` a draw from [0, 1).
    seed
        Of the draw.

    Raises
    ------
    InputError
        When the history or a prompt's list is empty, or an accuracy is outside [0, 1] or NaN: the prompt is named.

    References
    ----------
    Wang et al., "Reinforcement Learning for Reasoning in Large Language Models with One Training Example", 2025, arXiv
    2504.20571, section 2; the authors' ``data_selection.py``.
    """
    curves = history.curves() if isinstance(history, AccuracyHistory) else history
    values = {name: _curve(name, curve) for name, curve in curves.items()}
    if not values:
        raise InputError("the history is empty: there is no prompt to rank")
    if method not in _SCORES:
        raise InputError(f"method {method!r} is unknown: {nearest(str(method), _SCORES) or ', '.join(_SCORES)}")
    scores = _SCORES[method](list(values.values()), seed)
    return sorted(zip(values, scores, strict=True), key=lambda item: -item[1])


def _lim(curves: list[Tensor], seed: int) -> list[float]:
    del seed
    shortest = min(map(len, curves))
    found: list[float] = lim_scores(torch.stack([curve[:shortest] for curve in curves])).scores.tolist()
    return found


def _random(curves: list[Tensor], seed: int) -> list[float]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(len(curves), dtype=torch.float64, generator=draw).tolist()


_SCORES: Mapping[str, Callable[[list[Tensor], int], list[float]]] = {
    "std": lambda curves, _: [float(std_scores(curve[None])) for curve in curves],
    "lim": _lim,
    "linear": lambda curves, _: [float(linear_scores(curve[None])) for curve in curves],
    "random": _random,
}


def _curve(name: str, values: Sequence[float]) -> Float[Tensor, " K"]:
    curve = torch.tensor(list(values), dtype=torch.float64)
    if not len(curve):
        raise InputError(f"prompt {name!r} has no accuracy: leave it out")
    if not ((curve >= 0) & (curve <= 1)).all():
        raise InputError(f"an accuracy of prompt {name!r} is outside [0, 1]: give the share of samples that were right")
    return curve


def std_scores(history: Float[Tensor, "N K"], observed: Bool[Tensor, "N K"] | None = None) -> Float[Tensor, " N"]:
    r""":math:`\sqrt{\mathrm{mean}_k (r_i^k - \mathrm{mean}_k r_i^k)^2}` over the epochs in which i was observed.

    Parameters
    ----------
    history, observed
        As for :func:`thrifty.select.limr.lim_scores`. A prompt that was never observed scores NaN.
    """
    weight, values = _weighted(history, observed)
    count = weight.sum(1, keepdim=True)
    return (weight * (values - values.sum(1, keepdim=True) / count).square()).sum(1).div(count[:, 0]).sqrt()


def linear_scores(history: Float[Tensor, "N K"], observed: Bool[Tensor, "N K"] | None = None) -> Float[Tensor, " N"]:
    r"""Steady improvement: the slope of the least-squares line through a prompt's accuracies, times the epochs between.

    .. math::
        s_i = (K - 1) \frac{\sum_k (k - \bar k)(r_i^k - \bar r_i)}{\sum_k (k - \bar k)^2}

    It is the gain from the first to the last epoch that the line shows: 1 for a rise from 0 to 1 along a line, 0 for
    accuracies that stay, negative for falling ones. LIMR compares itself with a choice of "steadily improving" prompts
    called LINEAR, whose formula is not published; this is one way to say it, and no reproduction of theirs.

    Parameters
    ----------
    history, observed
        As for :func:`thrifty.select.limr.lim_scores`. A prompt that was observed in fewer than two epochs scores 0.
    """
    weight, values = _weighted(history, observed)
    epoch = torch.arange(history.shape[1], dtype=torch.float64, device=history.device)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    time = epoch - (weight * epoch).sum(1, keepdim=True) / count
    spread = (weight * time.square()).sum(1)
    slope = (weight * time * values).sum(1) / spread.where(spread > 0, 1.0)
    return (history.shape[1] - 1) * slope


def _weighted(
    history: Float[Tensor, "N K"], observed: Bool[Tensor, "N K"] | None
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    observed = check_history(history, observed)
    return observed.double(), history.double().where(observed, 0.0)


def pass_rate(samples_correct: Bool[Tensor, "N G"] | Float[Tensor, "N G"]) -> Float[Tensor, " N"]:
    """The share of right samples of each prompt.

    Parameters
    ----------
    samples_correct
        True or 1 for a right sample, False or 0 for a wrong one; G samples of each prompt.

    Raises
    ------
    InputError
        When there is no sample, or a value is outside [0, 1] or NaN.
    """
    values = samples_correct.double()
    check_history(values, torch.ones_like(values, dtype=torch.bool))
    return values.mean(1)


def difficulty_band(rate: Float[Tensor, " N"], low: float = 0.25, high: float = 0.625) -> Bool[Tensor, " N"]:
    """Which prompts are neither too easy nor too hard: ``low <= rate <= high``, both ends included.

    A rate of 0 is no sign of a hard prompt: Light-R1 found wrong reference answers for more than half of these.

    Parameters
    ----------
    rate
        Pass rates in [0, 1].
    low, high
        The band; Light-R1's for its reinforcement learning by default.

    Raises
    ------
    InputError
        When not ``0 <= low <= high <= 1``, or a rate is outside [0, 1] or NaN.

    References
    ----------
    Wen et al., "Light-R1", 2025, arXiv 2503.10460.
    """
    if not 0 <= low <= high <= 1:
        raise InputError(f"the band must be 0 <= low <= high <= 1, not {low:g} to {high:g}")
    wrong = ~((rate >= 0) & (rate <= 1))
    if wrong.any():
        at = int(wrong.nonzero()[0, 0])
        raise InputError(f"pass rate {float(rate[at]):g} of prompt {at} is outside [0, 1]")
    return (rate >= low) & (rate <= high)
