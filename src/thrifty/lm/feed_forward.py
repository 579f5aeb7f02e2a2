"""The feed-forward layers of a decoder, found by structure, so that hooks can be put where neurons begin and end."""

from __future__ import annotations

from collections.abc import Iterator
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
class FeedForward:
    """The feed-forward part of a layer: ``output(act(before(x)) * up(x))``, where not gated without the second factor.

    Parameters
    ----------
    layer
        The layer's number from 0.
    before
        The map whose first ``neurons`` outputs are the neurons' pre-activations: the gate where there is one.
    inputs
        All maps to the neurons; a single one of twice as many outputs holds the gate in its first half.
    output
        The map from the neurons back; what goes into it are the neurons' activations (the key vector).
    neurons
        How many there are.
    """

    layer: int
    before: nn.Module
    inputs: tuple[nn.Module, ...]
    output: nn.Module
    neurons: int


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
    width = inner.get_input_embeddings().weight.shape[1]
    return [_of_layer(number, layer, width, type(inner).__name__) for number, layer in enumerate(layers)]


def _of_layer(number: int, layer: nn.Module, width: int, model: str) -> FeedForward:
    maps = dict(_maps(layer))
    sizes = {name: _sizes(one) for name, one in maps.items()}
    # Where as many neurons as channels are, order tells: the way back comes last.
    outputs = [name for name, (_, given) in sizes.items() if given == width]
    for name in reversed(outputs):
        neurons = sizes[name][0]
        inputs = [other for other in maps if other != name and sizes[other] in ((width, neurons), (width, 2 * neurons))]
        halves = [other for other in inputs if sizes[other][1] == 2 * neurons]
        if len(inputs) == 1 and (not halves or "gate_up" in inputs[0]):
            before = inputs[0]
        elif len(inputs) == 2 and not halves:
            gates = [one for one in inputs if one.rpartition(".")[2].startswith(_GATES)]
            if len(gates) != 1:
                continue
            before = gates[0]
        else:
            continue
        return FeedForward(number, maps[before], tuple(maps[one] for one in inputs), maps[name], neurons)
    there = ", ".join(f"{name} {given}x{taken}" for name, (taken, given) in sizes.items()) or "none"
    more = " (one a layer: mixtures of experts are not supported)" if len(outputs) > 1 else ""
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
    return named or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def _sizes(module: Any) -> tuple[int, int]:
    """What a linear map takes and gives; GPT-2's has its weight as ``[in, out]``."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.weight.shape[0]), int(module.weight.shape[1])
