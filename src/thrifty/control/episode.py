"""One logged episode, in the layout of Minari, and what makes it valid."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.core.errors import InputError

Array = NDArray[Any]
_TOLERANCE = 1e-5  # a float32 action may pass the border of a float64 space by rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """What happened from one reset to the end.

    Parameters
    ----------
    observations
        float32 ``[T + 1, observation]``.
    actions
        float32 ``[T, action]`` in the environment's unit, or ``None`` where nobody wrote them down.
    rewards
        float32 ``[T]``.
    terminations
        bool ``[T]``: the step led to a terminal state, whose value is 0.
    truncations
        bool ``[T]``: the episode was cut off there (a time limit); the state after it has a value like any other.
    """

    observations: Array
    actions: Array | None
    rewards: Array
    terminations: Array
    truncations: Array

    @property
    def steps(self) -> int:
        """T."""
        return len(self.rewards)

    @classmethod
    def of(
        cls,
        observations: ArrayLike,
        actions: ArrayLike | None,
        rewards: ArrayLike,
        terminations: ArrayLike | None = None,
        truncations: ArrayLike | None = None,
    ) -> Self:
        """An episode from anything like an array; without flags it ends by truncation.

        One-dimensional observations and actions become columns; actions that are all NaN count as missing.
        """
        reward = np.asarray(rewards, dtype=np.float32)
        action = None if actions is None else _table(actions)
        if action is not None and action.size and np.isnan(action).all():
            action = None
        flags = [
            np.zeros(len(np.atleast_1d(reward)), dtype=bool) if flag is None else np.asarray(flag, dtype=bool)
            for flag in (terminations, truncations)
        ]
        if truncations is None and flags[1].size:
            flags[1][-1] = not (flags[0].size and flags[0][-1])
        return cls(_table(observations), action, reward, flags[0], flags[1])


def _table(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float32)
    return array[:, None] if array.ndim == 1 else array


def check(number: int, episode: Episode) -> None:
    """Raises :class:`InputError` that names the episode, the array and the step when something does not fit."""
    steps = episode.steps if episode.rewards.ndim == 1 else -1
    if steps == 0:
        raise InputError(f"episode {number} is empty: an episode needs at least one step")
    expected: list[tuple[str, Array | None, str, bool]] = [
        ("rewards", episode.rewards, "[steps]", steps > 0),
        ("observations", episode.observations, f"[{steps + 1}, numbers]", _is_table(episode.observations, steps + 1)),
        ("terminations", episode.terminations, f"[{steps}]", episode.terminations.shape == (steps,)),
        ("truncations", episode.truncations, f"[{steps}]", episode.truncations.shape == (steps,)),
    ]
    if episode.actions is not None:
        expected.append(("actions", episode.actions, f"[{steps}, numbers]", _is_table(episode.actions, steps)))
    for name, array, shape, fits in expected:
        assert array is not None
        if not fits:
            raise InputError(f"episode {number}: {name} should have shape {shape}, not {list(array.shape)}")
        if not np.isfinite(array).all():
            where = int(np.argwhere(~np.isfinite(array))[0][0])
            raise InputError(f"episode {number}: {name} at step {where} is not finite (NaN or infinity): repair it")


def _is_table(array: Array, rows: int) -> bool:
    return array.ndim == 2 and len(array) == rows and array.shape[1] > 0


def check_actions(number: int, episode: Episode, low: Array, high: Array) -> None:
    """Raises :class:`InputError` that names the episode and the step of the first action outside the bounds."""
    if episode.actions is None:
        return
    slack = _TOLERANCE * np.maximum(high - low, 1)
    outside = np.argwhere((episode.actions < low - slack) | (episode.actions > high + slack))
    if len(outside):
        step, part = (int(i) for i in outside[0])
        raise InputError(
            f"episode {number}, step {step}: action {part} is {episode.actions[step, part]:g}, outside the action "
            f"space [{low[part]:g}, {high[part]:g}]: clip the actions or give the right bounds"
        )
