"""Keys and values of a batch that decodes: allocated once, one column per step, rows leave when they end."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache

from thrifty.lm.prefill import PromptCache

_FIRST_COLUMNS = 16  # for spoken tokens; doubled whenever they are used up


class RowCache(Cache):
    """Keys and values of rows that each read and write one token a step.

    A prompt's are kept once for all the rows that continue it, ``[prompt, head, time, width]``, and so
    are read once a step for all of them. What the rows themselves said is ``[row, head, step, width]``:
    one column per step, the same for all rows, so a step writes one slice and products read whole
    contiguous matrices. Columns that hold nothing yet are masked; their number at most doubles.

    Parameters
    ----------
    prompts
        The filled cache of the prompts, which becomes this one's.
    owners
        For each row the prompt it continues, in ascending order.
    steps
        Tokens to come, at most.
    """

    def __init__(self, prompts: PromptCache, owners: Int[Tensor, " row"], steps: int) -> None:
        super().__init__(layers=[])
        self.prompts = prompts.kept
        self.prompt_time, self.steps = prompts.longest, steps
        self.spoken: dict[int, tuple[Tensor, Tensor]] = {}
        self.step = 0
        self.capacity = min(steps, _FIRST_COLUMNS)
        self.lengths = torch.tensor(prompts.lengths, device=owners.device)[owners]
        self._masks: dict[int | None, Tensor] = {}
        self._arrange(owners)

    def _arrange(self, owners: Tensor) -> None:
        """Rows side by side under their prompts: a grid ``[prompt, most rows of one]``, with holes unless even."""
        self.owners = owners
        _, counts = owners.unique_consecutive(return_counts=True)
        self.grid = (len(counts), int(counts.max()))
        self.even = self.grid[0] * self.grid[1] == len(owners)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(owners), device=owners.device) - starts.repeat_interleave(counts)
        self.slots = owners * self.grid[1] + rank

    @property
    def positions(self) -> Int[Tensor, "row 1"]:
        """Position of the token that is read in this step."""
        return (self.lengths + self.step)[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write this step's column of a layer; returns what the rows have spoken so far."""
        if layer_idx not in self.spoken:
            self.spoken[layer_idx] = (self._columns(key_states, value_states), self._columns(value_states))
        keys, values = self.spoken[layer_idx]
        keys[:, :, self.step : self.step + 1] = key_states
        values[:, :, self.step : self.step + 1] = value_states
        self._layer = layer_idx
        return keys, values

    def _columns(self, states: Tensor, like: Tensor | None = None) -> Tensor:
        return (states if like is None else like).new_zeros((*states.shape[:2], self.capacity, states.shape[3]))

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (the cache's own signature)
        """Columns filled before this step."""
        return self.prompt_time + self.step

    def advance(self) -> None:
        """Go to the next step's column, adding columns when there is none left."""
        self.step += 1
        self._masks.clear()
        if self.step == self.capacity:
            self.capacity = max(self.capacity + 1, min(self.steps, 2 * self.capacity))
            for layer, kept in self.spoken.items():
                self.spoken[layer] = (self._grown(kept[0]), self._grown(kept[1]))

    def _grown(self, kept: Tensor) -> Tensor:
        grown = kept.new_empty((*kept.shape[:2], self.capacity, kept.shape[3]))
        grown[:, :, : self.step] = kept
        grown[:, :, self.step :] = 0.0  # what is masked must be finite
        return grown

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all rows but these (ascending), and the prompts that have no rows left."""
        self.lengths = self.lengths[rows]
        self._masks.clear()
        for layer, (keys, values) in self.spoken.items():
            self.spoken[layer] = (keys[rows], values[rows])
        alive, owners = self.owners[rows].unique_consecutive(return_inverse=True)
        if len(alive) < self.grid[0]:
            for layer, (keys, values) in self.prompts.items():
                self.prompts[layer] = (keys[alive], values[alive])
        self._arrange(owners)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where a row's current token may look, minus infinity elsewhere; ``[row, prompt time + columns]``."""
        if window not in self._masks:
            time = torch.arange(self.prompt_time, device=self.lengths.device)
            column = torch.arange(self.capacity, device=self.lengths.device)
            in_prompt = time < self.lengths[:, None]
            spoken = (column <= self.step).expand(len(self.lengths), -1)
            if window is not None:
                in_prompt = in_prompt & (time > self.positions - window)
                spoken = spoken & (column > self.step - window)
            visible = torch.cat([in_prompt, spoken], 1)
            hidden = torch.full(visible.shape, float("-inf"), dtype=dtype, device=visible.device)
            self._masks[window] = hidden.masked_fill_(visible, 0.0)
        return self._masks[window]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
        dropout: float,  # noqa: ARG002 (the attention's own signature)
    ) -> Tensor:
        """Attention of one token per row over its prompt and what it said; see :class:`thrifty.lm.attention.Plan`."""
        query = query.to(value.dtype)  # under autocast, rotary embeddings come in float32
        rows, heads, _, width = query.shape
        kv_heads, columns = key.shape[1:3]
        groups, value_width = heads // kv_heads, value.shape[-1]
        prompt_keys, prompt_values = (part.flatten(0, 1) for part in self.prompts[self._layer])
        # Query heads that share a key head, and rows that share a prompt, are rows of one product.
        grouped = (query * scaling).reshape(rows, kv_heads, groups, width).contiguous()
        to_prompt = torch.bmm(self._to_grid(grouped), prompt_keys.transpose(1, 2))
        to_spoken = torch.bmm(grouped.view(-1, groups, width), key.view(-1, columns, width).transpose(1, 2))
        if softcap is not None:
            for part in (to_prompt, to_spoken):
                part.div_(softcap).tanh_().mul_(softcap)
        mask = self.mask(window, query.dtype).view(*self.lead, 1, 1, -1)
        scores = query.new_empty((*self.lead, kv_heads, groups, self.prompt_time + columns))
        on_prompt, on_spoken = scores.split([self.prompt_time, columns], -1)
        mask_prompt, mask_spoken = mask.split([self.prompt_time, columns], -1)
        # Both parts are put side by side and masked in one pass each.
        torch.add(self._by_row(to_prompt, kv_heads), mask_prompt, out=on_prompt)
        torch.add(to_spoken.view(on_spoken.shape), mask_spoken, out=on_spoken)
        # In float32, for a half-precision softmax of so short rows takes longer.
        wide = torch.promote_types(query.dtype, torch.float32)
        on_prompt, on_spoken = torch.softmax(scores, -1, dtype=wide).split([self.prompt_time, columns], -1)
        on_prompt = on_prompt.to(query.dtype).reshape(rows, kv_heads, groups, self.prompt_time)
        from_prompt = torch.bmm(self._to_grid(on_prompt), prompt_values)
        on_spoken = on_spoken.to(query.dtype).reshape(-1, groups, columns)
        attended = torch.bmm(on_spoken, value.view(-1, columns, value_width))
        attended = attended.view(*self.lead, kv_heads, groups, value_width)
        return attended.add_(self._by_row(from_prompt, kv_heads)).view(rows, 1, heads, value_width)

    @property
    def lead(self) -> tuple[int, ...]:
        """How rows are counted: by prompt and place where all prompts have the same number, else one by one."""
        return self.grid if self.even else (len(self.owners),)

    def _to_grid(self, by_row: Tensor) -> Tensor:
        """``[row, kv head, group, *]`` to ``[prompt x kv head, rows of it x group, *]``."""
        prompts, most = self.grid
        if not self.even:
            by_row = by_row.new_zeros((prompts * most, *by_row.shape[1:])).index_copy_(0, self.slots, by_row)
        grid = by_row.reshape(prompts, most, *by_row.shape[1:]).transpose(1, 2)
        return grid.reshape(prompts * by_row.shape[1], most * by_row.shape[2], by_row.shape[3])

    def _by_row(self, grid: Tensor, kv_heads: int) -> Tensor:
        """The way back, to ``[*lead, kv head, group, *]``; a view where the grid has no holes."""
        prompts, most = self.grid
        by_row = grid.view(prompts, kv_heads, most, -1, grid.shape[-1]).transpose(1, 2)
        return by_row if self.even else by_row.flatten(0, 1)[self.slots]
