"""The groups of channels that go or stay together, and where in the parameters their numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thrifty.core.errors import InputError, nearest
from thrifty.shrink.graph.axes import Axis, find
from thrifty.shrink.graph.recorder import Product, Recorder

Keep = Mapping[str, "Sequence[int] | Tensor"]


@dataclass(frozen=True, eq=False)
class Slices:
    """Where the units of a group are in one parameter or buffer.

    Parameters
    ----------
    name
        Of the parameter or buffer, as in ``named_parameters``; a shared one by its first name.
    dim
        The dimension along which the units lie.
    index
        The indices of each unit along that dimension, [units, k].
    produces
        Whether the numbers make the unit's values (rows of a weight, its bias, the weights of a norm) rather than
        read them (columns of the weight behind).
    buffer
        Whether it is a buffer.
    """

    name: str
    dim: int
    index: Int[Tensor, "units k"]
    produces: bool
    buffer: bool = False

    def gather(self, value: Tensor) -> Tensor:
        """The numbers of each unit in the parameter or in a tensor of its shape, [units, ...] in one row each."""
        units, k = self.index.shape
        found = value.movedim(self.dim, 0).index_select(0, self.index.to(value.device).reshape(-1))
        return found.reshape(units, -1) if k * found[0].numel() else found.reshape(units, 0)

    def scale_(self, value: Tensor, factor: Tensor) -> None:
        """Multiplies the numbers of each unit by a factor, [units], in place."""
        along = torch.ones(value.shape[self.dim], dtype=value.dtype, device=value.device)
        along[self.index.to(value.device)] = factor.to(along)[:, None].expand(self.index.shape)
        shape = [1] * value.ndim
        shape[self.dim] = -1
        value.mul_(along.view(shape))

    def zero_(self, value: Tensor, units: Tensor) -> None:
        """Sets the numbers of some units, by number or as a mask, to zero in place."""
        at = self.index[units.to(self.index.device)].reshape(-1).to(value.device)
        value.index_fill_(self.dim, at, 0)


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that go together: unit ``u`` is everything with the number ``u`` in its slices.

    Parameters
    ----------
    name
        Of the first module that makes them; the factors of a dimension that the code splits (heads, and the channels
        of each head) end in ``:0``, ``:1``, ..., outermost first.
    units
        How many there are.
    slices
        Where their numbers are.
    why
        Why the group has to stay whole; ``None`` when it can be cut.
    nonzero
        Where removed units would be missed although everything that makes them is zero; ``None`` when zeroing the
        producers is the same as cutting: then the group is *zero-invariant*.
    inside
        A group that can be cut and lies crosswise to this one in a parameter (the heads, for the channels of each
        head); ``None`` where there is none. Groups without are disjoint.
    """

    name: str
    units: int
    slices: tuple[Slices, ...]
    why: str | None = None
    nonzero: str | None = None
    inside: str | None = None

    @property
    def prunable(self) -> bool:
        """Whether it can be cut."""
        return self.why is None

    @property
    def zero_invariant(self) -> bool:
        """Whether cutting a unit is the same as zeroing what produces it."""
        return self.prunable and self.nonzero is None

    @property
    def producers(self) -> tuple[Slices, ...]:
        """The slices of parameters that make the units: the zero-invariant group's numbers."""
        return tuple(one for one in self.slices if one.produces and not one.buffer)


@dataclass(eq=False)
class DependencyGraph:
    """What a traced model consists of: groups of channels, operations, and what they cost.

    Parameters
    ----------
    groups
        All groups with parameters, the ones that must stay whole too, in the order of the parameters.
    unknown
        Operations without a rule, each with its module; all that they touch stays whole.
    unused
        Parameters that the model does not use for such an input.
    recorder
        What the trace found.
    example
        The positional and keyword arguments that the model was traced with.
    axes
        Of each group's units, by its name.
    learnable
        Names of the parameters, as apart from buffers.
    """

    groups: tuple[Group, ...]
    unknown: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    recorder: Recorder
    example: tuple[tuple[Any, ...], dict[str, Any]]
    axes: dict[str, Axis] = field(repr=False)
    learnable: frozenset[str]

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(f"no group {name!r}: {nearest(name, [group.name for group in self.groups])}")

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups that can be cut and do not overlap: heads rather than the channels of each head."""
        return tuple(group for group in self.groups if group.prunable and group.inside is None)

    @property
    def zero_invariant(self) -> tuple[Group, ...]:
        """The prunable groups for which zeroing the producers is cutting."""
        return tuple(group for group in self.prunable if group.zero_invariant)

    @property
    def nodes(self) -> int:
        """How many operations the model runs."""
        return len(self.recorder.nodes)

    def flops(self, keep: Keep | None = None) -> int:
        """Floating-point operations of convolutions and matrix products for the example, two a multiply-add.

        Parameters
        ----------
        keep
            The units that stay, by group; without it those of the whole model.
        """
        kept = Kept(self, keep or {})
        return sum(kept.product(one) for one in self.recorder.products)

    def parameters(self, keep: Keep | None = None) -> int:
        """How many numbers the parameters hold, shared ones once; buffers don't count."""
        kept = Kept(self, keep or {})
        names = self.recorder.names
        return sum(prod(kept.size(axis) for axis in names[name].axes) for name in names if name in self.learnable)


class Kept:
    """Which indices of any axis stay.

    Parameters
    ----------
    graph
        Of the model.
    keep
        The units that stay, by group; groups that are not named stay whole.

    Raises
    ------
    InputError
        For a group that does not exist or must stay whole, for units that it does not have, and when none would stay.
    """

    def __init__(self, graph: DependencyGraph, keep: Keep) -> None:
        self._kept: dict[int, Tensor] = {}
        self._cache: dict[int, Tensor] = {}
        self.changed: list[str] = []
        for name, units in keep.items():
            group = graph[name]
            index = torch.as_tensor(units)
            if index.dtype is torch.bool:
                index = index.nonzero()[:, 0]
            index = index.reshape(-1).long().cpu().unique()
            if len(index) and (int(index[0]) < 0 or int(index[-1]) >= group.units):
                raise InputError(
                    f"group {name!r} has no unit {int(index[-1] if index[0] >= 0 else index[0])}: its units are "
                    f"0 to {group.units - 1}"
                )
            if len(index) == group.units:
                continue
            if not len(index):
                raise InputError(f"no unit of group {name!r} would stay: keep at least one")
            if group.why is not None:
                raise InputError(f"group {name!r} must stay whole: {group.why}")
            self._kept[id(find(graph.axes[name]))] = index
            self.changed.append(name)

    def __call__(self, axis: Axis) -> Tensor:
        """The indices of the axis that stay, in order."""
        axis = find(axis)
        found = self._cache.get(id(axis))
        if found is None:
            found = self._cache[id(axis)] = self._indices(axis)
        return found

    def _indices(self, axis: Axis) -> Tensor:
        if axis.kind == "leaf":
            kept = self._kept.get(id(axis))
            return torch.arange(axis.size) if kept is None else kept
        if axis.kind == "sum":
            offset, pieces = 0, []
            for part in axis.parts:
                pieces.append(self(part) + offset)
                offset += part.size
            return torch.cat(pieces)
        found = torch.zeros(1, dtype=torch.long)
        for part in axis.parts:
            found = (found[:, None] * part.size + self(part)).reshape(-1)
        return found

    def size(self, axis: Axis) -> int:
        """How many of the axis stay."""
        return len(self(axis)) if self._kept else axis.size

    def product(self, work: Product) -> int:
        """How many floating-point operations are left of an operation."""
        return work.constant * prod(self.size(axis) for axis in work.axes)

    def changes(self, axis: Axis) -> bool:
        """Whether anything of the axis goes."""
        return bool(self._kept) and self.size(axis) != axis.size
