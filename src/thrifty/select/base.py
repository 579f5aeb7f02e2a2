"""The protocol of the room, and what its methods that read histories share."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.core.errors import InputError


class Selector(Protocol):
    """A method of the room: a registered dataclass with ``select``.

    ``select(pool, budget)`` gives the indices of what is worth keeping, the best first; at most ``budget`` of them
    where one is given. What a pool is depends on the method.
    """

    def select(self, pool: Any, budget: int | None = None) -> Int[Tensor, " M"]: ...


def check_budget(budget: int | None) -> None:
    """Raises :class:`~thrifty.core.errors.InputError` for a budget below 1."""
    if budget is not None and budget < 1:
        raise InputError(f"budget must be at least 1, not {budget}")


def best_first(scores: Float[Tensor, " N"], allowed: Bool[Tensor, " N"]) -> Int[Tensor, " M"]:
    """The indices that are allowed, by falling score; equal scores keep their order."""
    rows = allowed.nonzero()[:, 0]
    return rows[torch.argsort(scores[rows], descending=True, stable=True)]


def check_history(history: Float[Tensor, "N K"], observed: Bool[Tensor, "N K"] | None) -> Bool[Tensor, "N K"]:
    """Checks that a matrix holds accuracies, and gives the mask of those that were observed.

    Parameters
    ----------
    history
        Accuracy of each prompt in each epoch.
    observed
        Where it was measured; by default everywhere but at NaN.

    Raises
    ------
    InputError
        When it is no matrix, is empty, or an observed value is outside [0, 1] or NaN: the row and the cure are named.
    """
    if history.ndim != 2 or 0 in history.shape:
        raise InputError(f"a history is a matrix of prompts by epochs with at least one of each, not {_shape(history)}")
    if observed is None:
        observed = ~history.isnan()
    if observed.shape != history.shape or observed.dtype != torch.bool:
        raise InputError(
            f"observed must be booleans of the history's shape {_shape(history)}, not {observed.dtype} of "
            f"{_shape(observed)}"
        )
    wrong = observed & ~((history >= 0) & (history <= 1))
    if wrong.any():
        row, epoch = wrong.nonzero()[0].tolist()
        raise InputError(
            f"the history of prompt {row} holds {float(history[row, epoch]):g} at epoch {epoch}: accuracies lie in "
            "[0, 1]; of raw rewards, give the share of samples that were right (reward == 1)"
        )
    return observed


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"
