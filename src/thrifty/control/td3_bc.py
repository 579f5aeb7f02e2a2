"""TD3+BC: twin delayed deterministic policy gradient, held near the logged actions by a squared error.

Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.control.base import Agent, AgentConfig, adam, minimise
from thrifty.control.transitions import Spaces, Transitions
from thrifty.nets.gaussian import DeterministicPolicy
from thrifty.nets.mlp import EnsembleCritic, follow, target_of
from thrifty.nets.normaliser import Normaliser


@dataclass(frozen=True)
class TD3BC(AgentConfig):
    """TD3 whose actor also minimises ``(pi(s) - a)^2`` on the data.

    Parameters
    ----------
    alpha
        Weight of the value against imitation: ``lambda = alpha / mean |Q|``.
    bc_weight
        Weight of imitation; 0 leaves TD3, for data of the agent's own.
    discount
        gamma.
    rate
        tau: share of the way that the target networks move at a time.
    target_noise, noise_clip
        Standard deviation and largest size of the noise on the target's action, in [-1, 1] units.
    policy_every
        Critic updates for each update of the actor and the targets.
    learning_rate
        Of actor and critics.
    hidden
        Widths of the hidden layers.
    critics
        How many critics; the target takes the least of them.
    """

    name: ClassVar[str] = "td3-bc"

    alpha: float = 2.5
    bc_weight: float = 1.0
    discount: float = 0.99
    rate: float = 0.005
    target_noise: float = 0.2
    noise_clip: float = 0.5
    policy_every: int = 2
    learning_rate: float = 3e-4
    hidden: tuple[int, ...] = (256, 256)
    critics: int = 2

    def create(
        self, spaces: Spaces, *, normaliser: Normaliser | None = None, device: torch.device | str = "cpu"
    ) -> TD3BCAgent:
        return TD3BCAgent(self, spaces, normaliser or Normaliser.identity(spaces.observation_dim), device)


def bellman_target(
    reward: Float[Tensor, " batch"],
    terminal: Float[Tensor, " batch"],
    next_values: Float[Tensor, "critics batch"],
    discount: float,
) -> Float[Tensor, " batch"]:
    """``r + gamma (1 - terminal) min_e Q_e(s', a')``: only terminations zero the future, time limits do not.

    Parameters
    ----------
    reward, terminal
        Of the step.
    next_values
        Each target critic's value of the next state.
    discount
        gamma.
    """
    return reward + discount * (1 - terminal) * next_values.amin(0)


def actor_loss(
    value: Float[Tensor, " batch"],
    action: Float[Tensor, "batch action"],
    logged: Float[Tensor, "batch action"],
    alpha: float,
    bc_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """``-lambda mean Q(s, pi(s)) + mean (pi(s) - a)^2`` with ``lambda = alpha / mean |Q|``, held constant.

    Parameters
    ----------
    value
        ``Q_1(s, pi(s))``.
    action, logged
        The policy's and the logged actions, in [-1, 1].
    alpha, bc_weight
        See :class:`TD3BC`.
    """
    scale = alpha / value.detach().abs().mean().clamp_min(1e-6)
    return -scale * value.mean() + bc_weight * (action - logged).square().mean()


class TD3BCAgent(Agent):
    """A trained or untrained TD3+BC agent; made by :meth:`TD3BC.create`."""

    config: TD3BC

    def __init__(self, config: TD3BC, spaces: Spaces, normaliser: Normaliser, device: torch.device | str) -> None:
        sizes = (spaces.observation_dim, spaces.action_dim, config.hidden)
        self.actor = DeterministicPolicy(*sizes)
        self.critic = EnsembleCritic(config.critics, *sizes)
        self.target_actor, self.target_critic = target_of(self.actor), target_of(self.critic)
        networks = {
            "normaliser": normaliser,
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
        }
        super().__init__(config, spaces, networks, device)
        rate = config.learning_rate
        self.optimizers = {"actor": adam(self.actor, rate), "critic": adam(self.critic, rate)}

    def policy(self, observation: Tensor) -> Tensor:
        return self.actor(observation)

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of the critics, and of actor and targets every ``policy_every``-th time."""
        c = self.config
        state, action = self.normalise(batch.observation), self.to_unit(batch.action)
        with torch.no_grad():
            after = self.normalise(batch.next_observation)
            noise = (torch.randn_like(action) * c.target_noise).clamp(-c.noise_clip, c.noise_clip)
            next_action = (self.target_actor(after) + noise).clamp(-1, 1)
            next_values = self.target_critic.value(after, next_action)
            target = bellman_target(batch.reward, batch.terminal, next_values, c.discount)
        values = self.critic.value(state, action)
        critic_loss = (values - target).square().mean(1).sum()
        minimise(self.optimizers["critic"], critic_loss)
        logged = {"critic_loss": critic_loss.detach(), "value": values.detach().mean()}
        self.updates += 1
        if self.updates % c.policy_every == 0:
            chosen = self.actor(state)
            value = self.critic.value(state, chosen, first=1, frozen=True)[0]
            loss = actor_loss(value, chosen, action, c.alpha, c.bc_weight)
            minimise(self.optimizers["actor"], loss)
            follow(self.target_critic, self.critic, c.rate)
            follow(self.target_actor, self.actor, c.rate)
            logged["actor_loss"] = loss.detach()
        return logged
