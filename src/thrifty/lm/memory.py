"""How many tokens' activations fit into memory, and how to cut a batch accordingly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from thrifty.lm.backbone import unwrapped

_CPU_BYTES = 7 * 2**27
_FREE_SHARE = 0.5  # of a GPU's free memory
_limit: ContextVar[int | None] = ContextVar("activation limit", default=None)

# What a decoder layer keeps per token for its backward pass, in numbers of the weights' dtype: the
# normalisations' float32 copies, queries, keys, values and sums along the hidden width; gate, activation,
# up and their product along the inner width.
_PER_HIDDEN, _PER_INNER = 12, 6
# The same for layers run by hand (:mod:`thrifty.lm.lean`), which keep neither float32 copies nor activations.
_LEAN_PER_HIDDEN, _LEAN_PER_INNER = 8, 2


@contextmanager
def activations_of(gib: float | None) -> Iterator[None]:
    """Within it, layers whose activations take more are run again in the backward pass.

    Parameters
    ----------
    gib
        GiB; ``None`` leaves it at what :func:`activation_tokens` takes by itself.
    """
    token = _limit.set(_limit.get() if gib is None else int(gib * 2**30))
    try:
        yield
    finally:
        _limit.reset(token)


def activation_tokens(model: Any, limit: int | None, device: torch.device, *, lean: bool = False) -> int:
    """Tokens whose activations take about ``limit`` bytes, at least 1.

    Parameters
    ----------
    model
        A causal language model; its size is read from its config and the dtype of its weights.
    limit
        Bytes; None is what :func:`activations_of` says, else 0.875 GiB on a CPU and half of the free memory on a GPU.
    device
        Where the model is.
    lean
        Whether its layers are run by hand.
    """
    limit = _limit.get() if limit is None else limit
    if limit is None:
        limit = _CPU_BYTES
        if device.type == "cuda":
            limit = int(torch.cuda.mem_get_info(device)[0] * _FREE_SHARE)
    config = unwrapped(model).config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    size = next(model.parameters()).element_size()
    per_hidden, per_inner = (_LEAN_PER_HIDDEN, _LEAN_PER_INNER) if lean else (_PER_HIDDEN, _PER_INNER)
    per_token = config.num_hidden_layers * (per_hidden * hidden + per_inner * inner) * size
    return max(1, limit // per_token)


def split_rows(lengths: Sequence[int], most: int, shared: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Cut rows into groups of neighbours with at most ``most`` tokens each, the last groups full.

    Parameters
    ----------
    lengths
        Tokens per row; a row longer than ``most`` is a group of its own.
    most
        Tokens per group.
    shared
        Tokens that each row begins with like the row before, which count once; such rows stay together unless
        they are more than ``most`` by themselves. Nothing said means none.

    Returns
    -------
    list
        (first row, end) of each group, in order.
    """
    shared = shared or [0] * len(lengths)
    groups: list[tuple[int, int]] = []
    end = len(lengths)
    while end:
        first = end
        tokens = 0
        while first:
            start, more = first - 1, lengths[first - 1]
            while shared[start]:
                more += lengths[start - 1] - shared[start]
                start -= 1
            if tokens + more > most:
                break
            first, tokens = start, tokens + more
        if first == end:
            first, tokens = end - 1, lengths[end - 1]
            while first and shared[first] and tokens + lengths[first - 1] - shared[first] <= most:
                tokens += lengths[first - 1] - shared[first]
                first -= 1
        groups.append((first, end))
        end = first
    return groups[::-1]
