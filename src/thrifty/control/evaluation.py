"""Policies at play: many episodes side by side, one forward pass a step for all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from thrifty.control.base import Policy
from thrifty.control.episode import Episode
from thrifty.control.episodes import Episodes
from thrifty.core.errors import RunError
from thrifty.core.statistics import mean_interval
from thrifty.core.threads import one_thread


class Score(NamedTuple):
    """The undiscounted return of a policy, with its 95% interval over episodes.

    Parameters
    ----------
    mean, low, high
        Mean and the ends of the interval.
    length
        Mean steps of an episode.
    episodes
        How many were played.
    """

    mean: float
    low: float
    high: float
    length: float
    episodes: int


def rollout(env_id: str, policy: Policy, count: int, seed: int, max_steps: int = 10_000) -> Episodes:
    """Plays episodes and writes them down.

    Parameters
    ----------
    env_id
        A Gymnasium id.
    policy
        Who plays.
    count
        How many episodes; all of them run side by side.
    seed
        Episode i starts from ``seed + i``.
    max_steps
        Cut an episode off there, for environments without an end.

    Returns
    -------
    Episodes
        In the order of their seeds, with the bounds of the action space.

    Raises
    ------
    InputError
        When the environment can't be made or is of another kind.
    RunError
        When the policy returns something that is not finite.
    """
    from thrifty.control.envs import make_many

    envs = make_many(env_id, count)
    low, high = envs.single_action_space.low, envs.single_action_space.high
    observation, _ = envs.reset(seed=seed)
    actor, reward = policy.start(count), np.zeros(count, dtype=np.float32)
    trace: list[tuple[np.ndarray, ...]] = []
    observations = [np.asarray(observation, dtype=np.float32)]
    lengths = np.zeros(count, dtype=np.int64)
    with one_thread():
        for step in range(1, max_steps + 1):
            action = np.clip(np.asarray(actor(observations[-1], reward), dtype=np.float32), low, high)
            if not np.isfinite(action).all():
                raise RunError(f"the policy's action at step {step - 1} is not finite: its weights have diverged")
            observation, rewards, terminated, truncated, _ = envs.step(action)
            reward = np.asarray(rewards, dtype=np.float32)
            cut = truncated | (step == max_steps)
            observations.append(np.asarray(observation, dtype=np.float32))
            trace.append((action, reward, terminated, cut))
            # A finished episode's environment starts anew by itself; what it does from there is not looked at.
            lengths = np.where((lengths == 0) & (terminated | cut), step, lengths)
            if lengths.all():
                break
    envs.close()
    seen = np.stack(observations)
    actions, rewards_, terminations, truncations = (np.stack(column) for column in zip(*trace, strict=True))
    episodes = [
        Episode.of(
            seen[: length + 1, i], actions[:length, i], rewards_[:length, i], terminations[:length, i],
            truncations[:length, i],
        )
        for i, length in enumerate(lengths)
    ]  # fmt: skip
    return Episodes(episodes, low, high)


def evaluate(policy: Policy, env_id: str, episodes: int = 30, seed: int = 0) -> Score:
    """The return of a policy.

    Parameters
    ----------
    policy
        Who plays.
    env_id
        A Gymnasium id.
    episodes
        How many, side by side.
    seed
        Of the first episode; the others follow.

    Returns
    -------
    Score
        Mean return with its 95% interval.
    """
    played = rollout(env_id, policy, episodes, seed)
    interval = mean_interval(played.returns().tolist())
    return Score(*interval, played.steps / episodes, episodes)


def normalised(value: float, random: float, expert: float) -> float:
    """A return on the scale on which a random policy has 0 and the expert 100."""
    return 100 * (value - random) / (expert - random)
