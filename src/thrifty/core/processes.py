"""The processes of one job: ``torchrun`` or ``accelerate launch`` starts several, each with a rank.

Everything here also works in a job of one process, and does nothing there. All functions that exchange something must
be called by every process.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed

from thrifty.core.errors import ThriftyError

T = TypeVar("T")
_PATIENCE = timedelta(days=1)
"""How long a process waits for the others: the main one may evaluate for hours, and a launcher ends those whose
fellow has died."""


def world() -> int:
    """How many processes this job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def connect(device: torch.device) -> torch.device:
    """Lets the processes find each other; returns the device of this one.

    Parameters
    ----------
    device
        What the job was asked to use: ``cuda`` without a number becomes this process's own.
    """
    if world() == 1:
        return device
    from accelerate import PartialState

    # Accelerate's launcher asks transformers to load weights in one process alone, for FSDP to hand them on. Here all
    # load them, as they use the model before its parameters are sharded.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if not torch.distributed.is_initialized():
        atexit.register(_leave)
    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    return state.device if device.index is None else device


def _leave() -> None:
    # Threads of the exchange that still run when the interpreter ends may take the process down: one of them that
    # wants to release a tensor waits for the interpreter then. They end with the last that refers to their group.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def gather(value: T) -> list[T]:
    """What every process gives, by rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def merged(lists: Mapping[str, Sequence[T]]) -> dict[str, list[T]]:
    """The lists of all processes, joined by name."""
    found: dict[str, list[T]] = {}
    for of_one in gather(lists):
        for name, given in of_one.items():
            found.setdefault(name, []).extend(given)
    return found


def on_main(work: Callable[[], T]) -> T:
    """What ``work`` returns when the main process does it, given to all; so is the error it raises.

    Raises
    ------
    ThriftyError
        Whatever ``work`` raised, in every process.
    """
    if world() == 1:
        return work()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = work()
        except ThriftyError as error:
            told[1] = error
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return cast(T, told[0])
