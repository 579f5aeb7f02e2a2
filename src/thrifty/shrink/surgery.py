"""Cutting channels out of a model, and the check that a cut is nothing but that.

``cut`` gives a copy without the channels that are not kept; ``masked`` gives a copy of the same size in which they are
zero. Both must compute the same, which :func:`check_cut` measures.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thrifty.core.errors import InputError, RunError
from thrifty.shrink.graph.axes import find
from thrifty.shrink.graph.build import dependency_graph
from thrifty.shrink.graph.groups import DependencyGraph, Keep, Kept
from thrifty.shrink.graph.trace import parameter_names, trace
from thrifty.shrink.surgery_attributes import follow


def cut(model: nn.Module, keep: Keep, graph: DependencyGraph, *, verify: bool = True) -> nn.Module:
    """A copy of the model without the channels that are not kept.

    Everything that the model keeps beside its weights follows: ``in_features`` and their kin, numbers of groups and
    heads, sizes by which the code reshapes, and the sizes in a Hugging Face model's ``config`` where it can say them.

    Parameters
    ----------
    model
        The model; it stays as it is.
    keep
        The units that stay, as numbers or a mask, by the name of their group; other groups stay whole.
    graph
        Of the model.
    verify
        Whether to run the result without values and compare the size of every product with what was planned. Without, a
        model whose code has sizes written into it may come out broken.

    Returns
    -------
    nn.Module
        Of the same class.

    Raises
    ------
    InputError
        When ``keep`` names a group that is not there or must stay whole, or leaves none of its units.
    RunError
        When the code of a module could not follow the cut; the module is named.
    """
    kept = Kept(graph, keep)
    missing = graph.recorder.names.keys() - {name for name, _, _ in parameter_names(model)}
    if missing:
        raise InputError(f"the graph is of another model: this one has no {min(missing)}")
    memo: dict[int, Any] = {}
    for name, value, is_buffer in parameter_names(model):
        traced = graph.recorder.names.get(name)
        if traced is None:
            continue
        if list(value.shape) != list(traced.elem.shape):
            raise InputError(
                f"the graph is of another model: {name} is {list(value.shape)}, not {list(traced.elem.shape)}"
            )
        smaller = value.detach()
        for dim, axis in enumerate(traced.axes):
            if kept.changes(axis):
                smaller = smaller.index_select(dim, kept(axis).to(value.device))
        if smaller.shape != value.shape:
            memo[id(value)] = smaller if is_buffer else nn.Parameter(smaller, requires_grad=value.requires_grad)
    # A deep copy takes what the memo holds in the place of the old tensors; shared ones stay shared.
    smaller_model = copy.deepcopy(model, memo)
    follow(model, smaller_model, graph, kept)
    if verify and kept.changed:
        _verify(smaller_model, graph, kept)
    return smaller_model


def _verify(model: nn.Module, graph: DependencyGraph, kept: Kept) -> None:
    advice = "leave that group whole, or give the module an attribute for the size"
    try:
        after = trace(model, *graph.example)
    except InputError as error:
        raise RunError(
            f"the model can't be cut so ({', '.join(kept.changed[:3])}): its code does not follow; {advice} ({error})"
        ) from error
    if len(after.products) != len(graph.recorder.products):
        raise RunError(f"the model can't be cut so: its code then does something else; {advice}")
    for old, new in zip(graph.recorder.products, after.products, strict=True):
        planned, found = kept.product(old), new.constant * prod(axis.size for axis in new.axes)
        if planned != found:
            raise RunError(
                f"the model can't be cut so ({', '.join(kept.changed[:3])}): {new.module or 'the model'} multiplies "
                f"{found} times instead of {planned}, so a size is written into its code; {advice}"
            )


def masked(model: nn.Module, keep: Keep, graph: DependencyGraph, *, producers_only: bool = False) -> nn.Module:
    """A copy of the model, of the same size, in which all parameters of the units that are not kept are zero.

    Parameters
    ----------
    model, keep, graph
        As for :func:`cut`.
    producers_only
        Zero only what makes the units (the zero-invariant group's numbers), not the weights that read them.

    Raises
    ------
    InputError
        As :func:`cut` does.
    """
    kept = Kept(graph, keep)
    zeroed = copy.deepcopy(model)
    parameters = dict(zeroed.named_parameters())
    with torch.no_grad():
        for name in kept.changed:
            group = graph[name]
            gone = torch.ones(group.units, dtype=torch.bool)
            gone[kept(find(graph.axes[name]))] = False
            for part in group.slices:
                if not part.buffer and (part.produces or not producers_only):
                    part.zero_(parameters[part.name], gone)
    return zeroed


@torch.no_grad()
def check_cut(
    model: nn.Module,
    inputs: Any,
    keep: Keep,
    graph: DependencyGraph | None = None,
    *,
    tolerance: float = 1e-5,
    producers_only: bool = False,
) -> float:
    """Compares the model that is cut with the model in which the same units are zero.

    Parameters
    ----------
    model
        The model; it is compared in evaluation mode, and stays as it is.
    inputs
        A tensor, a tuple of arguments, or a dictionary of named ones.
    keep
        As for :func:`cut`.
    graph
        Of the model; made from the inputs when not given.
    tolerance
        The largest difference that is rounding, relative to the largest output where that is above 1.
    producers_only
        As for :func:`masked`; for zero-invariant groups.

    Returns
    -------
    float
        The largest difference between the outputs, relative to the largest output where that is above 1.

    Raises
    ------
    RunError
        When it is above the tolerance.
    """
    args, kwargs = arguments(inputs)
    graph = graph or dependency_graph(model, *args, **kwargs)
    smaller = cut(model, keep, graph).eval()
    same_size = masked(model, keep, graph, producers_only=producers_only).eval()
    difference = largest_difference(smaller(*args, **kwargs), same_size(*args, **kwargs))
    if not difference <= tolerance:
        raise RunError(f"the cut model differs from the masked one by {difference:.3g}, more than {tolerance:g}")
    return difference


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and named arguments."""
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def largest_difference(one: Any, other: Any) -> float:
    """Between all floating-point tensors of two outputs, relative to the largest number where that is above 1."""
    ours, theirs = _floating(one), _floating(other)
    if [value.shape for value in ours] != [value.shape for value in theirs]:
        return float("inf")
    scale = max([1.0, *(float(value.detach().abs().max()) for value in theirs if value.numel())])
    return (
        max((float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel()), default=0.0)
        / scale
    )


def _floating(output: Any) -> Sequence[Tensor]:
    if hasattr(output, "to_tuple"):
        output = [value for value in output.to_tuple() if isinstance(value, Tensor | tuple)]
    return [value for value in tree_leaves(output) if isinstance(value, Tensor) and value.is_floating_point()]
