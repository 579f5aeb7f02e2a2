"""Transformations of a batch of pictures that are so strong that they make another label: rotations, colour orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError

Transformation = Callable[[Tensor], Tensor]
Name = Literal[
    "none",
    "rotation",
    "rotation2",
    "color-perm",
    "color-perm3",
    "rot-color-perm6",
    "rot-color-perm12",
    "rot-color-perm24",
]


def rotated(x: Float[Tensor, "*batch height width"], quarters: int) -> Float[Tensor, "*batch rows columns"]:
    """Turned counter-clockwise by so many quarters."""
    return torch.rot90(x, quarters, (-2, -1))


def recoloured(
    x: Float[Tensor, "*batch channels height width"], order: Sequence[int]
) -> Float[Tensor, "*batch channels height width"]:
    """With the channels in another order."""
    return x[..., list(order), :, :]


def both(x: Tensor, quarters: int, order: Sequence[int]) -> Tensor:
    """Turned, then with the channels in another order."""
    return recoloured(rotated(x, quarters), order)


def _rotations(quarters: Sequence[int]) -> tuple[Transformation, ...]:
    return tuple(partial(rotated, quarters=quarter) for quarter in quarters)


def _colours(orders: Sequence[str]) -> tuple[Transformation, ...]:
    return tuple(partial(recoloured, order=_channels(order)) for order in orders)


def _products(quarters: Sequence[int], orders: Sequence[str]) -> tuple[Transformation, ...]:
    return tuple(partial(both, quarters=turn, order=_channels(order)) for turn, order in product(quarters, orders))


def _channels(order: str) -> tuple[int, ...]:
    return tuple("RGB".index(letter) for letter in order)


_ALL, _CYCLES = ("RGB", "RBG", "GRB", "GBR", "BRG", "BGR"), ("RGB", "GBR", "BRG")

TRANSFORMATIONS: Mapping[Name, tuple[Transformation, ...]] = {
    "none": _rotations((0,)),
    "rotation": _rotations((0, 1, 2, 3)),
    "rotation2": _rotations((0, 2)),
    "color-perm": _colours(_ALL),
    "color-perm3": _colours(_CYCLES),
    "rot-color-perm6": _products((0, 2), _CYCLES),
    "rot-color-perm12": _products((0, 1, 2, 3), _CYCLES),
    "rot-color-perm24": _products((0, 1, 2, 3), _ALL),
}
"""The paper's sets; the identity is the first of each, and rotations come before colours."""


def transformed(
    x: Float[Tensor, "batch channels height width"], transformations: Sequence[Transformation]
) -> Float[Tensor, "rows channels height width"]:
    """All transformations of all pictures, those of one picture beside each other: ``(x_0, t_0), (x_0, t_1), ...``"""
    return torch.stack([transformation(x) for transformation in transformations], 1).flatten(0, 1)


def check_pictures(name: Name, shape: Sequence[int]) -> None:
    """Checks that pictures of a shape ``(channels, height, width)`` can be transformed.

    Raises
    ------
    InputError
        When there is no such set, colours are to change places in grey pictures, or pictures that are no squares are to
        be turned by a quarter.
    """
    if name not in TRANSFORMATIONS:
        raise InputError(f"no transformations {name!r}: known are {', '.join(TRANSFORMATIONS)}")
    channels, height, width = shape
    if "color" in name and channels != 3:
        raise InputError(f"{name} needs colour pictures, and these are grey: take rotation")
    if name in ("rotation", "rot-color-perm12", "rot-color-perm24") and height != width:
        raise InputError(f"{name} turns squares, and the pictures are {height}x{width}: resize them, or take rotation2")
