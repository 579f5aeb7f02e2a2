"""Behaviours of different skill for the environments that we generate data in, none of them learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thrifty.control.base import Actor, Policy

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RandomPolicy:
    """Actions drawn uniformly.

    Parameters
    ----------
    low, high
        Bounds of the action space.
    seed
        Of the draws.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    seed: int = 0

    def start(self, count: int) -> Actor:
        """An actor for ``count`` episodes."""
        generator = np.random.default_rng(self.seed)
        shape = (count, len(self.low))
        return lambda _observation, _reward: generator.uniform(self.low, self.high, shape).astype(np.float32)


@dataclass(frozen=True)
class NoisyPolicy:
    """Another policy, disturbed.

    Parameters
    ----------
    policy
        The policy.
    low, high
        Bounds of the action space.
    noise
        Standard deviation of what is added, as a share of half the action range.
    lapse
        Probability of a uniformly drawn action instead.
    seed
        Of the draws.
    """

    policy: Policy
    low: tuple[float, ...]
    high: tuple[float, ...]
    noise: float = 0.1
    lapse: float = 0.0
    seed: int = 0

    def start(self, count: int) -> Actor:
        """An actor for ``count`` episodes."""
        generator, actor = np.random.default_rng(self.seed), self.policy.start(count)
        low, high = np.array(self.low), np.array(self.high)

        def act(observation: Array, reward: Array) -> Array:
            action = actor(observation, reward)
            action = action + self.noise * (high - low) / 2 * generator.standard_normal(action.shape)
            lapsed = generator.random((count, 1)) < self.lapse
            action = np.where(lapsed, generator.uniform(low, high, action.shape), action)
            return np.clip(action, low, high).astype(np.float32)

        return act


@dataclass(frozen=True)
class PointMassController:
    """Pulls towards the goal and against the velocity, which it takes from the last two positions.

    Parameters
    ----------
    pull
        Action per distance from the goal.
    damping
        Action per velocity.
    hold
        Action per distance of the goal from the bottom, against the bowl's slope.
    dt
        Time of one step of the environment.
    goal
        Where to.
    """

    pull: float = 1.0
    damping: float = 0.2
    hold: float = 0.25
    dt: float = 0.25
    goal: tuple[float, float] = (1.5, 0.0)

    def start(self, count: int) -> Actor:
        """An actor for ``count`` episodes."""
        del count
        before: list[Array] = []
        goal = np.array(self.goal)

        def act(observation: Array, _reward: Array) -> Array:
            velocity = (observation - (before[0] if before else observation)) / self.dt
            before[:] = [observation]
            action = self.pull * (goal - observation) - self.damping * velocity + self.hold * goal
            return np.clip(action, -1, 1).astype(np.float32)

        return act


@dataclass(frozen=True)
class SwingUp:
    """Pumps energy into Gymnasium's pendulum until it can stand, then balances it.

    Parameters
    ----------
    pump
        Torque per angular velocity and missing energy.
    stiffness, damping
        Of the balancing, in torque per angle and per angular velocity.
    """

    pump: float = 2.0
    stiffness: float = 14.0
    damping: float = 3.0

    def start(self, count: int) -> Actor:
        """An actor for ``count`` episodes."""
        del count
        return lambda observation, _reward: self._torque(observation)

    def _torque(self, observation: Array) -> Array:
        cosine, sine, speed = observation.T
        # Mass and length 1, gravity 10: the energy is speed^2 / 6 + 5 cos(angle), 5 when it stands.
        missing = 5 - (speed**2 / 6 + 5 * cosine)
        pumping = self.pump * missing * np.where(speed == 0, 1.0, np.sign(speed))
        angle = np.arctan2(sine, cosine)
        balancing = -self.stiffness * angle - self.damping * speed
        near = (cosine > 0.9) & (np.abs(missing) < 2.5)
        return np.clip(np.where(near, balancing, pumping), -2, 2)[:, None].astype(np.float32)
