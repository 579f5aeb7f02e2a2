"""Iterations over a batch of which each row stops for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Fixed = TypeVar("Fixed")
_WORTH_LEAVING = 0.75  # narrowing the batch copies it, so that pays only once a good part of it has come to rest


def rows_of(fixed: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
    """The same rows of several tensors."""
    return tuple(part[rows] for part in fixed)


def settle(
    update: Callable[[int, tuple[Tensor, ...], Fixed], tuple[tuple[Tensor, ...], Tensor]],
    state: tuple[Tensor, ...],
    fixed: Fixed,
    rounds: int,
    take: Callable[[Fixed, Tensor], Fixed],
) -> tuple[tuple[Tensor, ...], Int[Tensor, " T"]]:
    """Repeats an update on all rows of a batch; a row keeps what it had when the update said that it is done.

    Parameters
    ----------
    update
        ``update(number, state, fixed)``: the next state, and which rows are done, bool ``[T]``; numbers start at 1.
    state
        What changes: tensors ``[T, ...]``.
    fixed
        What does not, for the same rows.
    rounds
        Updates at most.
    take
        ``take(fixed, rows)``: that of some rows.

    Returns
    -------
    state
        Of each row when it was done, or after the last update.
    counts
        How many updates each row took.
    """
    device = state[0].device
    final = tuple(part.clone() for part in state)
    counts = torch.full((len(state[0]),), rounds, device=device)
    active = torch.arange(len(state[0]), device=device)
    moving = torch.ones(len(state[0]), dtype=torch.bool, device=device)
    for number in range(1, rounds + 1):
        state, done = update(number, state, fixed)
        ended = moving if number == rounds else moving & done
        if not ended.any():
            continue
        for whole, part in zip(final, state, strict=True):
            whole[active[ended]] = part[ended].to(whole.dtype)
        counts[active[ended]] = number
        moving = moving & ~ended
        left = moving.nonzero()[:, 0]
        if not len(left):
            break
        if len(left) <= _WORTH_LEAVING * len(moving):
            active, moving, state, fixed = active[left], moving[left], rows_of(state, left), take(fixed, left)
    return final, counts
