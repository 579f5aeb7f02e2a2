"""From a trace to the groups of channels that go together."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.shrink.graph.axes import Axis, find, leaves
from thrifty.shrink.graph.groups import DependencyGraph, Group, Slices
from thrifty.shrink.graph.space import SPACE
from thrifty.shrink.graph.trace import parameter_names, trace


def dependency_graph(model: nn.Module, *args: Any, skip: Sequence[str] = (), **kwargs: Any) -> DependencyGraph:
    """Finds which channels of a model go together, by running it once without values.

    Parameters
    ----------
    model
        Any PyTorch module; it stays as it is.
    *args, **kwargs
        An example of what it is called with; of floating-point tensors only the shapes count.
    skip
        Names of modules or parameters that stay whole; all below them too.

    Raises
    ------
    InputError
        When the model can't be run without values (what it does depends on them), with the module; when ``skip``
        names nothing.
    """
    recorder = trace(model, args, kwargs)
    parameters = frozenset(name for name, _, is_buffer in parameter_names(model) if not is_buffer)
    table: dict[int, _Entry] = {}
    for name, traced in recorder.names.items():
        for dim, axis in enumerate(traced.axes):
            for leaf, index, factor in _places(axis):
                entry = table.setdefault(id(leaf), _Entry(leaf))
                origin = (name, dim)
                produces = origin not in recorder.consumed or origin in recorder.produced
                entry.slices.append(Slices(name, dim, index, produces, name not in parameters))
                entry.factors.append(factor)
                for skipped in skip:
                    if name == skipped or name.startswith(skipped + "."):
                        entry.why = entry.why or f"{skipped} is to be left out"
    for skipped in skip:
        if not any(name == skipped or name.startswith(skipped + ".") for name in recorder.names):
            raise InputError(f"skip names {skipped!r}, which holds no parameter of the model")
    unused = tuple(name for name in recorder.names if name in parameters and name not in recorder.used)
    for entry in table.values():
        if all(one.buffer or one.name in unused for one in entry.slices):
            entry.why = entry.why or "the model does not use it for such an input"
    groups, axes = _named(table)
    return DependencyGraph(groups, tuple(recorder.unknown), unused, recorder, (args, dict(kwargs)), axes, parameters)


class _Entry:
    def __init__(self, leaf: Axis) -> None:
        self.leaf = leaf
        self.slices: list[Slices] = []
        # Of each slice: the position among the factors of its dimension (None when it has just one), and these.
        self.factors: list[tuple[int, list[Axis]] | None] = []
        self.why = leaf.why


def _places(axis: Axis) -> list[tuple[Axis, Tensor, tuple[int, list[Axis]] | None]]:
    """Each leaf of an axis with its indices [units, k], and its place among the factors it is multiplied with."""
    axis = find(axis)
    if axis.kind == "leaf":
        return [(axis, torch.arange(axis.size)[:, None], None)]
    found: dict[int, tuple[Axis, Tensor, tuple[int, list[Axis]] | None]] = {}
    sizes = [part.size for part in axis.parts]
    offset = 0
    for place, part in enumerate(axis.parts):
        for leaf, index, factor in _places(part):
            if axis.kind == "sum":
                index = index + offset
            else:
                before = torch.arange(prod(sizes[:place])) * prod(sizes[place:])
                after = torch.arange(prod(sizes[place + 1 :]))
                inner = len(after)
                index = (before[None, :, None, None] + index[:, None, :, None] * inner + after).reshape(len(index), -1)
                factor = factor or (place, [leaf for part in axis.parts for leaf in leaves(part)])
            if id(leaf) in found:
                index = torch.cat([found[id(leaf)][1], index], 1)
            found[id(leaf)] = (leaf, index, factor)
        offset += part.size
    return list(found.values())


def _named(table: dict[int, _Entry]) -> tuple[tuple[Group, ...], dict[str, Axis]]:
    groups: list[Group] = []
    axes: dict[str, Axis] = {}
    names: dict[int, str] = {}
    table = {key: entry for key, entry in table.items() if not all(one.buffer for one in entry.slices)}
    # Kernels' pixels and dimensions of one are nothing that anybody would want to cut.
    table = {key: entry for key, entry in table.items() if entry.leaf.size > 1 and entry.leaf.why != SPACE}
    for key, entry in table.items():
        made = next((one for one in entry.slices if one.produces and not one.buffer), entry.slices[0])
        factor = next((f for f in entry.factors if f is not None), None)
        base = made.name.rpartition(".")[0] if made.name.rpartition(".")[2] in ("weight", "bias") else made.name
        name = (base or made.name) + (f":{factor[0]}" if factor else "")
        while name in axes:
            name += "'"
        axes[name], names[key] = entry.leaf, name
    for key, entry in table.items():
        groups.append(
            Group(
                names[key],
                entry.leaf.size,
                tuple(entry.slices),
                entry.why,
                entry.leaf.nonzero,
                _inside(entry, table, names),
            )
        )
    return tuple(groups), axes


def _inside(entry: _Entry, table: dict[int, _Entry], names: dict[int, str]) -> str | None:
    for factor in entry.factors:
        if factor is None:
            continue
        place, others = factor
        for other in others[:place]:
            found = table.get(id(other))
            if found is not None and found is not entry and found.why is None:
                return names[id(other)]
    return None
