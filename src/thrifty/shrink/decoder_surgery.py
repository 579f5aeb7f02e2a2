"""Cuts attention heads and feed-forward neurons out of a decoder, and tells the model's config where it can say so."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.lm.backbone import unwrapped
from thrifty.shrink.decoder import Attention, FeedForward, decoder_layers, matrix, outputs_of

# What a model keeps beside its weights: names of an attention's attributes that count query or key/value heads.
_QUERY_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KEY_COUNTS = ("num_key_value_heads", "num_kv_heads")
_NEURONS = ("intermediate_size", "ffn_dim", "n_inner")


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
    _take_columns(part.output, _unit_rows(keep, _channels(part)))
    if bias is not None:
        _add_bias(part.output, bias)
    if isinstance(part, Attention):
        _resize(part, int(keep.sum()))
    for name in _NEURONS:
        if isinstance(part, FeedForward) and vars(part.module).get(name) == part.neurons:
            setattr(part.module, name, int(keep.sum()))


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
    matrix(part.output)[:, ~keep.repeat_interleave(_channels(part))] = 0
    if bias is not None:
        _add_bias(part.output, bias)


def _channels(part: Attention | FeedForward) -> int:
    return part.head_size * part.queries if isinstance(part, Attention) else 1


def _input_rows(part: Attention | FeedForward, keep: Tensor) -> list[tuple[nn.Module, Int[Tensor, " row"]]]:
    """For each input map the rows that stay."""
    if isinstance(part, FeedForward):
        neurons = keep.nonzero()[:, 0]
        # A gate may lie in one matrix with what it gates.
        return [
            (one, torch.cat([neurons + start for start in range(0, outputs_of(one), part.neurons)]))
            for one in part.inputs
        ]
    query, key = (_unit_rows(keep, size) for size in (part.head_size * part.queries, part.head_size))
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


def _take_columns(module: Any, columns: Int[Tensor, " column"]) -> None:
    _set_matrix(module, matrix(module)[:, columns])


def _set_matrix(module: Any, weight: Float[Tensor, "out in"]) -> None:
    plain = type(module) is nn.Linear
    data = (weight if plain else weight.t()).contiguous()
    module.weight = nn.Parameter(data, requires_grad=module.weight.requires_grad)
    names = ("out_features", "in_features") if plain else ("nf", "nx")
    for name, size in zip(names, weight.shape, strict=True):
        setattr(module, name, size)


def _add_bias(module: Any, bias: Float[Tensor, " out"]) -> None:
    weight = module.weight
    old = 0 if module.bias is None else module.bias.data.float()
    module.bias = nn.Parameter((old + bias).to(weight.dtype), requires_grad=weight.requires_grad)


def _resize(part: Attention, groups: int) -> None:
    """Tells an attention how many heads it has; the ratio of query to key/value heads stays."""
    module = part.module
    heads, before = groups * part.queries, part.groups * part.queries
    for names, old, new in ((_QUERY_COUNTS, before, heads), (_KEY_COUNTS, part.groups, groups)):
        for name in names:
            if vars(module).get(name) == old:
                setattr(module, name, new)
    # The width of all heads together, which some families read instead.
    for name in ("split_size", "embed_dim", "hidden_size", "all_head_size"):
        if vars(module).get(name) == before * part.head_size:
            setattr(module, name, heads * part.head_size)


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
    inner = unwrapped(model)
    wanted = _candidate(inner)
    if wanted is None:
        return False
    with torch.device("meta"):
        twin = type(inner)(wanted)
    expected = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in inner.state_dict().items()}
    missing = [name for name in expected if name not in shapes]
    same = all(expected.get(name) == shape for name, shape in shapes.items())
    if not same or any(not name.endswith(".bias") for name in missing):
        return False
    for name in missing:
        module = inner.get_submodule(name.removesuffix(".bias"))
        zeros = module.weight.new_zeros(expected[name])
        module.bias = nn.Parameter(zeros, requires_grad=module.weight.requires_grad)
    for name, value in vars(wanted).items():
        if name in _SIZES and getattr(inner.config, name, None) != value:
            setattr(inner.config, name, value)
    return True


_SIZES = {*_NEURONS, "num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"}


def _candidate(model: Any) -> Any:
    """The config that would say the model's sizes, ``None`` where layers differ."""
    layers = decoder_layers(model)
    config = copy.deepcopy(model.config)
    neurons = {layer.feed_forward.neurons for layer in layers if layer.feed_forward is not None}
    whole = [layer.attention for layer in layers if layer.attention is not None]
    attention = {(one.groups * one.queries, one.groups, one.head_size) for one in whole}
    if len(neurons) > 1 or len(attention) > 1:
        return None
    for name in _NEURONS:
        if neurons and hasattr(config, name):
            setattr(config, name, next(iter(neurons)))
    if attention:
        heads, groups, size = next(iter(attention))
        if heads != config.num_attention_heads:
            if not hasattr(config, "num_key_value_heads") or not hasattr(config, "head_dim"):
                return None
            config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads, groups, size
    for name, outputs in (
        ("attention_bias", [one.output for one in whole]),
        ("mlp_bias", [layer.feed_forward.output for layer in layers if layer.feed_forward]),
    ):
        if hasattr(config, name) and any(one.bias is not None for one in outputs):
            setattr(config, name, True)
    return config
