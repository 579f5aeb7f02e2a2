"""The zero-invariant groups of a model: what can be driven to zero in training, and then be cut without a trace.

A group is one output channel (or head) of everything that must lose it together: its rows of all weights that are added
up, its biases, its numbers in the norms behind. While all of them are zero the channel is zero for any input, so that
what reads it can lose the matching columns and compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.shrink.graph.build import dependency_graph
from thrifty.shrink.graph.groups import DependencyGraph, Group, Slices
from thrifty.shrink.surgery import cut, largest_difference


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the numbers of consecutive groups are in one parameter."""

    part: Slices
    at: slice

    def along(self, value: Tensor, groups: Tensor, rest: float) -> Tensor:
        """What each group has, laid along the parameter's dimension; ``rest`` where no group is."""
        index = self.part.index.to(value.device)
        found = torch.full((value.shape[self.part.dim],), rest, dtype=groups.dtype, device=value.device)
        found[index] = groups[self.at].to(value.device)[:, None].expand(index.shape)
        shape = [1] * value.ndim
        shape[self.part.dim] = -1
        return found.view(shape)


class GroupSet:
    """The zero-invariant groups of a model, numbered through over all layers.

    Parameters
    ----------
    model
        The model whose parameters are trained; its parameters are looked up once.
    graph
        Of the model.
    layers
        Prunable, zero-invariant groups of the graph; each unit of each is one group here.
    """

    def __init__(self, model: nn.Module, graph: DependencyGraph, layers: Sequence[Group]) -> None:
        self.model, self.graph, self.layers = model, graph, tuple(layers)
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        units = torch.tensor([layer.units for layer in self.layers])
        ends = units.cumsum(0).tolist()
        self._spans = [slice(end - int(count), end) for end, count in zip(ends, units, strict=True)]
        self._places = [
            _Place(part, span) for layer, span in zip(self.layers, self._spans, strict=True) for part in layer.producers
        ]
        device = next(iter(self.parameters.values())).device
        self.layer: Int[Tensor, " G"] = torch.arange(len(units)).repeat_interleave(units).to(device)
        self.units: Int[Tensor, " layer"] = units.to(device)
        self.sizes = self.inner(*[{name: torch.ones_like(p) for name, p in self.parameters.items()}] * 2)

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def members(self) -> frozenset[str]:
        """Names of the parameters that hold numbers of groups."""
        return frozenset(place.part.name for place in self._places)

    def inner(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Float[Tensor, " G"]:
        """The inner product of two assignments of numbers to the parameters, within each group.

        Parameters
        ----------
        one, other
            Tensors of the parameters' shapes by name; where either has none, it counts as zero.
        """
        found = torch.zeros(len(self.layer), device=self.layer.device)
        for place in self._places:
            name, dim = place.part.name, place.part.dim
            if name in one and name in other:
                product = (one[name] * other[name]).float().movedim(dim, 0)
                product = product.reshape(len(product), -1).sum(1)
                found[place.at] += product[place.part.index.to(product.device)].sum(1)
        return found

    @torch.no_grad()
    def squared_norms(self) -> Float[Tensor, " G"]:
        """Of each group's numbers."""
        return self.inner(self.parameters, self.parameters)

    @torch.no_grad()
    def scale_(self, factor: Float[Tensor, " G"]) -> None:
        """Multiplies the numbers of each group by a factor."""
        for place in self._places:
            value = self.parameters[place.part.name]
            value.mul_(place.along(value, factor.to(value.dtype), 1.0))

    @torch.no_grad()
    def zero_(self, gone: Bool[Tensor, " G"]) -> None:
        """Sets the numbers of some groups to zero."""
        for place in self._places:
            value = self.parameters[place.part.name]
            value.masked_fill_(place.along(value, gone, False), 0)

    def kept(self, gone: Bool[Tensor, " G"]) -> dict[str, Bool[Tensor, " unit"]]:
        """What stays, by the name of the layer; layers that lose nothing are left out."""
        masks = {layer.name: ~gone[span].cpu() for layer, span in zip(self.layers, self._spans, strict=True)}
        return {name: mask for name, mask in masks.items() if not mask.all()}


def partition_groups(
    model: nn.Module, *args: Any, skip: Sequence[str] = (), frozen: bool = False, **kwargs: Any
) -> GroupSet:
    """Finds the zero-invariant groups of a model by running it once without values.

    Parameters
    ----------
    model
        Any PyTorch module; it stays as it is.
    *args, **kwargs
        An example of what it is called with; of floating-point tensors only the shapes count.
    skip
        Names of modules or parameters that stay whole; all below them too.
    frozen
        Whether groups may hold parameters that are not trained, as long as some are: the rows of a frozen weight with
        those of the low-rank adapter that is added to it. Otherwise such groups stay whole.

    Raises
    ------
    InputError
        When the model can't be traced, or has no such group; why its channels must stay is said.
    """
    graph = dependency_graph(model, *args, skip=skip, **kwargs)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    enough = any if frozen else all
    layers = [
        group
        for group in graph.zero_invariant
        if group.producers and enough(trained[part.name] for part in group.producers)
    ]
    if not layers:
        whole = {group.why or group.nonzero or "its parameters are frozen" for group in graph.groups}
        raise InputError(
            f"{type(model).__name__} has no channels that could be cut: {'; '.join(sorted(whole)[:3]) or 'no weights'}"
        )
    return GroupSet(model, graph, layers)


@torch.no_grad()
def construct_subnet(model: nn.Module, groups: GroupSet) -> nn.Module:
    """The smaller model that computes the same: a copy without the groups that are zero.

    Parameters
    ----------
    model
        The trained model; it stays as it is.
    groups
        Its groups.

    Returns
    -------
    nn.Module
        Of the same class. A layer all of whose groups are zero keeps one of them.
    """
    here = groups if model is groups.model else GroupSet(model, groups.graph, groups.layers)
    keep = here.kept(here.squared_norms() == 0)
    for mask in keep.values():
        if not mask.any():
            mask[0] = True
    return cut(model, keep, groups.graph)


@torch.no_grad()
def output_difference(model: nn.Module, smaller: nn.Module, groups: GroupSet) -> float:
    """The largest difference between two models' outputs for the example that the groups were found with.

    Relative to the largest output where that is above 1; both are compared in evaluation mode.
    """
    args, kwargs = groups.graph.example
    modes = [(one, one.training) for one in (model, smaller)]
    try:
        outputs = [one.eval()(*args, **kwargs) for one, _ in modes]
    finally:
        for one, training in modes:
            one.train(training)
    return largest_difference(*outputs)
