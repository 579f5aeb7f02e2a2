"""The protocol of the room, and what its methods check first."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.run import Run

M = TypeVar("M")


class Shrinker(Protocol):
    """A method of the room: a registered dataclass with ``shrink``.

    ``kind`` says what it makes smaller (``language-model``, ...), and so which inputs the command asks for. ``needs``
    names what ``shrink`` takes beside the model, such as ``windows``, calibration text as token ids. A ``shrink`` with
    a parameter ``run`` gets the :class:`~thrifty.core.run.Run` too. The model that was given stays as it was.
    """

    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    # The arguments behind the model differ between methods, which a plain method could not say.
    @property
    def shrink(self) -> Callable[..., nn.Module]: ...


def shrink_with(method: Shrinker, model: nn.Module, given: Mapping[str, Any], run: Run | None = None) -> nn.Module:
    """Gives a method what it needs, and the run where its ``shrink`` has a parameter of that name.

    Parameters
    ----------
    method
        A method of the room.
    model
        The model; it stays as it is.
    given
        By name, at least what the method needs.
    run
        For its checkpoints and metrics.

    Raises
    ------
    KeyError
        When something that the method needs is not among what is given.
    """
    taken = {name: given[name] for name in method.needs}
    if run is not None and "run" in inspect.signature(method.shrink).parameters:
        taken["run"] = run
    return method.shrink(model, **taken)


@contextlib.contextmanager
def scratch_run(device: str = "cpu") -> Iterator[Run]:
    """A run that leaves nothing behind, with the seed that the generators had: for comparing methods.

    Parameters
    ----------
    device
        Where to train.
    """
    with tempfile.TemporaryDirectory() as folder, Run(folder, seed=torch.initial_seed() % 2**31, device=device) as run:
        yield run


def with_settings(method: M, settings: Mapping[str, Any]) -> M:
    """A method with other values in those of the named fields that it has."""
    names = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    found: M = dataclasses.replace(method, **{k: v for k, v in settings.items() if k in names})  # type: ignore[type-var]
    return found


def check_sparsity(sparsity: float) -> None:
    """Raises an :class:`InputError` unless the share of weights to remove lies between 0 and 1, both excluded."""
    if not 0 < sparsity < 1:
        raise InputError(f"sparsity must lie between 0 and 1, not {sparsity:g}: it is the share of weights to remove")


def check_batch_size(batch_size: int | None) -> None:
    """Raises an :class:`InputError` when fewer than one window would run at once."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
