"""A quick TD3 that learns by playing, for behaviours of different skill where there is no ready-made controller."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from thrifty.control.base import Agent
from thrifty.control.controllers import RandomPolicy
from thrifty.control.saving import KINDS
from thrifty.control.td3_bc import TD3BC
from thrifty.control.transitions import Spaces, Transitions
from thrifty.core.errors import InputError
from thrifty.core.progress import Progress
from thrifty.core.seeding import seed_everything
from thrifty.core.threads import one_thread

_COPIES = 4  # environments played side by side


class ReplayBuffer:
    """The last ``capacity`` steps.

    Parameters
    ----------
    capacity
        How many are kept.
    spaces
        Sizes of observations and actions.
    """

    def __init__(self, capacity: int, spaces: Spaces) -> None:
        size, action = spaces.observation_dim, spaces.action_dim
        columns = (torch.empty(capacity, size), torch.empty(capacity, action), torch.empty(capacity))
        number = torch.zeros(capacity, dtype=torch.long)
        self._rows = Transitions(
            columns[0], columns[1], columns[2], torch.empty(capacity, size), torch.empty(capacity), number, number
        )
        self.capacity, self.added = capacity, 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self, observation: np.ndarray, action: np.ndarray, reward: np.ndarray, after: np.ndarray, terminal: np.ndarray
    ) -> None:
        """Appends n steps; the oldest make room.

        Parameters
        ----------
        observation, after
            ``[n, ds]``.
        action
            ``[n, da]``.
        reward, terminal
            ``[n]``.
        """
        place = torch.arange(self.added, self.added + len(reward)) % self.capacity
        rows = self._rows
        columns = (rows.observation, rows.action, rows.reward, rows.next_observation, rows.terminal)
        for column, values in zip(columns, (observation, action, reward, after, terminal), strict=True):
            column[place] = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        self.added += len(reward)

    def sample(self, batch_size: int) -> Transitions:
        """Steps drawn uniformly, by the global generator."""
        return self._rows.rows(torch.randint(len(self), (batch_size,)))


def train_td3(env_id: str, steps: int, seed: int = 0) -> tuple[Agent, Agent]:
    """Learns an environment with TD3.

    Parameters
    ----------
    env_id
        A Gymnasium id.
    steps
        Steps of the environment, one update each; the first eighth of them, at most 1000, is played at random.
    seed
        Of everything.

    Returns
    -------
    tuple of Agent
        As it was half-way, and at the end.
    """
    from thrifty.control.envs import make_many

    if steps < 100:
        raise InputError(f"training a behaviour takes at least 100 steps, not {steps}")
    warmup = min(1000, steps // 8)
    seed_everything(seed)
    envs = make_many(env_id, _COPIES)
    space = envs.single_action_space
    spaces = Spaces(envs.single_observation_space.shape[0], tuple(space.low.tolist()), tuple(space.high.tolist()))
    agent = TD3BC(bc_weight=0.0, alpha=1.0, learning_rate=1e-3, hidden=(128, 128)).create(spaces)
    half: Agent = agent
    buffer, generator = ReplayBuffer(steps, spaces), np.random.default_rng(seed)
    at_random = RandomPolicy(spaces.low, spaces.high, seed).start(_COPIES)
    observation, _ = envs.reset(seed=seed)
    fresh = np.zeros(_COPIES, dtype=bool)
    with Progress("behaviours", steps) as progress, one_thread():
        for step in range(0, steps, _COPIES):
            if step < warmup:
                action = at_random(observation, np.zeros(_COPIES, dtype=np.float32))
            else:
                noise = 0.1 * (space.high - space.low) / 2 * generator.standard_normal((_COPIES, spaces.action_dim))
                action = np.clip(agent.act(observation) + noise, space.low, space.high).astype(np.float32)
            after, reward, terminated, truncated, _ = envs.step(action)
            # The step after an episode's end only starts the next one: its action did nothing.
            real = ~fresh
            buffer.add(observation[real], action[real], reward[real], after[real], terminated[real])
            observation, fresh = after, terminated | truncated
            for _ in range(_COPIES if step >= warmup else 0):
                agent.update(buffer.sample(256))
            if step < steps // 2 <= step + _COPIES:
                half = _copy(agent)
            progress.update(_COPIES)
    envs.close()
    return half, agent


def _copy(agent: Agent) -> Agent:
    twin = KINDS[agent.config.name](**dataclasses.asdict(agent.config)).create(agent.spaces, device=agent.device)
    twin.networks.load_state_dict(agent.networks.state_dict())
    twin.updates = agent.updates
    return twin
