r"""How TOFU measures unlearning of question-answer pairs: truth ratio, forget quality, model utility.

Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024, arXiv 2401.06121. Where its text and the code that
later papers share differ, this is the code: the truth ratio here is large where the true answer is preferred.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.lm.logps import sequence_logps


def answer_losses(logps: Float[Tensor, "row time"], mask: Bool[Tensor, "row time"]) -> Float[Tensor, " row"]:
    """Negative log-likelihood of each answer, divided by its number of tokens; in nats.

    Parameters
    ----------
    logps
        From :func:`thrifty.lm.logps.token_logps`.
    mask
        True at answer tokens.
    """
    return -sequence_logps(logps, mask, "mean")


def truth_ratio(
    paraphrased: Float[Tensor, " question"], perturbed: Float[Tensor, "question wrong"]
) -> Float[Tensor, " question"]:
    r"""How much likelier a true answer is than wrong ones, :math:`R = \exp(\operatorname{mean}_k l_k - l)`.

    Parameters
    ----------
    paraphrased
        Loss l of the true answer in other words.
    perturbed
        Losses of wrong answers in the same words.

    Returns
    -------
    Tensor
        Above 1 where the true answer is preferred.
    """
    return (perturbed.mean(1) - paraphrased).exp()


def forget_truth_score(ratio: Float[Tensor, " question"]) -> Float[Tensor, ""]:
    """The mean of min(R, 1/R): 1 where true and wrong answers are equally likely."""
    return torch.minimum(ratio, 1 / ratio).mean()


def retain_truth_score(ratio: Float[Tensor, " question"]) -> Float[Tensor, ""]:
    """The mean of max(0, 1 - 1/R): near 1 where the true answers are much likelier."""
    return (1 - 1 / ratio).clamp(min=0).mean()


def answer_probability(losses: Float[Tensor, " question"]) -> Float[Tensor, ""]:
    """The mean of exp(-l): the geometric mean of an answer's token probabilities."""
    return (-losses).exp().mean()


def choice_probability(
    losses: Float[Tensor, " question"], perturbed: Float[Tensor, "question wrong"]
) -> Float[Tensor, ""]:
    """The mean share of the true answer's probability among it and the wrong ones.

    Parameters
    ----------
    losses, perturbed
        Of the true answer, and of each wrong one.
    """
    right = (-losses).exp()
    return (right / (right + (-perturbed).exp().sum(1))).mean()


def rouge_l_recall(said: str, answer: str) -> float:
    """The share of an answer's words that what was said holds in the same order (without stemming).

    Parameters
    ----------
    said
        What the model answered.
    answer
        The right answer; one without a word counts as found.
    """
    words, wanted = (re.findall(r"\w+", text.lower()) for text in (said, answer))
    if not wanted:
        return 1.0
    longest = [0] * (len(words) + 1)
    for one in wanted:
        before = 0  # of the row above, one place to the left
        for place, word in enumerate(words, start=1):
            above = longest[place]
            longest[place] = before + 1 if word == one else max(above, longest[place - 1])
            before = above
    return longest[-1] / len(wanted)


def forget_quality(unlearned: Sequence[float] | Tensor, retained: Sequence[float] | Tensor) -> float:
    """How well the truth ratios on the forget set fit those of a model that never saw it.

    Parameters
    ----------
    unlearned, retained
        Truth ratios of the model that forgot, and of the one trained on the retain set alone. Both in the same
        direction.

    Returns
    -------
    float
        The p value of the two-sample Kolmogorov-Smirnov test; above 0.05, the two can't be told apart.

    Raises
    ------
    InputError
        When either is empty or holds NaN.
    """
    return float(_compared(unlearned, retained).pvalue)


def forget_distance(unlearned: Sequence[float] | Tensor, retained: Sequence[float] | Tensor) -> float:
    """The statistic of the same test: the largest difference of the two cumulative distributions, from 0 to 1.

    Parameters and errors are those of :func:`forget_quality`.
    """
    return float(_compared(unlearned, retained).statistic)


def _compared(unlearned: Sequence[float] | Tensor, retained: Sequence[float] | Tensor) -> Any:
    from scipy.stats import ks_2samp

    mine, theirs = (torch.as_tensor(given, dtype=torch.float64) for given in (unlearned, retained))
    for ratios in (mine, theirs):
        if not len(ratios) or ratios.isnan().any():
            raise InputError("truth ratios are missing or NaN: forget quality needs some of both models")
    return ks_2samp(mine.numpy(), theirs.numpy())


def model_utility(parts: Mapping[str, float]) -> float:
    """The harmonic mean of what a model is still good for: close to 0 as soon as one part is.

    Parameters
    ----------
    parts
        At least 0. TOFU has nine: ROUGE-L recall, probability and truth ratio, on the retain set, real authors and
        facts of the world.

    Raises
    ------
    InputError
        When there is none, or one is negative or NaN.
    """
    if not parts:
        raise InputError("there is nothing to take the mean of: give the parts of the utility")
    for name, value in parts.items():
        if not value >= 0:
            raise InputError(f"{name} is {value:g}: parts of the utility are at least 0")
    if min(parts.values()) == 0:
        return 0.0
    return len(parts) / sum(1 / value for value in parts.values())
