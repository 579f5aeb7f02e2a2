"""Attention for rows of different lengths laid end to end, so that no layer computes on padding.

The body of a model sees one long row of real tokens; only attention knows where one sequence ends and
the next begins. It reaches the model through transformers' public ``AttentionInterface``: the function
registered here is chosen in the model's config for the time of one forward pass, and the config is put
back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from thrifty.lm.causal import causal_attention

IMPLEMENTATION = "thrifty"

# Arguments of attention that change its result and that the plans below do not know.
_UNKNOWN = ("s_aux", "sinks", "position_bias", "head_mask", "score_mod", "cache")


class Plan(Protocol):
    """How one forward pass attends."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
        dropout: float,
    ) -> Tensor:
        """Attend from ``query [B, H, T, D]`` to keys and values with as many or fewer heads; ``[B, T, H, D]``."""


class PackedPlan(Plan, Protocol):
    """A plan for tokens of several sequences in one row, which says where each token stands in its own."""

    positions: Tensor


_plan: ContextVar[Plan | None] = ContextVar("thrifty_attention_plan", default=None)


class UnsupportedAttentionError(RuntimeError):
    """The model asks of attention something that the plans do not do; a slower way must be taken."""


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    plan = _plan.get()
    asked = [name for name in _UNKNOWN if options.get(name) is not None]
    if plan is None or asked or attention_mask is not None:
        raise UnsupportedAttentionError(f"{type(module).__name__} attends with {asked or 'a mask of its own'}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return plan.attend(query, key, value, scaling, softcap, sliding_window, dropout), None


@contextlib.contextmanager
def attending(configs: Sequence[Any], plan: Plan) -> Iterator[None]:
    """Make the models of these configs attend by ``plan`` inside the context."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    before = [config._attn_implementation_internal for config in configs]
    token = _plan.set(plan)
    try:
        for config in configs:
            config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        _plan.reset(token)


class Packed:
    """Causal attention inside each of several sequences that lie end to end in one row.

    Parameters
    ----------
    lengths
        Tokens of each sequence, all at least 1.
    device
        Where the model is.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.rows, self.longest, self.total = len(self.lengths), max(self.lengths), sum(self.lengths)
        self.even = self.rows * self.longest == self.total
        real = torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]
        self.slots = real.flatten().nonzero().squeeze(1).to(device)
        self.positions = torch.cat([torch.arange(length) for length in self.lengths]).to(device)[None]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
        dropout: float,
    ) -> Tensor:
        """See :class:`Plan`; batch is 1 and time runs over all sequences."""
        queries, keys, values = (self.unpack(part) for part in (query, key, value))
        return self.pack(
            causal_attention(queries, keys, values, scaling, softcap=softcap, window=window, dropout=dropout)
        )

    def unpack(self, packed: Tensor) -> Tensor:
        """``[1, H, sum of lengths, D]`` to ``[rows, H, longest, D]``, padded with zeros."""
        flat = packed[0].transpose(0, 1)
        if not self.even:
            flat = _Spread.apply(flat, self.slots, self.rows * self.longest)
        return flat.reshape(self.rows, self.longest, *flat.shape[1:]).transpose(1, 2)

    def pack(self, attended: Tensor) -> Tensor:
        """``[rows, H, longest, D]`` to ``[1, sum of lengths, H, D]``."""
        flat = attended.transpose(1, 2).reshape(self.rows * self.longest, attended.shape[1], attended.shape[3])
        return (flat if self.even else _Collect.apply(flat, self.slots))[None]


# Both are index operations whose indices never repeat, so each is the other's gradient; autograd's own
# gradient of an index is an accumulation, which is many times slower.
class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return source.new_zeros((size, *source.shape[1:])).index_copy_(0, slots, source)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return upstream[0].index_select(0, slots), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(source)
        return source.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        gradient = upstream[0]
        return gradient.new_zeros((ctx.size, *gradient.shape[1:])).index_copy_(0, slots, gradient), None
