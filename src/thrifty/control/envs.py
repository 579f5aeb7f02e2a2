"""Environments: ours, and Gymnasium's by their id, many copies of one side by side."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import InputError

try:
    import gymnasium
except ImportError as error:
    raise InputError(f"environments need the library gymnasium: pip install 'thrifty[rl]' ({error})") from error

POINT_MASS = "thrifty/PointMass-v0"


class PointMass(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A ball in a bowl, to be pushed up its side to a goal and held there; only its position is seen.

    ``v' = v + dt (push a - drag v - spring p)``, ``p' = p + dt v'``; the reward is ``-|p' - goal| - 0.01 |a|^2`` with
    the goal at (1.5, 0). It starts at rest, up to 1 away from the bottom, and never terminates. Two successive
    positions tell the velocity after an action but not that before it; three tell both, and with them the action.

    Parameters
    ----------
    push
        Acceleration of a full action.
    drag
        Loss of velocity per unit of time.
    spring
        Acceleration towards the bottom per distance.
    dt
        Time of one step.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    goal = np.array([1.5, 0.0])

    def __init__(self, push: float = 4.0, drag: float = 1.6, spring: float = 1.0, dt: float = 0.25) -> None:
        self.push, self.drag, self.spring, self.dt = push, drag, spring, dt
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._position, self._velocity = np.zeros(2), np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A fresh start at rest."""
        super().reset(seed=seed, options=options)
        angle, distance = self.np_random.uniform(0, 2 * np.pi), self.np_random.uniform(0, 1)
        self._position = distance * np.array([np.cos(angle), np.sin(angle)])
        self._velocity = np.zeros(2)
        return self._position.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step of length ``dt``; never terminates."""
        act = np.clip(action, -1, 1).astype(np.float64)
        force = self.push * act - self.drag * self._velocity - self.spring * self._position
        self._velocity = self._velocity + self.dt * force
        self._position = self._position + self.dt * self._velocity
        reward = -float(np.linalg.norm(self._position - self.goal)) - 0.01 * float(act @ act)
        return self._position.astype(np.float32), reward, False, False, {}


def register_environments() -> None:
    """Puts our environments into Gymnasium's registry; once is enough, more does no harm."""
    if POINT_MASS not in gymnasium.registry:
        gymnasium.register(POINT_MASS, entry_point="thrifty.control.envs:PointMass", max_episode_steps=100)


register_environments()


def make_many(env_id: str, count: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """``count`` copies of an environment with a flat observation and a bounded continuous action.

    Parameters
    ----------
    env_id
        Its Gymnasium id.
    count
        How many.

    Raises
    ------
    InputError
        When there is none of that id, its libraries are missing, or its spaces are of another kind.
    """
    try:
        envs = gymnasium.make_vec(env_id, num_envs=count, vectorization_mode="sync")
    except (gymnasium.error.Error, ImportError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"environment {env_id!r} can't be made: {message} (pip install 'thrifty[rl]'?)") from error
    action, observation = envs.single_action_space, envs.single_observation_space
    box = gymnasium.spaces.Box
    if not isinstance(action, box) or not np.isfinite([action.low, action.high]).all() or len(action.shape) != 1:
        envs.close()
        raise InputError(f"environment {env_id!r} has actions {action}: only a bounded box of numbers will do")
    if not isinstance(observation, box) or len(observation.shape) != 1:
        envs.close()
        raise InputError(f"environment {env_id!r} has observations {observation}: only a flat box of numbers will do")
    return envs
