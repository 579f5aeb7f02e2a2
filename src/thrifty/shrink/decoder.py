"""A decoder as what can be made smaller: its layers, their linear maps, their attention heads and neurons.

Everything is found by structure, so that any of the common families is understood: a layer's attention is its
sub-module of that name, the attention's output is its last linear map, the feed-forward part is whatever linear maps
are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.sharding import blocks
from thrifty.lm.backbone import check_causal, unwrapped
from thrifty.lm.feed_forward import (
    LOOKED_FOR,
    Neurons,
    inputs_of,
    neurons_between,
    outputs_of,
    transposed,
    width_of,
)

_QUERY, _KEY, _VALUE = ({"q_proj", "query", "q"}, {"k_proj", "key", "k"}, {"v_proj", "value", "v"})
# How one map holds queries, keys and values: one after the other, or those of each head together.
_FUSED_IN_A_ROW = {"GPT2Attention"}
_FUSED_BY_HEAD = {"GPTNeoXAttention"}


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of a layer, as groups that can go: a key/value head with the query heads that share it.

    Parameters
    ----------
    module
        The attention.
    inputs
        Its maps from the hidden state: queries, keys and values apart, or one that holds them all.
    output
        Its map back to the hidden state.
    head_size
        Channels of a head.
    groups
        Key/value heads.
    queries
        Query heads that share one of them.
    layout
        ``apart``, ``in a row`` or ``by head``: how ``inputs`` hold queries, keys and values.
    """

    module: nn.Module
    inputs: tuple[nn.Module, ...]
    output: nn.Module
    head_size: int
    groups: int
    queries: int
    layout: str

    @property
    def size(self) -> int:
        """Channels of a group, which lie side by side in the output map's input."""
        return self.head_size * self.queries

    @property
    def cost(self) -> int:
        """Weights that go with one group."""
        return self.head_size * (self.queries + 2) * inputs_of(self.inputs[0]) + (
            self.head_size * self.queries * outputs_of(self.output)
        )


@dataclass(frozen=True, eq=False)
class FeedForward(Neurons):
    """The feed-forward part of a layer, as neurons that can go.

    Parameters
    ----------
    module
        What holds its output map.
    """

    module: nn.Module

    @property
    def size(self) -> int:
        """Channels of a neuron."""
        return 1

    @property
    def cost(self) -> int:
        """Weights that go with one neuron."""
        rows = sum(outputs_of(one) for one in self.inputs) // self.neurons
        return rows * inputs_of(self.inputs[0]) + outputs_of(self.output)


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """A layer, what it is made of, and all of its linear maps by name.

    Parameters
    ----------
    module
        The layer.
    maps
        Its linear maps.
    attention
        ``None`` where its heads can't be cut.
    feed_forward
        ``None`` where its neurons can't be told.
    attention_maps
        Names of the maps that belong to the attention.
    """

    module: nn.Module
    maps: dict[str, nn.Module]
    attention: Attention | None
    feed_forward: FeedForward | None
    attention_maps: frozenset[str]

    @property
    def parts(self) -> dict[str, Attention | FeedForward]:
        """What can be cut, by the name of its output map."""
        return {
            name: part
            for part in (self.attention, self.feed_forward)
            if part is not None
            for name, one in self.maps.items()
            if one is part.output
        }


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a plain linear map: PyTorch's, or GPT-2's, whose weight is ``[in, out]``."""
    return type(module) is nn.Linear or transposed(module)


def matrix(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a linear map as ``[out, in]``: a view, so that what is written into it is the module's."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.data.t() if transposed(module) else weight.data


def matrices(model: nn.Module) -> list[Float[Tensor, "out in"]]:
    """The weights of all linear maps of the decoder layers, in order: what sparsity is a share of."""
    return [matrix(module) for layer in decoder_layers(model) for module in layer.maps.values()]


def decoder_layers(model: nn.Module) -> list[DecoderLayer]:
    """The decoder layers of a causal language model, taken apart.

    Parameters
    ----------
    model
        Any causal language model of transformers whose weights are plain.

    Raises
    ------
    InputError
        When it is no causal language model, or no layers with linear maps are found in it.
    """
    check_causal(model)
    inner = unwrapped(model)
    width = width_of(inner)
    found = [_take_apart(layer, inner, width) for layer in blocks(inner)]
    if not found or not any(layer.maps for layer in found):
        raise InputError(
            f"no decoder layers were found in {type(inner).__name__}: a list of layers that hold linear maps "
            "(nn.Linear, or Conv1D as in GPT-2) was looked for; quantised or sharded weights are not such"
        )
    return found


def need_feed_forward(layers: Sequence[DecoderLayer], model: nn.Module) -> None:
    """Raises an :class:`InputError` where the neurons of no layer can be told; it says what was looked for."""
    if any(layer.feed_forward for layer in layers):
        return
    names = ", ".join(layers[0].maps)
    raise InputError(
        f"the feed-forward layers of {type(model).__name__} can't be found: {LOOKED_FOR} was looked for, and no other "
        f"maps beside them; the linear maps of a layer are {names}"
    )


def _take_apart(layer: nn.Module, model: Any, width: int) -> DecoderLayer:
    maps: dict[str, nn.Module] = {name: module for name, module in layer.named_modules() if is_linear(module)}
    inside = next(
        (
            (f"{name}.", module)
            for name, module in layer.named_modules()
            if "attention" in type(module).__name__.lower() and sum(map(is_linear, module.children())) > 1
        ),
        None,
    )
    attention_maps = frozenset(name for name in maps if inside and name.startswith(inside[0]))
    attention = None if inside is None else _attention(inside[1], model)
    rest = {name: module for name, module in maps.items() if name not in attention_maps}
    return DecoderLayer(layer, maps, attention, _feed_forward(layer, rest, width), attention_maps)


def _feed_forward(layer: nn.Module, rest: Mapping[str, nn.Module], width: int) -> FeedForward | None:
    """The neurons, where the layer has no other maps beside its attention."""
    inputs, output = next(neurons_between(rest, width), ((), ""))
    if len(inputs) + 1 != len(rest):
        return None
    path, _, _ = output.rpartition(".")
    last = rest[output]
    return FeedForward(tuple(rest[one] for one in inputs), last, inputs_of(last), layer.get_submodule(path))


def _attention(module: Any, model: Any) -> Attention | None:
    """The attention as groups, or ``None`` where a head can't be cut out without changing the others."""
    children = {name: child for name, child in module.named_children() if is_linear(child)}
    *names, last = children
    inputs, output = tuple(children[name] for name in names), children[last]
    config = getattr(module, "config", None) or model.config
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(module, "head_dim", None) or getattr(module, "head_size", None)
    size = size or (inputs_of(output) // heads if heads else 0)
    if not size or inputs_of(output) % size:
        return None
    queries = inputs_of(output) // size
    own = {id(parameter) for child in children.values() for parameter in child.parameters()}
    # Norms over all heads, sinks and the like: what one head gives depends on the others, or has a number per head.
    if any(id(parameter) not in own and parameter.numel() != size for parameter in module.parameters()):
        return None
    kind = type(module).__name__
    if len(inputs) == 3:
        by_name = [next((children[n] for n in names if n in wanted), None) for wanted in (_QUERY, _KEY, _VALUE)]
        if any(one is None for one in by_name):
            return None
        query, key, value = (one for one in by_name if one is not None)
        groups = outputs_of(key) // size
        fits = outputs_of(query) == queries * size and outputs_of(key) == outputs_of(value) == groups * size
        if not fits or not groups or queries % groups:
            return None
        return Attention(module, (query, key, value), output, size, groups, queries // groups, "apart")
    if len(inputs) != 1:
        return None
    if kind in _FUSED_IN_A_ROW:
        rest = outputs_of(inputs[0]) // size - queries
        groups = rest // 2
        if groups and rest == 2 * groups and queries % groups == 0:
            return Attention(module, inputs, output, size, groups, queries // groups, "in a row")
    if kind in _FUSED_BY_HEAD and outputs_of(inputs[0]) == 3 * queries * size:
        return Attention(module, inputs, output, size, queries, 1, "by head")
    return None
