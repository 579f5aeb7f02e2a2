"""Batches addressed by their number: nothing need be saved for a run to go on with the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.control.episodes import Episodes
from thrifty.control.transitions import Transitions
from thrifty.core.seeding import derive_seed

_BLOCK = 256  # batches whose indices are drawn together


class UniformBatches:
    """Batch ``step`` of transitions drawn uniformly, with replacement; the same each time it is asked for.

    Parameters
    ----------
    transitions
        What to draw from.
    batch_size
        Rows in a batch.
    seed
        Decides which.
    """

    def __init__(self, transitions: Transitions, batch_size: int, seed: int) -> None:
        self.transitions, self._index = transitions, UniformIndices(len(transitions), batch_size, seed)

    def __call__(self, step: int) -> Transitions:
        """Batch number ``step``."""
        return self.transitions.rows(self._index(step))


class UniformIndices:
    """Row numbers of batch ``step``, drawn uniformly from ``size`` rows with replacement.

    Parameters
    ----------
    size
        Rows there are.
    batch_size
        Rows in a batch.
    seed
        Decides which.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._block, self._drawn = -1, torch.empty(0, 0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """int64 ``[batch]``."""
        block, row = divmod(step, _BLOCK)
        if block != self._block:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "rows", block))
            self._drawn = torch.randint(self.size, (_BLOCK, self.batch_size), generator=generator)
            self._block = block
        return self._drawn[row]


@dataclass(frozen=True)
class Windows:
    """Pieces of K successive steps, right-aligned: pads come first, and are False in ``valid``.

    Parameters
    ----------
    observation, next_observation
        float32 ``[B, K, observation]``.
    action
        float32 ``[B, K, action]``; 0 where unknown.
    return_to_go
        float32 ``[B, K]``: the sum of the rewards from that step to the end.
    valid
        Whether the step exists.
    labelled
        Whether it exists and its action is known.
    """

    observation: Float[Tensor, "batch k observation"]
    next_observation: Float[Tensor, "batch k observation"]
    action: Float[Tensor, "batch k action"]
    return_to_go: Float[Tensor, "batch k"]
    valid: Bool[Tensor, "batch k"]
    labelled: Bool[Tensor, "batch k"]


class WindowBatches:
    """Batch ``step`` of windows whose last step is drawn uniformly from all steps of all episodes.

    Parameters
    ----------
    episodes
        What to draw from; steps without an action are in it, with ``labelled`` False.
    length
        K.
    batch_size
        Windows in a batch.
    seed
        Decides which.
    device
        Where the batches live.
    """

    def __init__(
        self, episodes: Episodes, length: int, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        action_dim = episodes.spaces().action_dim
        actions = [
            np.zeros((e.steps, action_dim), dtype=np.float32) if e.actions is None else e.actions for e in episodes
        ]
        known = [np.full(e.steps, e.actions is not None) for e in episodes]
        togo = [return_to_go(torch.from_numpy(e.rewards)) for e in episodes]
        starts = np.cumsum([0, *[e.steps for e in episodes]])
        first = np.concatenate([np.full(e.steps, start) for e, start in zip(episodes, starts, strict=False)])
        self._columns = [
            torch.from_numpy(np.concatenate(parts)).to(device)
            for parts in (
                [e.observations[:-1] for e in episodes],
                [e.observations[1:] for e in episodes],
                actions,
                [values.numpy() for values in togo],
                known,
                [first],
            )
        ]
        self._index = UniformIndices(episodes.steps, batch_size, seed)
        self._offsets = torch.arange(1 - length, 1, device=device)

    def __call__(self, step: int) -> Windows:
        """Batch number ``step``."""
        observation, after, action, togo, known, first = self._columns
        end = self._index(step).to(first.device)
        index = end[:, None] + self._offsets
        valid = index >= first[end][:, None]
        index = torch.where(valid, index, first[end][:, None])
        return Windows(observation[index], after[index], action[index], togo[index], valid, known[index] & valid)


def return_to_go(rewards: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """``R_t = sum_{i >= t} r_i``."""
    return rewards.double().flip(0).cumsum(0).flip(0).float()
