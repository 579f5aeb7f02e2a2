"""The cell space of NAS-Bench-201: 15,625 cells of four nodes and six edges, each edge one of five operations.

A cell is written as there: ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...~0|...~1|...~2|``, one bracket for each node
behind the first, in it for each earlier node the operation that is applied to it. A node is the sum over its edges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError, nearest
from thrifty.core.seeding import derive_seed
from thrifty.nets.vision import storable

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = tuple((node, earlier) for node in range(1, NODES) for earlier in range(node))
_EDGE = re.compile(r"(\w+)~(\d)")


def cell_name(operations: Sequence[str]) -> str:
    """How a cell is written.

    Parameters
    ----------
    operations
        Six of :data:`OPERATIONS`, in the order of :data:`EDGES`.
    """
    given = dict(zip(EDGES, operations, strict=True))
    nodes = ("".join(f"|{given[node, earlier]}~{earlier}" for earlier in range(node)) for node in range(1, NODES))
    return "+".join(f"{node}|" for node in nodes)


def cell_operations(name: str) -> tuple[str, ...]:
    """The six operations of a cell, in the order of :data:`EDGES`.

    Raises
    ------
    InputError
        When it is no cell, or an operation is unknown.
    """
    found = tuple(_EDGE.findall(name))
    for operation, _ in found:
        if operation not in OPERATIONS:
            raise InputError(f"{name!r} has an unknown operation {operation!r}: {nearest(operation, OPERATIONS)}")
    operations = tuple(operation for operation, _ in found)
    if len(operations) != len(EDGES) or cell_name(operations) != name:
        raise InputError(f"{name!r} is no cell of NAS-Bench-201: write one like {cell_name(['nor_conv_3x3'] * 6)}")
    return operations


def draw_cells(count: int, seed: int) -> tuple[str, ...]:
    """Different cells, all equally likely.

    Raises
    ------
    InputError
        When there are not so many.
    """
    size = len(OPERATIONS) ** len(EDGES)
    if not 1 <= count <= size:
        raise InputError(f"the space has {size} cells: draw from 1 to so many, not {count}")
    drawn = np.random.default_rng(derive_seed(seed, "cells")).choice(size, count, replace=False)
    digits = drawn[:, None] // len(OPERATIONS) ** np.arange(len(EDGES)) % len(OPERATIONS)
    return tuple(cell_name([OPERATIONS[digit] for digit in row]) for row in digits)


def cell_encoding(names: Sequence[str]) -> Float[np.ndarray, "cell choice"]:
    """Each cell as 0 and 1: which operation each of its edges has, [N, 30]."""
    chosen = np.array([[OPERATIONS.index(operation) for operation in cell_operations(name)] for name in names])
    return np.eye(len(OPERATIONS))[chosen].reshape(len(names), -1)


@dataclass(frozen=True)
class CellNetConfig:
    """The shape of a :class:`CellNet`.

    Parameters
    ----------
    cell
        The cell as it is written in NAS-Bench-201.
    classes
        Number of classes, at least 2.
    channels
        Channels of the picture.
    width
        Channels of the first stage; 16 in NAS-Bench-201. Each of the two later stages has twice as many at half the
        resolution.
    cells
        Cells of each stage; 5 in NAS-Bench-201.
    """

    cell: str
    classes: int
    channels: int = 1
    width: int = 8
    cells: int = 1

    def __post_init__(self) -> None:
        cell_operations(self.cell)
        if self.classes < 2:
            raise InputError(f"a classifier needs at least 2 classes, not {self.classes}")
        if min(self.channels, self.width, self.cells) < 1:
            raise InputError(f"channels, width and cells must be at least 1, not {self}")


@storable(CellNetConfig)
class CellNet(nn.Module):
    """The network of NAS-Bench-201 around a cell: a convolution, three stages of cells, two residual blocks between.

    Parameters
    ----------
    config
        Its shape.

    References
    ----------
    Dong and Yang, NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search, ICLR 2020, arXiv
    2001.00326.
    """

    def __init__(self, config: CellNetConfig) -> None:
        super().__init__()
        self.config = config
        operations = cell_operations(config.cell)
        widths = [config.width * 2**stage for stage in range(3)]
        stages = [nn.Sequential(*(_Cell(operations, width) for _ in range(config.cells))) for width in widths]
        between = [_Reduction(a, b) for a, b in pairwise(widths)]
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, config.width, 3, padding=1, bias=False), nn.BatchNorm2d(config.width)
        )
        self.body = nn.Sequential(stages[0], between[0], stages[1], between[1], stages[2])
        self.last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        self.head = nn.Linear(widths[-1], config.classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits; ``x`` as :func:`thrifty.nets.vision.pixels` gives it."""
        logits: Tensor = self.head(self.last(self.body(self.stem(x))).mean((2, 3)))
        return logits


class _Cell(nn.Module):
    def __init__(self, operations: Sequence[str], width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_operation(name, width) for name in operations)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, NODES):
            inside = [edge(nodes[at[1]]) for at, edge in zip(EDGES, self.edges, strict=True) if at[0] == node]
            nodes.append(torch.stack(inside).sum(0))
        return nodes[-1]


class _Reduction(nn.Module):
    """The residual block that halves the resolution; no rectifier behind its sum, as in NAS-Bench-201."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(inside, outside, 3, 2), *_convolution(outside, outside, 3, 1))
        self.shortcut = nn.Conv2d(inside, outside, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Rounded up where the size is odd, as the convolution with stride 2 does.
        halved = functional.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        added: Tensor = self.shortcut(halved) + self.inner(x)
        return added


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


def _operation(name: str, width: int) -> nn.Module:
    if name.startswith("nor_conv"):
        return nn.Sequential(*_convolution(width, width, int(name[-1]), 1))
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    return nn.Identity() if name == "skip_connect" else _Nothing()


def _convolution(inside: int, outside: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)
    return [nn.ReLU(), convolution, nn.BatchNorm2d(outside)]
