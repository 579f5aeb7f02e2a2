"""REINFORCE with a moving average of rewards, its actor-critic form, and the update of N2N's released code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from thrifty.shrink.controllers import Rollouts


@dataclass(eq=False)
class History:
    """The rewards of each iteration, and the moving average that they are compared with; part of a run's state."""

    rewards: list[list[float]] = field(default_factory=list)
    baseline: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"rewards": self.rewards, "baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes both up again."""
        self.rewards, self.baseline = [list(row) for row in state["rewards"]], state["baseline"]

    def means(self) -> list[float]:
        """The mean reward of each iteration."""
        return [sum(row) / len(row) for row in self.rewards]


def reinforce_loss(logps: Float[Tensor, " N *action"], advantages: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    r"""Its gradient is :math:`-\frac1N \sum_k \sum_t \nabla \log \pi(a_t) (R_k - b)`.

    Parameters
    ----------
    logps
        Of the actions of N episodes.
    advantages
        ``R_k - b``.
    """
    return -(logps.flatten(1).sum(1) * advantages).mean()


def actor_critic_loss(
    logps: Float[Tensor, "N layer"], values: Float[Tensor, " layer"], rewards: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """The policy learns from how much each reward exceeds a layer's value; the values learn the rewards (smooth L1).

    Parameters
    ----------
    logps
        Of the actions of N episodes.
    values
        What the critic expects at each layer.
    rewards
        Of the episodes.
    """
    advantages = rewards[:, None] - values.detach()
    learnt = functional.smooth_l1_loss(values.expand(len(rewards), -1), rewards[:, None].expand(-1, len(values)))
    return -(logps * advantages).sum(1).mean() + learnt


def moving_average(before: float | None, mean: float, decay: float) -> float:
    """The exponential moving average of mean rewards; the first one begins it."""
    return mean if before is None else decay * before + (1 - decay) * mean


def released_baseline(means: list[float]) -> float:
    """What the released code compares an iteration with: the sum of earlier mean rewards, divided by one too many."""
    return sum(means) / (len(means) + 1)


def paper_update(
    drawn: Rollouts, rewards: Float[Tensor, " N"], history: History, optimizer: torch.optim.Optimizer, decay: float
) -> None:
    """One step on all episodes, each with its own reward.

    Parameters
    ----------
    drawn
        The episodes, with their graph.
    rewards
        Of each.
    history
        Its moving average is the baseline where there is no critic, and takes these rewards in.
    optimizer
        Of the policy.
    decay
        Of the moving average.
    """
    mean = float(rewards.mean())
    if drawn.values is not None:
        loss = actor_critic_loss(drawn.logps, drawn.values, rewards)
    else:
        loss = reinforce_loss(drawn.logps, rewards - (mean if history.baseline is None else history.baseline))
    _step(loss, optimizer)
    history.baseline = moving_average(history.baseline, mean, decay)


def released_update(
    drawn: Rollouts,
    rewards: Float[Tensor, " N"],
    history: History,
    optimizer: torch.optim.Optimizer,
    judge: Callable[[Tensor], Rollouts],
) -> None:
    """As the released code does: a step for each episode, all with the mean reward.

    Parameters
    ----------
    drawn, rewards, history, optimizer
        As for :func:`paper_update`.
    judge
        Says how likely actions are now.
    """
    mean = rewards.mean()
    if drawn.values is not None:
        _step(actor_critic_loss(drawn.logps, drawn.values, mean.expand(len(rewards))), optimizer)
        return
    advantage = (mean - released_baseline(history.means())).expand(1)
    for actions in drawn.actions.split(1):
        _step(reinforce_loss(judge(actions).logps, advantage), optimizer)


def _step(loss: Float[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
