"""Rows that begin alike, their beginning computed once: a group's samples, a pair's two answers.

Rows lie end to end as in :class:`thrifty.lm.attention.Packed`, all beginnings first, then what each row adds to its
own. A row's added tokens look at the keys and values of its beginning, whose gradients are summed over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thrifty.lm.attention import Packed
from thrifty.lm.causal import masked_attention

_LEAST_SAVED = 0.1  # share of all tokens; attention in two parts costs about as much as a few percent of them


@dataclass(frozen=True)
class Groups:
    """Rows put so that those that begin alike are neighbours.

    Parameters
    ----------
    order
        For each place, the row that stands there; int64 ``[row]``.
    numbers
        For each place, the number of its group, ascending.
    begun
        For each place, how many tokens its group's rows begin with alike; 0 in a group of one.
    """

    order: Int[Tensor, " row"]
    numbers: list[int]
    begun: list[int]

    @property
    def shared(self) -> list[int]:
        """For each place, how many tokens it shares with the place before."""
        pairs = zip([-1, *self.numbers], self.numbers, self.begun, strict=False)
        return [begun if before == own else 0 for before, own, begun in pairs]


def group_rows(
    ids: Int[Tensor, "row time"], spoken: Bool[Tensor, "row time"], lengths: Int[Tensor, " row"]
) -> Groups | None:
    """Find rows with the same tokens before the response, or None where these are too few to matter.

    Parameters
    ----------
    ids
        Token ids.
    spoken
        The response tokens, at least one a row and none at 0.
    lengths
        Tokens of each row that are read: those before the last response token.
    """
    rows, time = ids.shape
    if rows < 2:
        return None
    position = torch.arange(time, device=ids.device)
    first = spoken.int().argmax(1, keepdim=True)
    _, same = ids.masked_fill(position >= first, -1).unique(dim=0, return_inverse=True)
    row = torch.arange(rows, device=ids.device)
    leader = row.new_full((rows,), rows).scatter_reduce_(0, same, row, "amin")[same]
    order = leader.argsort(stable=True)
    # Answers may begin alike too, so what a group shares can go on beyond its prompt.
    common = (ids == ids[leader]).cumprod(1).sum(1).minimum(lengths)
    begun = common.new_full((rows,), time).scatter_reduce_(0, leader, common, "amin")[leader]
    begun = begun.masked_fill(leader.bincount(minlength=rows)[leader] < 2, 0)
    saved = begun.masked_fill(leader == row, 0).sum()
    if bool(saved < _LEAST_SAVED * lengths.sum()):
        return None
    return Groups(order, leader[order].tolist(), begun[order].tolist())


class Branched:
    """Rows end to end, of which neighbours share a beginning; a plan of :mod:`thrifty.lm.attention`.

    Parameters
    ----------
    lengths
        Tokens of each row, its beginning included.
    numbers
        The group of each row; a group's rows are neighbours.
    begun
        Tokens that the row's group shares, not 0 everywhere; a row may be its beginning and nothing more.
    device
        Where the model is.
    """

    def __init__(
        self, lengths: Sequence[int], numbers: Sequence[int], begun: Sequence[int], device: torch.device
    ) -> None:
        rows = range(len(lengths))
        leaders = [row for row in rows if begun[row] and (row == 0 or numbers[row] != numbers[row - 1])]
        place = {numbers[row]: stem for stem, row in enumerate(leaders)}
        self.stems = Packed([begun[row] for row in leaders], device)
        added = [length - start for length, start in zip(lengths, begun, strict=True)]
        self.added = Packed(added, device) if any(added) else None
        # A row without a beginning points at the first one and sees nothing of it.
        self.owners = torch.tensor([place.get(numbers[row], 0) for row in rows], device=device)
        self.begun, self.lengths = torch.tensor(begun, device=device), torch.tensor(lengths, device=device)
        self.leaders = torch.tensor(leaders, device=device)
        self.even = min(begun) == self.stems.longest
        self.positions = self.stems.positions
        if self.added is not None:
            stems = _numbered(self.stems, 0)[self.owners]
            self.sources = torch.cat([stems, _numbered(self.added, self.stems.total)], 1)
            start = self.begun.repeat_interleave(torch.tensor(added, device=device), output_size=self.added.total)
            self.positions = torch.cat([self.positions, start + self.added.positions], 1)
        self._hidden: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def pack_ids(self, ids: Int[Tensor, "row time"]) -> Int[Tensor, " total"]:
        """The tokens in this order: beginnings, then additions."""
        position = torch.arange(ids.shape[1], device=ids.device)
        begun = self.begun[:, None]
        stems = ids[self.leaders][position < begun[self.leaders]]
        return torch.cat([stems, ids[(position >= begun) & (position < self.lengths[:, None])]])

    def places(self, time: int) -> Int[Tensor, "row time"]:
        """Where each row's tokens are in that order."""
        position, begun = torch.arange(time, device=self.begun.device), self.begun[:, None]
        stems, added = self.begun[self.leaders], self.lengths - self.begun
        in_stem = (stems.cumsum(0) - stems)[self.owners][:, None] + position
        in_added = self.stems.total + (added.cumsum(0) - added)[:, None] + position - begun
        return torch.where(position < begun, in_stem, in_added)

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
        """See :class:`thrifty.lm.attention.Plan`; batch is 1 and time runs over all tokens."""
        if self.added is None:
            return self.stems.attend(query, key, value, scaling, softcap, window, dropout)
        first, rest = query.split([self.stems.total, self.added.total], 2)
        stem_key, keys = _Branch.apply(key[0].transpose(0, 1), self)
        stem_value, values = _Branch.apply(value[0].transpose(0, 1), self)
        stem_key, stem_value = (part.transpose(0, 1)[None] for part in (stem_key, stem_value))
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        begun = self.stems.attend(first, stem_key, stem_value, scaling, softcap, window, dropout)
        hidden = self.hidden(window, values.dtype)
        attended = masked_attention(
            self.added.unpack(rest), keys, values, scaling, hidden, softcap=softcap, dropout=dropout
        )
        return torch.cat([begun, self.added.pack(attended)], 1)

    def hidden(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where an added token may look, minus infinity elsewhere; ``[row, query, key]``, or the same for all rows.

        Keys are a row's beginning, padded to the longest, then what it adds.
        """
        if (window, dtype) not in self._hidden:
            assert self.added is not None
            longest, device = self.added.longest, self.begun.device
            begun = self.begun[:1] if self.even else self.begun
            at = begun[:, None, None] + torch.arange(longest, device=device)[:, None]
            stem = torch.arange(self.stems.longest, device=device).expand(len(begun), 1, -1)
            key_at = torch.cat([stem, at.transpose(1, 2)], 2)
            real = torch.cat([stem < begun[:, None, None], torch.ones_like(at.transpose(1, 2), dtype=torch.bool)], 2)
            visible = real & (key_at <= at)
            if window is not None:
                visible &= key_at > at - window
            hidden = torch.full(visible.shape, float("-inf"), dtype=dtype, device=device).masked_fill_(visible, 0.0)
            self._hidden[window, dtype] = hidden[0] if self.even else hidden
        return self._hidden[window, dtype]


class _Branch(torch.autograd.Function):
    """Of ``[token, head, width]``, the beginnings' as they lie, and for each row all that it may look at, padded."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, plan: Branched) -> tuple[Tensor, Tensor]:
        ctx.plan = plan
        index = plan.sources
        spread = flat.index_select(0, index.flatten())
        return flat[: plan.stems.total].clone(), spread.view(*index.shape, *flat.shape[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        plan: Branched = ctx.plan
        stems, added = plan.stems, plan.added
        assert added is not None
        by_row = upstream[1].flatten(2)
        begun, rest = by_row.split([stems.longest, added.longest], 1)
        # One product sums over the rows of each beginning, and in float32 whatever the dtype.
        owns = torch.arange(stems.rows, device=begun.device)[:, None] == plan.owners
        owns = owns & (plan.begun > 0)
        with torch.autocast(begun.device.type, enabled=False):
            summed = (owns.to(begun.dtype) @ begun.flatten(1)).view(-1, by_row.shape[2])
        gradient = upstream[0].new_empty((stems.total + added.total, by_row.shape[2]))
        first, last = gradient.split([stems.total, added.total])
        torch.add(summed if stems.even else summed.index_select(0, stems.slots), upstream[0].flatten(1), out=first)
        rest = rest.flatten(0, 1)
        last.copy_(rest if added.even else rest.index_select(0, added.slots))
        return gradient.view(-1, *upstream[0].shape[1:]), None


def _numbered(plan: Packed, start: int) -> Int[Tensor, "row time"]:
    """Of each padded place the number of its token, counted from ``start``; of padding that of the first token."""
    numbers = torch.zeros(plan.rows * plan.longest, dtype=torch.long, device=plan.slots.device)
    numbers[plan.slots] = torch.arange(start, start + plan.total, device=numbers.device)
    return numbers.view(plan.rows, plan.longest)
