"""Cuts attention heads and feed-forward neurons out of a decoder, and tells the model's config where it can say so."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.lm.backbone import unwrapped
from thrifty.lm.feed_forward import outputs_of, transposed
from thrifty.shrink.decoder import Attention, FeedForward, decoder_layers, matrix
from thrifty.shrink.storing import built_from, shapes_of
from thrifty.shrink.surgery_attributes import NAMES


@torch.no_grad()
def cut(part: Attention | FeedForward, keep: Bool[Tensor, " unit"], bias: Float[Tensor, " out"] | None = None) -> None:
    """Makes the matrices of a part smaller.

    Parameters
    ----------
    part
        The attention or the feed-forward part of a layer.
    keep
        The groups of heads or the neurons that stay.
    bias
        Added to the bias of the part's output.
    """
    for module, rows in _input_rows(part, keep):
        _take_rows(module, rows)
    _set_matrix(part.output, matrix(part.output)[:, _unit_rows(keep, part.size)])
    if bias is not None:
        _add_bias(part.output, bias)
    _resize(part, int(keep.sum()))


@torch.no_grad()
def mask_out(
    part: Attention | FeedForward, keep: Bool[Tensor, " unit"], bias: Float[Tensor, " out"] | None = None
) -> None:
    """The same with shapes as they were: what :func:`cut` removes becomes 0. Parameters are those of :func:`cut`."""
    for module, rows in _input_rows(part, keep):
        gone = torch.ones(outputs_of(module), dtype=torch.bool, device=rows.device).index_fill_(0, rows, False)
        matrix(module)[gone] = 0
        if isinstance(module.bias, Tensor):
            module.bias[gone] = 0
    matrix(part.output)[:, ~keep.repeat_interleave(part.size)] = 0
    if bias is not None:
        _add_bias(part.output, bias)


def _input_rows(part: Attention | FeedForward, keep: Tensor) -> list[tuple[nn.Module, Int[Tensor, " row"]]]:
    """For each input map the rows that stay."""
    if isinstance(part, FeedForward):
        neurons = keep.nonzero()[:, 0]
        # A gate may lie in one matrix with what it gates.
        return [
            (one, torch.cat([neurons + start for start in range(0, outputs_of(one), part.neurons)]))
            for one in part.inputs
        ]
    query, key = (_unit_rows(keep, size) for size in (part.size, part.head_size))
    if part.layout == "apart":
        return list(zip(part.inputs, (query, key, key), strict=True))
    if part.layout == "by head":
        return [(part.inputs[0], _unit_rows(keep, 3 * part.head_size))]
    queries, keys = (part.groups * part.head_size * count for count in (part.queries, 1))
    return [(part.inputs[0], torch.cat([query, key + queries, key + queries + keys]))]


def _unit_rows(keep: Bool[Tensor, " unit"], size: int) -> Int[Tensor, " row"]:
    return keep.repeat_interleave(size).nonzero()[:, 0]


def _take_rows(module: Any, rows: Int[Tensor, " row"]) -> None:
    _set_matrix(module, matrix(module)[rows])
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.data[rows], requires_grad=module.bias.requires_grad)


def _set_matrix(module: Any, weight: Float[Tensor, "out in"]) -> None:
    turned = transposed(module)
    data = (weight.t() if turned else weight).contiguous()
    module.weight = nn.Parameter(data, requires_grad=module.weight.requires_grad)
    names = ("nf", "nx") if turned else ("out_features", "in_features")
    for name, size in zip(names, weight.shape, strict=True):
        setattr(module, name, size)


def _add_bias(module: Any, bias: Float[Tensor, " out"]) -> None:
    weight = module.weight
    old = 0 if module.bias is None else module.bias.data.float()
    module.bias = nn.Parameter((old + bias).to(weight.dtype), requires_grad=weight.requires_grad)


def _resize(part: Attention | FeedForward, units: int) -> None:
    """Tells a part how many heads or neurons it has; the ratio of query to key/value heads stays."""
    if isinstance(part, FeedForward):
        changes = dict.fromkeys(NAMES["width"], (part.neurons, units))
    else:
        heads, before = units * part.queries, part.groups * part.queries
        changes = dict.fromkeys(NAMES["heads"], (before, heads)) | dict.fromkeys(NAMES["kv"], (part.groups, units))
        # The width of all heads together, which some families read instead.
        widths = ("split_size", "embed_dim", "hidden_size", "all_head_size")
        changes |= dict.fromkeys(widths, (before * part.head_size, heads * part.head_size))
    for name, (old, new) in changes.items():
        if vars(part.module).get(name) == old:
            setattr(part.module, name, new)


def settle_config(model: nn.Module) -> bool:
    """Writes the sizes of a cut model into its config, where all layers have the same and the family can say them.

    Maps that got a bias may need others of their kind to have one: those get zeros.

    Parameters
    ----------
    model
        A causal language model.

    Returns
    -------
    bool
        Whether ``from_pretrained`` builds a model of these shapes from the config. If not, the config is as it was.
    """
    inner: Any = unwrapped(model)
    sizes = _sizes(inner)
    if sizes is None:
        return False
    wanted = copy.deepcopy(inner.config)
    for name, value in sizes.items():
        setattr(wanted, name, value)
    twin = built_from(type(inner), wanted.to_dict())
    if twin is None:
        return False
    expected, shapes = shapes_of(twin), shapes_of(inner)
    missing = [name for name in expected if name not in shapes]
    same = all(expected.get(name) == shape for name, shape in shapes.items())
    if not same or any(not name.endswith(".bias") for name in missing):
        return False
    for name in missing:
        module = inner.get_submodule(name.removesuffix(".bias"))
        zeros = module.weight.new_zeros(expected[name])
        module.bias = nn.Parameter(zeros, requires_grad=module.weight.requires_grad)
    for name, value in sizes.items():
        setattr(inner.config, name, value)
    return True


def _sizes(model: Any) -> dict[str, Any] | None:
    """The entries of the config that would say the model's sizes, ``None`` where layers differ."""
    layers, config = decoder_layers(model), model.config
    whole = [layer.attention for layer in layers if layer.attention is not None]
    inner = [layer.feed_forward for layer in layers if layer.feed_forward is not None]
    neurons = {one.neurons for one in inner}
    attention = {(one.groups * one.queries, one.groups, one.head_size) for one in whole}
    if len(neurons) > 1 or len(attention) > 1:
        return None
    found: dict[str, Any] = {}
    for size in neurons:
        found |= dict.fromkeys(NAMES["width"], size)
    for heads, groups, size in attention:
        if heads != config.num_attention_heads:
            if not hasattr(config, "num_key_value_heads") or not hasattr(config, "head_dim"):
                return None
            found |= {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size}
    for name, parts in (("attention_bias", whole), ("mlp_bias", inner)):
        if any(one.output.bias is not None for one in parts):
            found[name] = True
    return {name: value for name, value in found.items() if hasattr(config, name)}
