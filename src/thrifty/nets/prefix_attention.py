"""Prefix prompts for transformers of pictures: learnt keys and values that every token of a layer attends to as well.

They reach any Hugging Face model through transformers' public ``AttentionInterface``, which tells the module that
attends; its layer's prefix goes in front of keys and values. The number of tokens stays the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError

IMPLEMENTATION = "thrifty-prefix"
Prefix = tuple[Tensor, Tensor]

_prefixes: ContextVar[Mapping[int, Prefix]] = ContextVar("thrifty_prefixes", default={})  # noqa: B039 (never changed)


class PrefixPrompt(nn.Module):
    """Learnt keys and values for some layers of a transformer, the same for every input.

    Parameters
    ----------
    dim
        Numbers in a key, over all heads.
    layers
        Layer, from 0, to the number of rows of its matrix; the first half are keys, the second half values.

    Raises
    ------
    InputError
        When a length is odd or negative.
    """

    def __init__(self, dim: int, layers: Mapping[int, int]) -> None:
        super().__init__()
        for layer, length in layers.items():
            if length < 0 or length % 2 or layer < 0:
                raise InputError(f"layer {layer} can't have {length} prompt rows: half of them are keys, half values")
        self.rows = nn.ParameterDict(
            {str(layer): nn.Parameter(torch.empty(length, dim).uniform_()) for layer, length in layers.items()}
        )

    def prefixes(self) -> dict[int, Prefix]:
        """Keys and values, each ``[length / 2, dim]``, of each layer."""
        return {int(layer): (rows[: len(rows) // 2], rows[len(rows) // 2 :]) for layer, rows in self.rows.items()}


def _attend(
    module: Any,
    query: Float[Tensor, "B heads tokens size"],
    key: Float[Tensor, "B heads tokens size"],
    value: Float[Tensor, "B heads tokens size"],
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    if attention_mask is not None:
        raise InputError(
            f"{type(module).__name__} attends with a mask: prefix prompts are for models that see all tokens"
        )
    found = _prefixes.get().get(id(module))
    if found is not None and len(found[0]):
        batch, heads, size = key.shape[0], key.shape[1], key.shape[3]
        before = [part.view(len(part), heads, size).transpose(0, 1).expand(batch, -1, -1, -1) for part in found]
        key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
    out = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a transformer of the transformers library.

    Raises
    ------
    InputError
        When it has no list of as many parts as its configuration has layers.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for part in model.modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise InputError(f"{type(model).__name__} is no transformer whose layers can be found: give a ViT of transformers")


@contextlib.contextmanager
def prefixed(model: Any, prefixes: Mapping[int, Prefix]) -> Iterator[None]:
    """Lets the layers of a model attend to their prefixes inside the context.

    Parameters
    ----------
    model
        A Hugging Face model whose tokens all see each other.
    prefixes
        See :meth:`PrefixPrompt.prefixes`.

    Raises
    ------
    InputError
        When a layer is not there.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    layers = layers_of(model)
    missing = [layer for layer in prefixes if layer >= len(layers)]
    if missing:
        raise InputError(f"the model has {len(layers)} layers, so there is no layer {missing[0]} to give prompts to")
    table = {id(part): prefix for layer, prefix in prefixes.items() for part in layers[layer].modules()}
    config = model.config
    implementation, token = config._attn_implementation_internal, _prefixes.set(table)
    try:
        config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        config._attn_implementation_internal = implementation
        _prefixes.reset(token)
