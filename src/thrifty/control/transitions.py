"""What agents learn from: steps as flat tensors, and the spaces they live in."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Spaces:
    """What a policy sees and may do.

    Parameters
    ----------
    observation_dim
        Numbers in an observation.
    low, high
        The least and greatest value of each number of an action, in the environment's unit.
    """

    observation_dim: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return len(self.low)


@dataclasses.dataclass(frozen=True)
class Transitions:
    """Steps of many episodes, one row each.

    Parameters
    ----------
    observation, next_observation
        float32 ``[N, observation]``.
    action
        float32 ``[N, action]`` in the environment's unit.
    reward
        float32 ``[N]``.
    terminal
        float32 ``[N]``: 1 where the episode terminated; 0 elsewhere, at a time limit too.
    episode, step
        int64 ``[N]``: which episode, and which step of it.
    """

    observation: Float[Tensor, "n observation"]
    action: Float[Tensor, "n action"]
    reward: Float[Tensor, " n"]
    next_observation: Float[Tensor, "n observation"]
    terminal: Float[Tensor, " n"]
    episode: Int[Tensor, " n"]
    step: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.reward)

    def rows(self, index: Int[Tensor, " batch"]) -> Transitions:
        """The rows with these numbers."""
        index = index.to(self.reward.device)
        return self._map(lambda tensor: tensor.index_select(0, index))

    def to(self, device: torch.device | str) -> Transitions:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Any) -> Transitions:
        return Transitions(**{field.name: change(getattr(self, field.name)) for field in dataclasses.fields(self)})
