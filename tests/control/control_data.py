"""Small episodes for the tests of this room."""

from __future__ import annotations

import numpy as np

from thrifty.control.episode import Episode
from thrifty.control.episodes import Episodes


def make_episodes(lengths=(5, 7, 4), seed=0, observation_dim=3, action_dim=2, **options):
    """Episodes of random numbers."""
    r = np.random.default_rng(seed)
    return Episodes(
        [
            Episode.of(r.normal(size=(t + 1, observation_dim)), r.uniform(-1, 1, (t, action_dim)), r.normal(size=t))
            for t in lengths
        ],
        **options,
    )


def line_world(count=30, steps=20, seed=0):
    """A walker on a line: it moves by 0.4 times its action, the reward is minus its distance from 0; random actions."""
    r = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        position, actions = [r.uniform(-2, 2)], r.uniform(-1, 1, steps)
        for action in actions:
            position.append(position[-1] + 0.4 * action)
        episodes.append(Episode.of(np.array(position), actions, -np.abs(position[1:])))
    return Episodes(episodes)


def distance_after(agent, steps=20):
    """How far from 0 an agent ends in the line world, mean over starts."""
    position = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    actor, reward = agent.start(len(position)), np.zeros(len(position), dtype=np.float32)
    for _ in range(steps):
        position = position + 0.4 * np.clip(actor(position, reward), -1, 1)
        reward = -np.abs(position[:, 0])
    return float(np.abs(position).mean())
