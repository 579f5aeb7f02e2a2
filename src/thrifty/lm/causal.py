"""Causal attention over whole sequences: as plain batched products where those are the faster way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# On a CPU the fused kernel's backward pass costs several times that of batched products up to about
# this many tokens; beyond, the scores of one sequence no longer stay in the cache.
_LONGEST_BATCHED = 1024
_SCORE_ELEMENTS = 2**21


def causal_attention(
    query: Float[Tensor, "row head time width"],
    key: Float[Tensor, "row kv_head key_time width"],
    value: Float[Tensor, "row kv_head key_time value_width"],
    scaling: float,
    *,
    softcap: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "row head time value_width"]:
    r"""Causal soft-max attention with grouped queries, differentiable.

    .. math:: \mathrm{softmax}\!\left(c \tanh(\beta\, q k^\top / c) + m\right) v

    where :math:`m` hides the future and whatever lies ``window`` or more tokens back.

    Parameters
    ----------
    query, key, value
        A whole multiple of ``kv_head`` query heads; neighbouring query heads share a key head. With
        more keys than queries, the queries are the last of these positions.
    scaling
        :math:`\beta`.
    softcap
        :math:`c`, greater than 0; None leaves the tanh out.
    window
        Tokens visible from each position, itself included; None shows the whole past.
    dropout
        Probability of dropping an attention weight.
    """
    if torch.is_autocast_enabled(query.device.type):
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings come in float32
    times = query.shape[2], key.shape[2]
    window = window if window is not None and window < times[1] else None
    if softcap is not None or _batches(key, dropout):
        hidden = _hidden_scores(times, window, query)
        return masked_attention(query, key, value, scaling, hidden, softcap=softcap, dropout=dropout)
    plain = window is None and times[0] == times[1]
    visible = None if plain else _visible(times, window, query.device)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible,
        dropout_p=dropout,
        is_causal=visible is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def masked_attention(
    query: Float[Tensor, "row head time width"],
    key: Float[Tensor, "row kv_head key_time width"],
    value: Float[Tensor, "row kv_head key_time value_width"],
    scaling: float,
    hidden: Float[Tensor, "*row time key_time"],
    *,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "row head time value_width"]:
    """The same with any mask: ``hidden`` is added to the scores, one for all rows or one for each."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    by_row = hidden[:, None] if hidden.ndim == 3 else hidden
    if softcap is not None:
        return _capped_attention(query, key, value, scaling, softcap, by_row, dropout)
    if _batches(key, dropout):
        return _batched_attention(query, key, value, scaling, hidden)
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=by_row, dropout_p=dropout, scale=scaling, enable_gqa=shared
    )


def _batches(key: Tensor, dropout: float) -> bool:
    return key.device.type == "cpu" and dropout == 0.0 and key.shape[2] <= _LONGEST_BATCHED


def _visible(times: tuple[int, int], window: int | None, device: torch.device) -> Tensor:
    begun = times[1] - times[0]
    visible = torch.ones(times, dtype=torch.bool, device=device).tril(begun)
    return visible if window is None else visible.triu(begun + 1 - window)


def _hidden_scores(times: tuple[int, int], window: int | None, like: Tensor) -> Tensor:
    """0 where attention may look, minus infinity elsewhere; ``[query, key]``."""
    hidden = torch.full(times, float("-inf"), dtype=like.dtype, device=like.device)
    return hidden.masked_fill_(_visible(times, window, like.device), 0.0)


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float, hidden: Tensor, dropout: float
) -> Tensor:
    rows, heads, time, width = query.shape
    kv_heads, key_time = key.shape[1:3]
    groups = heads // kv_heads
    grouped = query.reshape(rows, kv_heads, groups * time, width)
    scores = torch.tanh(grouped @ key.transpose(2, 3) * (scaling / softcap)) * softcap
    scores = scores.view(rows, heads, time, key_time) + hidden
    weights = F.dropout(torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype), dropout)
    attended = weights.view(rows, kv_heads, groups * time, key_time) @ value
    return attended.view(rows, heads, time, value.shape[-1])


def _batched_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor) -> Tensor:
    rows, heads, time, width = query.shape
    kv_heads, key_time = key.shape[1:3]
    grouped = query.reshape(rows * kv_heads, heads // kv_heads * time, width)
    flat_key, flat_value = (part.reshape(rows * kv_heads, key_time, part.shape[-1]) for part in (key, value))
    attended: Tensor = _BatchedAttention.apply(grouped, flat_key, flat_value, scaling, hidden)
    return attended.view(rows, heads, time, value.shape[-1])


class _BatchedAttention(torch.autograd.Function):
    """Scores exist for a few rows at a time, in memory used again; the backward pass makes them anew."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value, hidden)
        ctx.scaling = scaling
        attended = query.new_empty((*query.shape[:2], value.shape[-1]))
        for part, weights in _weights(query, key, scaling, hidden):
            torch.bmm(weights, value[part], out=attended[part])
        return attended

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, hidden = ctx.saved_tensors
        gradient = upstream[0].contiguous()
        grads = tuple(torch.empty_like(part) for part in (query, key, value))
        buffer: Tensor | None = None
        for part, weights in _weights(query, key, ctx.scaling, hidden):
            if buffer is None:
                buffer = torch.empty_like(weights)
            grad_weights = buffer[: len(weights)]
            torch.bmm(weights.transpose(1, 2), gradient[part], out=grads[2][part])
            torch.bmm(gradient[part], value[part].transpose(1, 2), out=grad_weights)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            torch.bmm(grad_scores, key[part], out=grads[0][part])
            torch.bmm(grad_scores.transpose(1, 2), query[part], out=grads[1][part])
        return grads[0].mul_(ctx.scaling), grads[1].mul_(ctx.scaling), grads[2], None, None


def _weights(query: Tensor, key: Tensor, scaling: float, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, attention weights of these rows); the next rows use the weights' memory again."""
    batch, grouped_time, _ = query.shape
    step = min(batch, max(1, _SCORE_ELEMENTS // (grouped_time * key.shape[1])))
    per_row = batch // len(hidden) if hidden.ndim == 3 else 1
    step = max(1, step // per_row) * per_row
    buffer = query.new_empty((step, grouped_time, key.shape[1]))
    for first in range(0, batch, step):
        part = slice(first, min(first + step, batch))
        scores = buffer[: part.stop - first]
        torch.bmm(query[part], key[part].transpose(1, 2), out=scores)
        if hidden.ndim == 3:
            rows = hidden[part.start // per_row : part.stop // per_row, None]
            by_head = scores.view(len(rows), -1, *hidden.shape[1:])
        else:
            rows, by_head = hidden, scores.view(-1, *hidden.shape)
        torch.add(rows, by_head, alpha=scaling, out=by_head)
        yield part, torch.softmax(scores, -1, out=scores)
