"""The feed-forward layers of a decoder, found by structure, so that hooks can be put where neurons begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.sharding import blocks
from thrifty.lm.backbone import check_causal, unwrapped

_GATES = ("gate", "w1", "wi_0")
LOOKED_FOR = (
    "in each layer, outside of its attention, one linear map back to the width of the hidden state (such as down_proj, "
    "c_proj, fc2, dense_4h_to_h) and one or two from it that give what that takes (such as gate_proj and up_proj, "
    "gate_up_proj, c_fc, fc1, dense_h_to_4h)"
)


@dataclass(frozen=True, eq=False)
class Neurons:
    """Neurons between linear maps.

    Parameters
    ----------
    inputs
        All maps to the neurons; a single one of twice as many outputs holds a gate in one half.
    output
        The map from the neurons back; what goes into it are the neurons' activations (the key vector).
    neurons
        How many there are.
    """

    inputs: tuple[nn.Module, ...]
    output: nn.Module
    neurons: int


@dataclass(frozen=True, eq=False)
class FeedForward(Neurons):
    """The feed-forward part of a layer: ``output(act(before(x)) * up(x))``, where not gated without the second factor.

    Parameters
    ----------
    layer
        The layer's number from 0.
    before
        The map whose first ``neurons`` outputs are the neurons' pre-activations: the gate where there is one.
    """

    layer: int
    before: nn.Module


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward part of every layer of a decoder, in order.

    Parameters
    ----------
    model
        Any causal language model of transformers, gated (Llama, Qwen, Gemma, Phi-3) or plain (GPT-2, GPT-NeoX, OPT),
        also wrapped by PEFT.

    Raises
    ------
    InputError
        When the model is no causal language model, or a layer's feed-forward part can't be told; what was looked for
        and what is there are named.
    """
    check_causal(model)
    inner = unwrapped(model)
    layers = blocks(inner)
    if not layers:
        raise InputError(f"{type(inner).__name__} has no list of layers: {LOOKED_FOR} was looked for")
    width = width_of(inner)
    return [_of_layer(number, layer, width, type(inner).__name__) for number, layer in enumerate(layers)]


def width_of(model: Any) -> int:
    """Channels of a decoder's hidden states, which its embeddings need not have (OPT may project them)."""
    return int(unwrapped(model).config.get_text_config().hidden_size)


def neurons_between(maps: Mapping[str, nn.Module], width: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Which of a layer's linear maps could lead to neurons, and which one back from them; the likeliest first.

    Parameters
    ----------
    maps
        By name, in their order.
    width
        Channels of the hidden states.

    Yields
    ------
    tuple
        One name or two of maps to as many neurons as the other takes, or of one map to twice as many (a gate within),
        and the name of the map back.
    """
    sizes = {name: (inputs_of(one), outputs_of(one)) for name, one in maps.items()}
    # Where as many neurons as channels are, order tells: the way back comes last.
    for name, (neurons, given) in reversed(sizes.items()):
        if given != width:
            continue
        to = {other: size for other, size in sizes.items() if other != name}
        alone = tuple(other for other, size in to.items() if size == (width, neurons))
        fused = tuple(other for other, size in to.items() if size == (width, 2 * neurons))
        if (len(alone), len(fused)) in ((1, 0), (2, 0), (0, 1)):
            yield alone + fused, name


def inputs_of(module: Any) -> int:
    """Channels that a linear map takes."""
    return int(module.weight.shape[0]) if transposed(module) else int(module.in_features)


def outputs_of(module: Any) -> int:
    """Channels that a linear map gives."""
    return int(module.weight.shape[1]) if transposed(module) else int(module.out_features)


def transposed(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear map, whose weight is ``[in, out]``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _of_layer(number: int, layer: nn.Module, width: int, model: str) -> FeedForward:
    maps = dict(_maps(layer))
    for inputs, output in neurons_between(maps, width):
        neurons = inputs_of(maps[output])
        if len(inputs) == 2:
            gates = [one for one in inputs if one.rpartition(".")[2].startswith(_GATES)]
        else:
            # Which half of one map is the gate, only its name says.
            gates = [one for one in inputs if outputs_of(maps[one]) == neurons or "gate_up" in one]
        if len(gates) == 1:
            return FeedForward(
                tuple(maps[one] for one in inputs), maps[output], neurons, layer=number, before=maps[gates[0]]
            )
    there = ", ".join(f"{name} {outputs_of(one)}x{inputs_of(one)}" for name, one in maps.items()) or "none"
    several = sum(outputs_of(one) == width for one in maps.values()) > 1
    more = " (one a layer: mixtures of experts are not supported)" if several else ""
    raise InputError(
        f"the feed-forward part of layer {number} of {model} can't be found: {LOOKED_FOR} was looked for{more}; the "
        f"linear maps there are: {there}"
    )


def _maps(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Linear maps outside of attention, outermost first: an adapter's stands for the one it wraps."""
    for name, child in module.named_children():
        if "attn" in name.lower() or "attention" in type(child).__name__.lower():
            continue
        if _is_map(child):
            yield prefix + name, child
        else:
            yield from _maps(child, f"{prefix}{name}.")


def _is_map(module: Any) -> bool:
    named = all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))
    return named or transposed(module)
