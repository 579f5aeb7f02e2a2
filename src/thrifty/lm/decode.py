"""Two ways to continue a batch of prompts: the fast one, and one by the model's own forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.lm.backbone import Backbone
from thrifty.lm.draw import Draw
from thrifty.lm.head import LogitTransform

# Dropping ended rows copies the others' keys and values, which takes about as long as this share of a step;
# so it is done as soon as carrying them along has cost as much.
_COPY_COST = 0.25

Uniforms = Callable[[int], Float[Tensor, " row"]]


@dataclass
class Continuations:
    """What a batch of rows spoke: lists of token ids and log-probabilities, and who stopped by himself."""

    tokens: list[list[int]]
    logps: list[list[float]]
    finished: list[bool]


class _Recorder:
    """Collects a step at a time and knows which rows still speak."""

    def __init__(self, rows: int, limit: int, stop: frozenset[int]) -> None:
        self.tokens = torch.zeros((rows, limit), dtype=torch.long)
        self.logps = torch.zeros((rows, limit), dtype=torch.float32)
        self.lengths = torch.full((rows,), limit)
        self.finished = torch.zeros(rows, dtype=torch.bool)
        self.stop = torch.tensor(sorted(stop), dtype=torch.long)
        self.alive = torch.arange(rows)  # of each row carried along, its number
        self.wasted = 0.0  # steps' worth of work on ended rows since the last were dropped

    def record(self, step: int, tokens: Tensor, logps: Tensor) -> None:
        tokens, logps = tokens.cpu(), logps.cpu()
        self.tokens[self.alive, step] = tokens
        self.logps[self.alive, step] = logps
        ended = torch.isin(tokens, self.stop) & ~self.finished[self.alive]
        self.lengths[self.alive[ended]] = step + 1
        self.finished[self.alive[ended]] = True

    @property
    def done(self) -> bool:
        return bool(self.finished[self.alive].all())

    def compaction(self) -> Tensor | None:
        """Rows to keep, when carrying ended ones along has become dearer than dropping them."""
        ended = self.finished[self.alive]
        self.wasted += float(ended.float().mean())
        if self.wasted < _COPY_COST:
            return None
        self.wasted = 0.0
        keep = (~ended).nonzero().squeeze(1)
        self.alive = self.alive[keep]
        return keep

    def result(self) -> Continuations:
        ends = self.lengths.tolist()
        return Continuations(
            [row[:end] for row, end in zip(self.tokens.tolist(), ends, strict=True)],
            [row[:end] for row, end in zip(self.logps.tolist(), ends, strict=True)],
            self.finished.tolist(),
        )


def decode_fast(
    parts: Backbone,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    limit: int,
    stop: frozenset[int],
    draw: Draw,
    uniforms: Uniforms,
    device: torch.device,
) -> Continuations:
    """Continue prompts with their keys and values computed once each, in a cache that is never re-made.

    Parameters
    ----------
    parts
        A model that allows packed sequences.
    prompts
        Token ids, none empty.
    owners
        For each row, the prompt it continues.
    limit
        New tokens at most.
    stop
        Ids that end a row (and belong to it).
    draw
        How to choose tokens.
    uniforms
        For a step, one number per row.
    device
        Where the model is.
    """
    from thrifty.lm.cache import RowCache
    from thrifty.lm.prefill import read_prompts

    recorder = _Recorder(len(owners), limit, stop)
    owner = torch.tensor(list(owners), device=device)
    states, prompt_cache = read_prompts(parts, prompts, device)
    first = parts.head(states)
    logits = space = first.new_empty((len(owner), first.shape[1]))  # each step's go where the last step's were
    torch.index_select(first, 0, owner, out=logits)
    cache = RowCache(prompt_cache, owner, limit)
    with parts.lean.joined(limit) if parts.lean is not None else contextlib.nullcontext():
        for step in range(limit):
            numbers = uniforms(step)[recorder.alive].to(device)
            tokens, logps = draw(logits, numbers, parts.transform)
            recorder.record(step, tokens, logps)
            if recorder.done or step + 1 == limit:
                break
            keep = recorder.compaction()
            if keep is not None:
                keep = keep.to(device)
                cache.keep(keep)
                tokens = tokens[keep]
            logits = parts.products(parts.step(tokens, cache), space)
    return recorder.result()


def decode_plainly(
    model: Any,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    limit: int,
    stop: frozenset[int],
    draw: Draw,
    uniforms: Uniforms,
    device: torch.device,
) -> Continuations:
    """The same by the model's own forward pass and cache, for prompts of one length.

    Equal lengths need no padding, and padding on the left is read by a recurrent model like any token.
    """
    ids: Int[Tensor, "row time"] = torch.tensor([list(prompts[owner]) for owner in owners], device=device)
    recorder = _Recorder(len(ids), limit, stop)
    state: dict[str, Any] = {}
    for step in range(limit):
        output = model(input_ids=ids, use_cache=True, **state)
        tokens, logps = draw(output.logits[:, -1], uniforms(step).to(device), LogitTransform())
        recorder.record(step, tokens, logps)
        if recorder.done:
            break
        state = _carried(output)
        # A model without a cache that can be handed on reads everything again.
        ids = tokens[:, None] if state else torch.cat([ids, tokens[:, None]], 1)
    return recorder.result()


def _carried(output: Any) -> dict[str, Any]:
    for name in ("past_key_values", "cache_params"):
        if getattr(output, name, None) is not None:
            return {name: getattr(output, name)}
    return {}
