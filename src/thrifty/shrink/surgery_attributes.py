"""What a model keeps beside its weights follows a cut: sizes in modules, and in a Hugging Face model's config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from thrifty.shrink.graph.axes import Axis, find, leaves
from thrifty.shrink.graph.groups import DependencyGraph, Kept

# Attributes that say the size of a dimension of the module's own weight. A class that is not listed keeps them, if it
# has any, under the names of these.
_SIZES = {
    "out_features": 0,
    "in_features": 1,
    "num_features": 0,
    "num_channels": 0,
    "num_parameters": 0,
    "num_embeddings": 0,
    "embedding_dim": 1,
    "nx": 0,
    "nf": 1,
}
# Names that families use for numbers of heads and their sizes. They follow when they had the size of an axis by which
# the module lays out its tensors, also where its forward pass does not read them.
_HEADS = [
    "num_heads",
    "num_attention_heads",
    "n_head",
    "n_heads",
    "nhead",
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "kv_heads",
    "num_key_value_groups",
    "n_rep",
    "head_dim",
    "attention_head_size",
    "head_size",
    "all_head_size",
    "split_size",
    "inner_dim",
    "heads",
    "dim_head",
    "d_kv",
    "key_value_proj_dim",
]
# What configs and modules call the width of the feed-forward part, heads, key-value heads and the size of a head.
NAMES = {
    "width": [
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "d_ff",
        "encoder_ffn_dim",
        "mlp_dim",
        "hidden_dim",
        "feed_forward_size",
    ],
    "heads": ["num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"],
    "kv": ["num_key_value_heads", "n_kv_heads", "num_kv_heads"],
    "size": ["head_dim", "attention_head_size", "d_kv"],
}


@dataclass
class Shrunk:
    """What was changed in a model beside its weights, so that it can be stored and made again.

    Parameters
    ----------
    attributes
        New values of modules' integers: module, attribute, value.
    config
        The config that the model was first built from, as a dictionary; ``None`` where it has none.
    """

    attributes: dict[str, dict[str, int]] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def shrunk(model: nn.Module) -> Shrunk | None:
    """What earlier cuts changed in the model; ``None`` when it was never cut."""
    found = model.__dict__.get("_thrifty_shrunk")
    return found if isinstance(found, Shrunk) else None


def follow(before: nn.Module, after: nn.Module, graph: DependencyGraph, kept: Kept) -> None:
    """Sets every size in the modules and the config of a cut model to what it is now.

    Parameters
    ----------
    before
        The model that was cut.
    after
        Its copy with the smaller weights; changed in place.
    graph, kept
        What was cut.
    """
    record = shrunk(after) or Shrunk(config=_config_of(before))
    after.__dict__["_thrifty_shrunk"] = record
    modules = dict(after.named_modules())
    changes: dict[tuple[str, str], int] = {}
    for name, attribute, axis in graph.recorder.uses:
        if kept.changes(axis):
            changes[name, attribute] = kept.size(axis)
    for name, axes in graph.recorder.seen.items():
        for attribute in _HEADS:
            value = vars(modules[name]).get(attribute) if name in modules else None
            if type(value) is int and (name, attribute) not in changes:
                sizes = {kept.size(axis) for axis in axes if find(axis).size == value}
                if len(sizes) == 1:
                    changes[name, attribute] = sizes.pop()
    for name, attribute, value in _widths(after, graph, kept):
        changes.setdefault((name, attribute), value)
    for (name, attribute), value in changes.items():
        modules[name].__dict__[attribute] = value
    for name, module in modules.items():
        for attribute, value in _own_sizes(module).items():
            changes[name, attribute] = value
    previous = dict(before.named_modules())
    for (name, attribute), value in changes.items():
        if vars(previous[name]).get(attribute) != value:
            modules[name].__dict__[attribute] = value
            record.attributes.setdefault(name, {})[attribute] = value
    _follow_config(before, after, graph, kept)


def _own_sizes(module: nn.Module) -> dict[str, int]:
    """Attributes of a module that its own weight decides."""
    found: dict[str, int] = {}
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    weight = own.get("weight", own.get("running_mean"))
    if weight is None:
        return found
    if isinstance(module, _ConvNd):
        outward, inward = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        found["out_channels"] = weight.shape[outward] * (module.groups if outward else 1)
        found["in_channels"] = weight.shape[inward] * (module.groups if inward else 1)
        return found
    for attribute, dim in _SIZES.items():
        if type(vars(module).get(attribute)) is int and dim < weight.ndim:
            found[attribute] = weight.shape[dim]
    return found


def _widths(model: nn.Module, graph: DependencyGraph, kept: Kept) -> Iterator[tuple[str, str, int]]:
    """What blocks call the width inside of them, which their code seldom reads again."""
    for name, module in model.named_modules():
        for attribute in NAMES["width"]:
            value = vars(module).get(attribute)
            if type(value) is not int:
                continue
            prefix = f"{name}." if name else ""
            sizes = {
                kept.size(axis)
                for parameter, traced in graph.recorder.names.items()
                if parameter.startswith(prefix)
                for axis in traced.axes
                if axis.size == value and not _whole(axis)
            }
            if len(sizes) == 1 and sizes != {value}:
                yield name, attribute, sizes.pop()


def _whole(axis: Axis) -> bool:
    return any(leaf.why is not None and leaf.size > 1 for leaf in leaves(axis))


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    config: Any = getattr(model, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else None


def _follow_config(before: nn.Module, after: nn.Module, graph: DependencyGraph, kept: Kept) -> None:
    """Sizes in the config, where one number says it for all layers."""
    config = getattr(after, "config", None)
    if not hasattr(config, "to_dict") or config is None:
        return
    plain = [axis for traced in graph.recorder.names.values() for axis in traced.axes if find(axis).kind == "leaf"]
    splits = [axis for listed in graph.recorder.seen.values() for axis in listed]
    for role, names in NAMES.items():
        axes = [axis for axis in (plain if role == "width" else splits) if not _whole(axis)]
        for key in names:
            value = getattr(before.config, key, None)
            if key == "n_inner" and hasattr(config, "n_inner") and value is None:
                value = 4 * config.n_embd
            if type(value) is not int or value < 2:
                continue
            # Layers that still have the old size and such that have another can't be said by one number.
            sizes = {kept.size(axis) for axis in axes if axis.size == value}
            if len(sizes) == 1 and sizes != {value}:
                setattr(config, key, sizes.pop())
