"""CQL(H): soft actor-critic whose critics are pushed down where the data has no actions.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779, with the importance
sampled estimate of the log-sum-exp (appendix F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.control.base import Agent, AgentConfig, adam, minimise
from thrifty.control.td3_bc import bellman_target
from thrifty.control.transitions import Spaces, Transitions
from thrifty.nets.gaussian import GaussianPolicy, squashed_sample
from thrifty.nets.mlp import EnsembleCritic, follow, target_of
from thrifty.nets.normaliser import Normaliser

_ROWS_IN_CACHE = 1024  # rows of 256 floats that two critics keep in a second-level cache


@dataclass(frozen=True)
class CQL(AgentConfig):
    """Conservative Q-learning on top of soft actor-critic.

    Parameters
    ----------
    conservative_weight
        Weight of ``logsumexp Q - Q(s, a)`` beside the Bellman error.
    samples
        Actions drawn uniformly, from ``pi(s)`` and from ``pi(s')``: this many of each.
    discount
        gamma.
    rate
        tau: share of the way that the target critics move at a time.
    policy_learning_rate
        Of the policy and the entropy temperature.
    critic_learning_rate
        Of the critics.
    target_entropy
        What the policy's entropy is tuned to, in nats; minus the number of action dimensions by default.
    entropy_backup
        Subtract the entropy term from the value of the next state as well, as in SAC; the usual CQL does not.
    hidden
        Widths of the hidden layers.
    critics
        How many critics; the target takes the least of them.
    """

    name: ClassVar[str] = "cql"

    conservative_weight: float = 5.0
    samples: int = 10
    discount: float = 0.99
    rate: float = 0.005
    policy_learning_rate: float = 1e-4
    critic_learning_rate: float = 3e-4
    target_entropy: float | None = None
    entropy_backup: bool = False
    hidden: tuple[int, ...] = (256, 256, 256)
    critics: int = 2

    def create(
        self, spaces: Spaces, *, normaliser: Normaliser | None = None, device: torch.device | str = "cpu"
    ) -> CQLAgent:
        return CQLAgent(self, spaces, normaliser or Normaliser.identity(spaces.observation_dim), device)


def conservative_gap(
    sampled: Float[Tensor, "critics samples batch"],
    log_density: Float[Tensor, "samples batch"],
    logged: Float[Tensor, "critics batch"],
) -> Float[Tensor, " critics"]:
    """``mean_s [log sum_i exp(Q(s, a_i) - log p(a_i)) - Q(s, a)]`` of each critic.

    Parameters
    ----------
    sampled
        Values of sampled actions; those of the logged action are not among them.
    log_density
        Log-density that each was drawn from.
    logged
        Values of the logged actions.
    """
    return (torch.logsumexp(sampled - log_density, 1) - logged).mean(-1)


class Temperature(nn.Module):
    """The weight of the entropy, learnt so that the policy's entropy meets a target."""

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Float[Tensor, ""]:
        """The temperature."""
        return self.log_value.exp()

    def loss(self, entropy: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
        """Falls as the temperature rises while the entropy is below its target, and the other way round."""
        return self.log_value.exp() * (entropy.detach() - target)


class CQLAgent(Agent):
    """A trained or untrained CQL agent; made by :meth:`CQL.create`."""

    config: CQL

    def __init__(self, config: CQL, spaces: Spaces, normaliser: Normaliser, device: torch.device | str) -> None:
        sizes = (spaces.observation_dim, spaces.action_dim, config.hidden)
        self.actor, self.temperature = GaussianPolicy(*sizes), Temperature()
        self.critic = EnsembleCritic(config.critics, *sizes)
        self.target_critic = target_of(self.critic)
        networks = {
            "normaliser": normaliser,
            "actor": self.actor,
            "critic": self.critic,
            "target_critic": self.target_critic,
            "temperature": self.temperature,
        }
        super().__init__(config, spaces, networks, device)
        self.target_entropy = -float(spaces.action_dim) if config.target_entropy is None else config.target_entropy
        self.optimizers = {
            "actor": adam(self.actor, config.policy_learning_rate),
            "temperature": adam(self.temperature, config.policy_learning_rate),
            "critic": adam(self.critic, config.critic_learning_rate),
        }

    def policy(self, observation: Tensor) -> Tensor:
        return torch.tanh(self.actor(observation)[0])

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of temperature, policy, critics and target critics."""
        c = self.config
        state, action = self.normalise(batch.observation), self.to_unit(batch.action)
        after = self.normalise(batch.next_observation)
        size = len(batch)
        # The policy's view of this state (which learns) and of the next (which does not) in one pass.
        mean, log_std = self.actor(torch.cat([state, after]))
        chosen, log_prob = squashed_sample(mean[:size], log_std[:size])
        temperature = self.temperature()
        minimise(self.optimizers["temperature"], self.temperature.loss(-log_prob.mean(), self.target_entropy))
        value = self.critic.value(state, chosen, frozen=True).amin(0)
        policy_loss = (temperature.detach() * log_prob - value).mean()
        minimise(self.optimizers["actor"], policy_loss)

        mean, log_std = mean.detach(), log_std.detach()
        with torch.no_grad():
            next_action, next_log_prob = squashed_sample(mean[size:], log_std[size:])
            next_values = self.target_critic.value(after, next_action)
            if c.entropy_backup:
                next_values = next_values - temperature * next_log_prob
            target = bellman_target(batch.reward, batch.terminal, next_values, c.discount)
        bellman, gap, values = self._learn_values(state, action, mean, log_std, target)
        follow(self.target_critic, self.critic, c.rate)
        self.updates += 1
        return {
            "critic_loss": bellman,
            "conservative_gap": gap,
            "policy_loss": policy_loss.detach(),
            "value": values,
            "entropy": -log_prob.detach().mean(),
            "temperature": temperature.detach(),
        }

    def _learn_values(
        self, state: Tensor, action: Tensor, mean: Tensor, log_std: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the critics; returns Bellman error, conservative gap and values of the logged actions."""
        c, size = self.config, len(state)
        drawn, log_prob = squashed_sample(mean, log_std, c.samples)
        uniform = torch.rand(c.samples, *action.shape, device=action.device) * 2 - 1
        actions = torch.cat([action[None], uniform, drawn[:, :size], drawn[:, size:]])
        density = torch.full_like(log_prob[:, :size], -action.shape[-1] * math.log(2.0))
        log_density = torch.cat([density, log_prob[:, :size], log_prob[:, size:]])
        # All critics judge all actions in one pass. On a processor that pass goes by groups of states whose activations
        # stay in its cache; the loss is a mean over states, so the gradients of the groups add up to the same.
        group = size if state.is_cuda else max(_ROWS_IN_CACHE // len(actions), 1)
        optimizer = self.optimizers["critic"]
        optimizer.zero_grad(set_to_none=True)
        parts = []
        for rows in torch.arange(size, device=state.device).split(group):
            share = len(rows) / size
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            states = state[part].expand(len(actions), -1, -1)
            values = self.critic.value(states.flatten(0, 1), actions[:, part].flatten(0, 1))
            values = values.unflatten(1, (len(actions), len(rows)))
            bellman = share * (values[:, 0] - target[part]).square().mean(1).sum()
            gap = share * conservative_gap(values[:, 1:], log_density[:, part], values[:, 0]).sum()
            (bellman + c.conservative_weight * gap).backward()
            parts.append((bellman.detach(), gap.detach(), share * values[:, 0].detach().mean()))
        optimizer.step()
        total = torch.stack([torch.stack(part) for part in parts]).sum(0)
        return total[0], total[1], total[2]
