"""What a trace writes down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thrifty.shrink.graph.axes import Axis, leaves, mark_nonzero, unify
from thrifty.shrink.graph.traced import Held, Origin, Traced

Rule = Callable[["Recorder", Any, tuple[Any, ...], dict[str, Any], list[Traced]], None]


class Product(NamedTuple):
    """An operation's floating-point operations: a constant times the sizes of some axes; and its module."""

    constant: int
    axes: list[Axis]
    module: str


@dataclass
class Recorder:
    """What a trace finds out.

    Parameters
    ----------
    known
        Parameters, buffers and inputs as traced tensors, by the ``id`` of the real one.
    names
        Parameters and buffers as traced tensors, by name; a shared one by its first name.
    nodes
        Operation, module and the axes of its results, in order.
    products
        The operations that count as floating-point ones.
    used
        Names of the parameters and buffers that the model reads.
    uses
        Integers of modules that are the size of an axis: module, attribute, axis.
    seen
        The axes by which each module lays out tensors.
    consumed, produced
        Dimensions of parameters over which a sum runs, or that are a result's.
    unknown
        Operations that no rule is known for, with the module they are in.
    """

    known: dict[int, Traced] = field(default_factory=dict)
    names: dict[str, Traced] = field(default_factory=dict)
    nodes: list[tuple[str, str, list[list[Axis]]]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    uses: list[tuple[str, str, Axis]] = field(default_factory=list)
    seen: dict[str, list[Axis]] = field(default_factory=dict)
    consumed: set[Origin] = field(default_factory=set)
    produced: set[Origin] = field(default_factory=set)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    module: str = ""
    held: list[Held] = field(default_factory=list)

    def use(self, size: int, axis: Axis) -> None:
        """Notes that an axis was given its size by a module's integer, if the call has one of that value."""
        # What stays whole (batch, positions) may happen to have the size of a module's integer.
        if all(leaf.why is not None for leaf in leaves(axis)):
            return
        self.seen.setdefault(self.module, []).append(axis)
        for position, value in enumerate(self.held):
            if value == size:
                self.uses += [(module, attribute, axis) for module, attribute in value.holders]
                del self.held[: position + 1]
                return

    def count(self, constant: int, axes: list[Axis]) -> None:
        """Notes an operation of so many floating-point operations for each combination of indices of the axes."""
        self.products.append(Product(constant, axes, self.module))

    def contract(self, a: Traced, i: int, b: Traced, j: int) -> None:
        """Says that a sum runs over dimension ``i`` of ``a`` and ``j`` of ``b``."""
        unify(a.axes[i], b.axes[j])
        vanishes = False
        for tensor, dim in ((a, i), (b, j)):
            origin = tensor.origin[dim]
            if origin is not None:
                self.consumed.add(origin)
            else:
                vanishes = vanishes or tensor.zero[dim]
        if not vanishes:
            mark_nonzero(a.axes[i], f"{self.where()} reads it where it is not zero")

    def where(self) -> str:
        """The module that is running."""
        return self.module or "the model"

    def constant(self, value: Tensor) -> Traced:
        """A tensor of the code's own, or the values of an unknown operation."""
        why = f"a constant in the code of {self.where()} spans it"
        meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return Traced(meta, value.device, *_whole(value, why))


def _whole(value: Tensor, why: str) -> tuple[list[Axis], list[bool], list[None]]:
    return [Axis(size, why) for size in value.shape], [False] * value.ndim, [None] * value.ndim
