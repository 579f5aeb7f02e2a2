"""How the worth of answers becomes the advantage of their tokens.

The third slot of the room. Shapes: N answers, T tokens; ``group [N]`` is the number of each answer's prompt.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.core.errors import InputError


def group_statistics(
    reward: Float[Tensor, " N"], group: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Mean, unbiased standard deviation (0 for a group of one) and size of each answer's group.

    Parameters
    ----------
    reward
        Worth of each answer.
    group
        The prompt of each answer; any integers, in any order.
    """
    _, place, counts = group.unique(return_inverse=True, return_counts=True)
    sums = reward.new_zeros(len(counts)).index_add_(0, place, reward)
    mean = (sums / counts)[place]
    squares = reward.new_zeros(len(counts)).index_add_(0, place, (reward - mean) ** 2)
    deviation = (squares / (counts - 1).clamp(min=1)).sqrt()[place]
    return mean, deviation, counts[place]


def group_normalised(
    reward: Float[Tensor, " N"], group: Int[Tensor, " N"], epsilon: float = 1e-4
) -> Float[Tensor, " N"]:
    r""":math:`A_i = (R_i - \text{mean}_g) / (\text{std}_g + \epsilon)`, with the unbiased deviation of the group.

    A group of one keeps its reward.

    Parameters
    ----------
    reward, group
        As for :func:`group_statistics`.
    epsilon
        Keeps groups whose answers are all alike from dividing by 0: their advantages are 0.

    References
    ----------
    DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    """
    mean, deviation, count = group_statistics(reward, group)
    return torch.where(count > 1, (reward - mean) / (deviation + epsilon), reward)


def group_centred(reward: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    r""":math:`A_i = R_i - \text{mean}_g`, without the division that favours groups of little spread (Dr. GRPO).

    References
    ----------
    Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783, section 3.2.
    """
    mean, _, count = group_statistics(reward, group)
    return torch.where(count > 1, reward - mean, reward)


def leave_one_out(reward: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    r""":math:`A_i = R_i - \frac{1}{K-1} \sum_{k \ne i} R_k` over the K answers to a prompt (RLOO).

    Raises
    ------
    InputError
        When a prompt has one answer only: there is nothing to compare it with.

    References
    ----------
    Ahmadian et al., "Back to Basics", arXiv 2402.14740, section 2.
    """
    mean, _, count = group_statistics(reward, group)
    if bool((count < 2).any()):
        raise InputError("leave-one-out needs at least two answers to each prompt: give --samples 2 or more")
    return (reward - mean) * count / (count - 1)


def equal_groups(reward: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """The share of answers in groups of several whose rewards are all the same: they teach nothing."""
    _, deviation, count = group_statistics(reward, group)
    return ((deviation == 0) & (count > 1)).float().mean()


def whiten(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], epsilon: float = 1e-8) -> Float[Tensor, "N T"]:
    r""":math:`(x - \text{mean}) / \sqrt{\text{var} + \epsilon}` over the masked entries, unbiased; 0 elsewhere."""
    chosen = values[mask]
    if len(chosen) < 2:
        return values * mask
    variance, mean = torch.var_mean(chosen)
    return (values - mean) * (variance + epsilon).rsqrt() * mask


def generalised_advantage(
    rewards: Float[Tensor, "N T"],
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    discount: float = 1.0,
    trace: float = 0.95,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    r"""Generalised advantage estimation over the masked tokens, which may have gaps between them.

    .. math::
        \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}

    Parameters
    ----------
    rewards, values
        Reward of each token, and the critic's value before it.
    mask
        Where the model spoke.
    discount, trace
        :math:`\gamma` and :math:`\lambda`.

    Returns
    -------
    tuple
        Advantages, and returns :math:`A + V`, which the critic learns; both 0 outside of the mask.

    References
    ----------
    Schulman et al., "High-Dimensional Continuous Control Using GAE", arXiv 1506.02438, equation 16.
    """
    following, running = rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))
    steps = []
    for reward, value, here in zip(
        rewards.flip(1).unbind(1), values.flip(1).unbind(1), mask.flip(1).unbind(1), strict=True
    ):
        advantage = reward + discount * following - value + discount * trace * running
        running = torch.where(here, advantage, running)
        following = torch.where(here, value, following)
        steps.append(running)
    advantages = torch.stack(steps[::-1], 1) * mask
    return advantages, (advantages + values) * mask


def at_last_token(reward: Float[Tensor, " N"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Each answer's reward on the last of its tokens, 0 on the others; an answer without tokens has none."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).amax(1, keepdim=True)
    return reward[:, None] * ((positions == last) & mask)
