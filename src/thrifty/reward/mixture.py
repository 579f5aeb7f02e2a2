"""Several rewards as one: their weighted sum, with each part's mean for the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.core.errors import InputError
from thrifty.reward.base import Reward, Text, checked_values, reward_name


class Mixture:
    r"""The weighted sum of rewards, itself a reward.

    .. math::
        R_i = \sum_{m : r_m \text{ applies to } i} w_m \, r_m(i)

    A part that returns None for a completion is left out of its sum; the other weights stay as they are. Where no part
    applies, the mixture returns None.

    Parameters
    ----------
    rewards
        The parts: a list, or a mapping from the names that logs use.
    weights
        One number a part; 1 each when not given.

    Raises
    ------
    InputError
        When there is no part, or not one finite weight for each.
    """

    def __init__(
        self, rewards: Sequence[Reward] | Mapping[str, Reward], weights: Sequence[float] | None = None
    ) -> None:
        parts = dict(rewards) if isinstance(rewards, Mapping) else _named(rewards)
        if not parts:
            raise InputError("a mixture needs at least one reward")
        weights = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(parts):
            raise InputError(f"{len(weights)} weights for {len(parts)} rewards: give one for each")
        for name, weight in zip(parts, weights, strict=True):
            if not math.isfinite(weight):
                raise InputError(f"the weight of {name!r} is {weight}: expected a finite number")
        self.rewards: Mapping[str, Reward] = parts
        self.weights: Mapping[str, float] = dict(zip(parts, weights, strict=True))

    @property
    def name(self) -> str:
        """The parts' names, joined."""
        return " + ".join(self.rewards)

    def parts(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Sequence[Any],
    ) -> dict[str, list[float | None]]:
        """What each part says, before its weight.

        Raises
        ------
        RunError
            When a part fails; it is named.
        """
        return {
            name: checked_values(part, prompts, completions, completion_ids=completion_ids, columns=columns)
            for name, part in self.rewards.items()
        }

    def combine(self, parts: Mapping[str, Sequence[float | None]]) -> list[float | None]:
        """The weighted sum of what :meth:`parts` gave; None where no part applies."""
        weights = [self.weights[name] for name in parts]
        return [_weighted(weights, row) for row in zip(*parts.values(), strict=True)]

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        """The mixture as a reward."""
        return self.combine(self.parts(prompts, completions, completion_ids, **columns))


def part_means(parts: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean of each part over the completions that it applies to; NaN where there are none."""
    means = {}
    for name, values in parts.items():
        there = [value for value in values if value is not None]
        means[name] = sum(there) / len(there) if there else math.nan
    return means


def _weighted(weights: Sequence[float], values: Sequence[float | None]) -> float | None:
    terms = [weight * value for weight, value in zip(weights, values, strict=True) if value is not None]
    return sum(terms) if terms else None


def _named(rewards: Sequence[Reward]) -> dict[str, Reward]:
    named: dict[str, Reward] = {}
    for reward in rewards:
        base = name = reward_name(reward)
        number = 2
        while name in named:
            name = f"{base} {number}"
            number += 1
        named[name] = reward
    return named
