"""Tensors without values that know their axes, and integers that know which module they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from thrifty.shrink.graph.axes import Axis

# A parameter's name and one of its dimensions.
Origin = tuple[str, int]


class Traced(torch.Tensor):
    """A tensor that has a shape, a dtype and a device but no values, and the axes of its dimensions.

    Parameters
    ----------
    elem
        Its stand-in on the meta device.
    device
        The device it claims to be on, which the model's code may ask for.
    axes
        Of each dimension.
    zero
        For each dimension, whether a slice of it is zero when what produces the slice is zero.
    origin
        For each dimension, the parameter's dimension that it is, where it is one.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    elem: Tensor
    axes: list[Axis]
    zero: list[bool]
    origin: list[Origin | None]

    @staticmethod
    def __new__(cls, elem: Tensor, device: torch.device, *_: Any) -> Traced:
        made: Traced = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=device,
        )
        return made

    def __init__(
        self,
        elem: Tensor,
        device: torch.device,  # noqa: ARG002 (used by __new__)
        axes: Sequence[Axis] = (),
        zero: Sequence[bool] = (),
        origin: Sequence[Origin | None] = (),
    ) -> None:
        self.elem = elem
        self.axes, self.zero, self.origin = list(axes), list(zero), list(origin)

    def set(self, axes: Sequence[Axis], zero: Sequence[bool], origin: Sequence[Origin | None] | None = None) -> None:
        """What is known of each dimension."""
        self.axes, self.zero = list(axes), list(zero)
        self.origin = list(origin) if origin is not None else [None] * len(self.axes)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Traced({list(self.elem.shape)}, {self.elem.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> NoReturn:
        raise RuntimeError(f"{func} was called outside of the trace")


class Held(int):
    """An integer that a module holds as an attribute, so that a reshape by it can be told from any other."""

    holders: tuple[tuple[str, str], ...]


def hold(model: nn.Module) -> list[tuple[nn.Module, str, int]]:
    """Puts integers that know their holders into all modules.

    Returns
    -------
    list
        Module, attribute and value of each, for :func:`release`.
    """
    held = []
    for name, module in model.named_modules():
        for attribute, value in list(vars(module).items()):
            if type(value) is int:
                marked = Held(value)
                marked.holders = ((name, attribute),)
                module.__dict__[attribute] = marked
                held.append((module, attribute, value))
    return held


def release(held: list[tuple[nn.Module, str, int]]) -> None:
    """Gives the modules back their plain integers."""
    for module, attribute, value in held:
        module.__dict__[attribute] = value


def held_among(arguments: Any) -> list[Held]:
    """The held integers among a call's arguments, in their order."""
    found: list[Held] = []
    for value in arguments:
        kind = type(value)
        if kind is Held:
            found.append(value)
        elif kind in (tuple, list, torch.Size):
            found += held_among(value)
        elif kind is slice:
            found += held_among((value.start, value.stop))
    return found
