"""Reading prompts: each once, what all begin with once for all, in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache

from thrifty.lm.attention import Packed
from thrifty.lm.causal import causal_attention
from thrifty.lm.memory import split_rows

if TYPE_CHECKING:
    from thrifty.lm.backbone import Backbone

_LEAST_SHARED = 8  # tokens that all prompts begin with, for a pass of their own to be worth it
_TOKENS_AT_ONCE = {"cpu": 1024}
_TOKENS_ON_ACCELERATORS = 16384


class PromptCache(Cache):
    """Keys and values ``[prompt, head, time, width]`` of prompts, padded on the right, per layer.

    Parameters
    ----------
    lengths
        Tokens of each prompt.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(layers=[])
        self.lengths, self.longest = list(lengths), max(lengths)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.layer = 0
        self._prompts, self._start = slice(0, 0), 0
        self._plan: Packed | None = None

    def expect(self, plan: Packed, prompts: slice, start: int) -> None:
        """Say that the next pass brings keys and values of some prompts, laid out as ``plan``, from ``start`` on."""
        self._plan, self._prompts, self._start = plan, prompts, start

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep copies; attention goes on with what it gave."""
        assert self._plan is not None
        self.layer = layer_idx
        brought = [self._plan.unpack(part) for part in (key_states, value_states)]
        if layer_idx not in self.kept:
            keys, values = (
                value_states.new_zeros((len(self.lengths), part.shape[1], self.longest, part.shape[3]))
                for part in brought
            )
            self.kept[layer_idx] = (keys, values)
        time = slice(self._start, self._start + self._plan.longest)
        for kept, new in zip(self.kept[layer_idx], brought, strict=True):
            kept[self._prompts, :, time] = new  # one row is spread over all that share it
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (the cache's own signature)
        """Tokens seen before this pass."""
        return self._start


class _Continued(Packed):
    """Sequences end to end that all continue one beginning, which is in a cache already."""

    def __init__(self, lengths: Sequence[int], device: torch.device, cache: PromptCache, start: int) -> None:
        super().__init__(lengths, device)
        self.cache, self.start = cache, start
        self.positions = self.positions + start

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
        """See :class:`thrifty.lm.attention.Plan`."""
        begun = [part[:1, :, : self.start].expand(self.rows, -1, -1, -1) for part in self.cache.kept[self.cache.layer]]
        keys, values = (
            torch.cat([old, self.unpack(new).to(old.dtype)], 2) for old, new in zip(begun, (key, value), strict=True)
        )
        attended = causal_attention(
            self.unpack(query).to(values.dtype), keys, values, scaling, softcap=softcap, window=window, dropout=dropout
        )
        return self.pack(attended)


def read_prompts(
    parts: Backbone, prompts: Sequence[Sequence[int]], device: torch.device, *, least_shared: int = _LEAST_SHARED
) -> tuple[Float[Tensor, "prompt width"], PromptCache]:
    """Last hidden states of prompts, and their keys and values.

    Parameters
    ----------
    parts
        A model that allows packed sequences.
    prompts
        Token ids, none empty.
    device
        Where the model is.
    least_shared
        Tokens that all prompts must begin with for these to be read once for all.
    """
    shared = _shared_beginning(prompts)
    shared = shared if shared >= least_shared else 0
    cache = PromptCache([len(prompt) for prompt in prompts])
    if shared:
        plan = Packed([shared], device)
        cache.expect(plan, slice(0, len(prompts)), 0)
        parts.read(torch.tensor(prompts[0][:shared], device=device), plan, cache)
    rest = [list(prompt[shared:]) for prompt in prompts]
    lengths = [len(prompt) for prompt in rest]
    states = []
    for first, end in split_rows(lengths, _TOKENS_AT_ONCE.get(device.type, _TOKENS_ON_ACCELERATORS)):
        part = lengths[first:end]
        plan = _Continued(part, device, cache, shared) if shared else Packed(part, device)
        cache.expect(plan, slice(first, end), shared)
        ids = torch.tensor([token for prompt in rest[first:end] for token in prompt], device=device)
        last = torch.tensor(part, device=device).cumsum(0) - 1
        states.append(parts.read(ids, plan, cache)[last])
    return torch.cat(states), cache


def _shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, short of the whole of any; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))  # in the order of dictionaries, these differ first
    most = min(map(len, prompts)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)
