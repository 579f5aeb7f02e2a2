"""How rewards of steps become the advantage of tokens: min-form credit, and baselines that know of steps.

Shapes: N answers, T tokens; a step's reward stands on its last token, all other tokens have 0. ``group [N]`` is the
number of each answer's prompt.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.align.credit import group_statistics, whiten
from thrifty.core.errors import InputError
from thrifty.reward.steps import rewards_to_go

CreditForm = Literal["transform", "strict", "sum"]
StepBaseline = Literal["token", "step"]


def min_form(
    step_reward: Float[Tensor, "N T"],
    step_mask: Bool[Tensor, "N T"],
    *,
    temperature: float = 0.1,
    form: CreditForm = "transform",
) -> Float[Tensor, "N T"]:
    r"""Step rewards whose plain sum to go is (about) the least reward to come, instead of their sum.

    .. math::
        \text{transform: } r^*_i = \mathrm{softmax}(-r / T)_i \, r_i, \qquad
        \text{strict: } r^*_i = m_i - m_{i+1}, \quad m_i = \min_{j \ge i} r_j, \quad m_{n+1} = 0

    As T goes to 0, the sum of the transform from a step on is the worst step's reward up to that step, and 0 after
    it. The strict form's is :math:`m_i` itself at every step.

    Parameters
    ----------
    step_reward
        Rewards; what stands outside of ``step_mask`` is not looked at. Columns may be tokens or steps.
    step_mask
        Where a step ends.
    temperature
        T; not that of the sampling.
    form
        ``transform``, ``strict``, or ``sum``, which leaves the rewards as they are.

    Returns
    -------
    Tensor
        0 outside of ``step_mask``.

    References
    ----------
    Cheng et al., arXiv 2504.15275, section 3.
    """
    if form == "sum":
        return torch.where(step_mask, step_reward, 0.0)
    if form == "strict":
        least = suffix_min(step_reward, step_mask)
        following = torch.cat([least[:, 1:], torch.full_like(least[:, :1], float("inf"))], 1)[:, : least.shape[1]]
        return torch.where(step_mask, least - following.masked_fill(following.isinf(), 0.0), 0.0)
    # Steps only, before the normalisation; a row without steps would be a softmax over nothing.
    logits = (-step_reward / temperature).masked_fill(~step_mask, float("-inf"))
    weight = torch.where(step_mask.any(1, keepdim=True), logits, 0.0).softmax(1)
    return torch.where(step_mask, weight * step_reward, 0.0)


def suffix_min(step_reward: Float[Tensor, "N T"], step_mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    r""":math:`m_t`: the least reward of a step that ends at t or later; infinite after the last step."""
    rewards = step_reward.masked_fill(~step_mask, float("inf"))
    return rewards.flip(1).cummin(1).values.flip(1)


def rloo_token_advantage(
    token_reward: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    group: Int[Tensor, " N"],
    *,
    longest: int,
    whitened: bool = True,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    r"""Returns of tokens minus one number an answer, what the other answers' tokens return on average.

    .. math::
        G_{i,t} = \sum_{t' \ge t} r_{i,t'}, \qquad
        A_{i,t} = G_{i,t} - \frac{1}{(K-1) N} \sum_{k \ne i} \sum_t G_{k,t}

    Parameters
    ----------
    token_reward
        All rewards of each token: steps, verifier, divergence.
    mask
        Where the model spoke.
    group
        The prompt of each answer.
    longest
        N: tokens of the longest answer that could have been given. Not the longest that was given: the divisor must
        not follow the lengths, or short answers of few steps look better than they are.
    whitened
        Normalise over all tokens in the end, to mean 0 and variance 1.

    Returns
    -------
    tuple
        Advantages and returns, 0 outside of the mask.

    Raises
    ------
    InputError
        When a prompt has one answer only.
    """
    returns = rewards_to_go(token_reward, mask)
    average = returns.sum(1) / longest
    mean, _, count = group_statistics(average, group)
    check_groups(count)
    baseline = (mean * count - average) / (count - 1)
    advantage = (returns - baseline[:, None]) * mask
    return (whiten(advantage, mask) if whitened else advantage), returns


def less_step_baseline(
    step_reward: Float[Tensor, "N T"],
    step_mask: Bool[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    group: Int[Tensor, " N"],
    how: StepBaseline = "token",
) -> Float[Tensor, "N T"]:
    r"""Step rewards minus what the other answers to the prompt get for as much (the released code's main branch).

    .. math::
        \text{token: } r_{i,s} - \ell_{i,s} \frac{\sum_{k \ne i} R_k}{\sum_{k \ne i} |y_k|}, \qquad
        \text{step: } r_{i,s} - \frac{1}{K-1} \sum_{k \ne i} \frac{R_k}{n_k}

    R is an answer's sum of step rewards, n its number of steps, |y| its number of tokens with separators, and
    :math:`\ell` a step's number of tokens without its last one, the separator. The baseline per step favours answers
    of few steps; the one per token is the authors' choice.

    Parameters
    ----------
    step_reward, step_mask, mask, group
        As above.
    how
        ``token`` or ``step``.

    Raises
    ------
    InputError
        When a prompt has one answer only.
    """
    total = (step_reward * step_mask).sum(1)
    if how == "step":
        others = _of_the_others(total / step_mask.sum(1).clamp(min=1), group, mean=True)
        return torch.where(step_mask, step_reward - others[:, None], 0.0)
    lengths = mask.sum(1).to(total.dtype)
    per_token = _of_the_others(total, group) / _of_the_others(lengths, group).clamp(min=1)
    return torch.where(step_mask, step_reward - per_token[:, None] * tokens_of_step(step_mask, mask), 0.0)


def tokens_of_step(step_mask: Bool[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """At each step's last token, the number of the step's tokens before it; 0 elsewhere."""
    spoken = mask.cumsum(1) * step_mask
    before = torch.cat([torch.zeros_like(spoken[:, :1]), spoken[:, :-1]], 1).cummax(1).values
    return torch.where(step_mask, spoken - before - 1, 0).float()


def whiten_nonzero(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Mean 0 and variance 1 over the masked entries that are not 0; zeros stay zeros.

    The released code leaves zeros out of the mean and of the count, but sums them into the variance; here they are
    out of all three.
    """
    chosen = mask & (values != 0)
    count = chosen.sum().clamp(min=1)
    mean = torch.where(chosen, values, 0.0).sum() / count
    variance = torch.where(chosen, values - mean, 0.0).square().sum() / count
    return torch.where(chosen, (values - mean) * variance.clamp(min=1e-8).rsqrt(), 0.0)


def check_groups(count: Int[Tensor, " N"]) -> None:
    """Raises an :class:`InputError` when a prompt has one answer only: there is nothing to compare it with."""
    if bool((count < 2).any()):
        raise InputError("each answer is compared with the others to its prompt: give --samples 2 or more")


def _of_the_others(values: Float[Tensor, " N"], group: Int[Tensor, " N"], mean: bool = False) -> Float[Tensor, " N"]:
    """The sum, or the mean, of what the other answers to the prompt have."""
    average, _, count = group_statistics(values, group)
    check_groups(count)
    others = average * count - values
    return others / (count - 1) if mean else others


def repeated_share(ids: Int[Tensor, " T"], size: int) -> float:
    """The share of an answer's runs of ``size`` tokens that were there before; 0 for shorter answers."""
    if len(ids) < size:
        return 0.0
    runs = ids.unfold(0, size, 1)
    return 1.0 - len(runs.unique(dim=0)) / len(runs)
