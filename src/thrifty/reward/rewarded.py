"""What a method of the room gives the command: its rewards, row by row, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.run import Run
from thrifty.data.records import Records
from thrifty.reward.steps import StepRewards

_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Given:
    """What the user gave the room; None where nothing was given.

    Parameters
    ----------
    data
        Rows to score.
    model
        Folder, name or hub id of a reward model.
    options
        The room's other inputs by name.
    """

    data: Records | None
    model: str | None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewarded:
    """Rewards and what they come to.

    Parameters
    ----------
    rows
        One dictionary for each row of the data, for ``rewards.jsonl``.
    table
        Rows of the table that is shown.
    summary
        Further values to keep.
    """

    rows: Sequence[Mapping[str, Any]]
    table: list[dict[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)


class RewardMethod(Protocol):
    """What the command asks of a method of the room."""

    def rewards(self, given: Given, run: Run) -> Rewarded:
        """Scores the user's rows, or embedded ones where none are given."""
        ...


def step_summary(
    name: str, reward: Float[Tensor, "B K"], steps: StepRewards, correct: Float[Tensor, " B"], alpha: float
) -> dict[str, Any]:
    """What step rewards come to: their mean return, share of zeros, weight, and return by number of steps.

    Parameters
    ----------
    name
        What the table calls them.
    reward
        Step rewards, 0 in the padding.
    steps
        Which steps there are.
    correct
        Of each response, 1 for a right answer.
    alpha
        Weight of the step rewards.

    Returns
    -------
    dict
        ``mean return`` is that of α Σ r + Correct; ``std ratio`` the standard deviation of α Σ r over that of Correct
        (None where all answers are right or all wrong): well above 1, the step rewards drown the answer.
    """
    part = alpha * reward.sum(1)
    total = part + correct
    spread = float(correct.std(correction=0))
    row: dict[str, Any] = {
        "reward": name,
        "mean return": float(total.mean()),
        "share of zeros": float((reward[steps.step_mask] == 0).double().mean()) if steps.step_mask.any() else None,
        "std ratio": float(part.std(correction=0)) / spread if spread else None,
    }
    for low, high in _ranges(sorted(set(steps.counts.tolist()))):
        among = (steps.counts >= low) & (steps.counts <= high)
        label = f"{low} step{'s' if low != 1 else ''}" if low == high else f"{low}-{high} steps"
        row[label] = float(total[among].mean())
    return row


def _ranges(counts: list[int]) -> list[tuple[int, int]]:
    """Each number of steps by itself where there are few, else neighbours together."""
    parts = torch.tensor(counts).chunk(_MOST_COLUMNS) if counts else ()
    return [(int(part[0]), int(part[-1])) for part in parts]
