"""Data of our own: episodes played by behaviours of different skill, kept under a name that says what is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from thrifty.control.base import Policy
from thrifty.control.controllers import NoisyPolicy, PointMassController, RandomPolicy, SwingUp
from thrifty.control.episodes import Episodes
from thrifty.control.evaluation import rollout
from thrifty.core.errors import InputError
from thrifty.core.seeding import derive_seed

Behaviours = Mapping[str, Policy]
Bounds = tuple[float, ...]


@dataclass(frozen=True)
class Collection:
    """What to collect: the same number of episodes from a random, a half-trained and a trained behaviour.

    Parameters
    ----------
    env
        A Gymnasium id with a flat observation and a bounded action. For the point mass and ``Pendulum-v1`` the skilled
        behaviours are controllers (weak with much noise, and good with little); elsewhere a TD3 agent half-way through
        and at the end of its training.
    episodes
        How many in all.
    training_steps
        Steps of that TD3 agent.
    seed
        Of everything.
    """

    env: str = "thrifty/PointMass-v0"
    episodes: int = 200
    training_steps: int = 20_000
    seed: int = 0

    @property
    def key(self) -> str:
        """A name for exactly this collection."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _point_mass(low: Bounds, high: Bounds, seed: int) -> Behaviours:
    expert = PointMassController(pull=2.0, damping=0.4)
    return _graded(PointMassController(pull=0.3, damping=0.0, hold=0.1), expert, low, high, seed)


def _pendulum(low: Bounds, high: Bounds, seed: int) -> Behaviours:
    return _graded(SwingUp(pump=0.5), SwingUp(), low, high, seed)


def _graded(
    weak: Policy, expert: Policy, low: Bounds, high: Bounds, seed: int, *, weak_noise: float = 0.5, lapse: float = 0.3
) -> Behaviours:
    return {
        "random": RandomPolicy(low, high, derive_seed(seed, "random")),
        "half-trained": NoisyPolicy(weak, low, high, weak_noise, lapse, derive_seed(seed, "half-trained")),
        "trained": NoisyPolicy(expert, low, high, noise=0.1, seed=derive_seed(seed, "trained")),
        "expert": expert,
    }


_CONTROLLED: dict[str, Callable[[Bounds, Bounds, int], Behaviours]] = {
    "thrifty/PointMass-v0": _point_mass,
    "Pendulum-v1": _pendulum,
}


def behaviours(collection: Collection) -> Behaviours:
    """The behaviours ``random``, ``half-trained``, ``trained`` and ``expert`` (the trained one without noise).

    Raises
    ------
    InputError
        When the environment can't be made or is of another kind.
    """
    from thrifty.control.envs import make_many

    envs = make_many(collection.env, 1)
    space = envs.single_action_space
    low, high = tuple(space.low.tolist()), tuple(space.high.tolist())
    envs.close()
    if collection.env in _CONTROLLED:
        return _CONTROLLED[collection.env](low, high, collection.seed)
    from thrifty.control.online import train_td3

    half, trained = train_td3(collection.env, collection.training_steps, collection.seed)
    return _graded(half, trained, low, high, collection.seed, weak_noise=0.1, lapse=0.0)


def collect(collection: Collection) -> Episodes:
    """Plays the behaviours, one after the other, a third of the episodes each.

    Raises
    ------
    InputError
        When fewer than three episodes are asked for, or the environment can't be made.
    """
    if collection.episodes < 3:
        raise InputError(f"a collection needs at least 3 episodes, one a behaviour, not {collection.episodes}")
    players = behaviours(collection)
    skills = ("random", "half-trained", "trained")
    counts = [collection.episodes // 3 + (i < collection.episodes % 3) for i in range(3)]
    parts = [
        rollout(collection.env, players[skill], count, derive_seed(collection.seed, "start", skill) % 2**31)
        for skill, count in zip(skills, counts, strict=True)
    ]
    return parts[0] + parts[1] + parts[2]


def collected(collection: Collection, directory: Path) -> Episodes:
    """The same, read back from ``directory`` when it was collected there before.

    Parameters
    ----------
    collection
        What to collect.
    directory
        Where the file ``<key>.safetensors`` is kept.
    """
    path = directory / f"{collection.key}.safetensors"
    if not path.exists():
        collect(collection).save(path)
    return Episodes.load(path)


def reference_returns(collection: Collection, episodes: int = 100) -> tuple[float, float]:
    """Mean returns of the random and of the expert behaviour, which normalised returns are measured by."""
    players = behaviours(collection)
    seed = derive_seed(collection.seed, "reference") % 2**31
    means = [rollout(collection.env, players[name], episodes, seed).returns().mean() for name in ("random", "expert")]
    return float(means[0]), float(means[1])
