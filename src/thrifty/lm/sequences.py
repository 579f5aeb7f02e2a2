"""A batch of token sequences with the places where the model spoke, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from thrifty.core.errors import InputError, nearest


@dataclass(frozen=True, eq=False)
class Sequences:
    """Right-padded rows of tokens; immutable, every method returns a new one.

    Parameters
    ----------
    input_ids
        Token ids, int64 ``[row, time]``; what stands in the padding does not matter.
    attention_mask
        True for real tokens, False for the padding on the right.
    response_mask
        True where the model spoke: the tokens whose log-probabilities matter.
    columns
        What else is known: one value per row ``[row]`` (``reward``, ``source``, ``group``) or per token
        ``[row, time]`` (``behaviour_logps``, ``advantage``), 0 in the padding.

    Raises
    ------
    InputError
        If shapes or dtypes do not agree.
    """

    input_ids: Int[Tensor, "row time"]
    attention_mask: Bool[Tensor, "row time"]
    response_mask: Bool[Tensor, "row time"]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.input_ids.shape
        if self.input_ids.ndim != 2 or self.input_ids.is_floating_point():
            raise InputError(f"input_ids must be integers [row, time], got {self.input_ids.dtype} {tuple(shape)}")
        for name, mask in (("attention_mask", self.attention_mask), ("response_mask", self.response_mask)):
            if mask.shape != shape or mask.dtype != torch.bool:
                raise InputError(
                    f"{name} must be bool {tuple(shape)} like input_ids, got {mask.dtype} {tuple(mask.shape)}"
                )
        for name, column in self.columns.items():
            if column.shape != shape and column.shape != shape[:1]:
                raise InputError(
                    f"column {name!r} must have shape {tuple(shape[:1])} (per row) or {tuple(shape)} (per token), "
                    f"got {tuple(column.shape)}"
                )

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def __getitem__(self, name: str) -> Tensor:
        """The column of that name."""
        if name not in self.columns:
            raise InputError(
                f"no column {name!r} in these sequences: {nearest(name, self.columns) or 'there are none'}"
            )
        return self.columns[name]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.input_ids.device

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """Real tokens per row."""
        return self.attention_mask.sum(1)

    @property
    def response_lengths(self) -> Int[Tensor, " row"]:
        """Response tokens per row."""
        return self.response_mask.sum(1)

    def right_padded(self) -> bool:
        """Whether every row is real tokens first and padding after."""
        return not bool((self.attention_mask[:, 1:] & ~self.attention_mask[:, :-1]).any())

    def to(self, device: torch.device | str) -> Sequences:
        """The same on another device."""
        return Sequences(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.response_mask.to(device),
            {name: column.to(device) for name, column in self.columns.items()},
        )

    def select(self, indices: Tensor | Sequence[int] | slice) -> Sequences:
        """Some rows, by index, boolean mask or slice, in the order given."""
        index: Any = indices
        if not isinstance(indices, (slice, Tensor)):
            index = torch.as_tensor(list(indices), dtype=torch.long, device=self.device)
        return Sequences(
            self.input_ids[index],
            self.attention_mask[index],
            self.response_mask[index],
            {name: column[index] for name, column in self.columns.items()},
        )

    def with_columns(self, **columns: Tensor) -> Sequences:
        """The same with columns added or replaced."""
        return replace(self, columns={**self.columns, **columns})

    def without_columns(self, *names: str) -> Sequences:
        """The same without some columns; absent names are ignored."""
        return replace(self, columns={name: c for name, c in self.columns.items() if name not in names})

    def pad_to(self, length: int, *, pad_id: int = 0) -> Sequences:
        """The same with padding added on the right, up to ``length`` tokens a row.

        Raises
        ------
        InputError
            If the rows are longer than that; :meth:`trim` removes padding.
        """
        more = length - self.input_ids.shape[1]
        if more < 0:
            raise InputError(f"can't pad rows of {self.input_ids.shape[1]} tokens to {length}: trim() first")
        return self._resized(lambda tensor, fill: F.pad(tensor, (0, more), value=fill), pad_id)

    def trim(self) -> Sequences:
        """The same without the columns that are padding in every row."""
        length = int(self.lengths.max()) if len(self) else 0
        return self._resized(lambda tensor, _: tensor[:, :length], 0)

    @staticmethod
    def cat(parts: Iterable[Sequences], *, pad_id: int = 0) -> Sequences:
        """Rows of several batches one after the other, padded to the longest.

        Raises
        ------
        InputError
            If there are no parts, or their columns differ.
        """
        batches = list(parts)
        if not batches:
            raise InputError("nothing to concatenate: give at least one Sequences")
        names = set(batches[0].columns)
        for number, batch in enumerate(batches):
            if set(batch.columns) != names:
                raise InputError(
                    f"batch {number} has columns {sorted(batch.columns)}, the first has {sorted(names)}: "
                    f"make them equal with with_columns or without_columns"
                )
        length = max(batch.input_ids.shape[1] for batch in batches)
        padded = [batch.pad_to(length, pad_id=pad_id) for batch in batches]
        return Sequences(
            torch.cat([batch.input_ids for batch in padded]),
            torch.cat([batch.attention_mask for batch in padded]),
            torch.cat([batch.response_mask for batch in padded]),
            {name: torch.cat([batch.columns[name] for batch in padded]) for name in batches[0].columns},
        )

    def texts(self, tokenizer: Any, *, keep_special: bool = False) -> list[str]:
        """The responses as text, without special tokens unless asked for."""
        return [
            tokenizer.decode(ids[mask].tolist(), skip_special_tokens=not keep_special)
            for ids, mask in zip(self.input_ids, self.response_mask, strict=True)
        ]

    def _resized(self, change: Any, pad_id: int) -> Sequences:
        shape = self.input_ids.shape
        return Sequences(
            change(self.input_ids, pad_id),
            change(self.attention_mask, False),
            change(self.response_mask, False),
            {name: change(c, 0) if c.shape == shape else c for name, c in self.columns.items()},
        )


def from_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
    *,
    pad_id: int = 0,
    row_columns: Mapping[str, Sequence[float]] | None = None,
    token_columns: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Sequences:
    """Build sequences from lists.

    Parameters
    ----------
    rows
        Of each row, its token ids and where the model spoke.
    pad_id
        What to fill the padding with.
    row_columns
        Per column one number (or bool) for each row; integers stay integers.
    token_columns
        Per column, of each row one float for every **response** token.
    """
    time = max((len(ids) for ids, _ in rows), default=0)
    input_ids = torch.full((len(rows), time), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), time), dtype=torch.bool)
    response_mask = torch.zeros_like(attention_mask)
    for number, (ids, spoken) in enumerate(rows):
        input_ids[number, : len(ids)] = torch.tensor(list(ids), dtype=torch.long)
        attention_mask[number, : len(ids)] = True
        response_mask[number, : len(ids)] = torch.tensor(list(spoken), dtype=torch.bool)
    columns = {name: torch.tensor(list(values)) for name, values in (row_columns or {}).items()}
    for name, lists in (token_columns or {}).items():
        column = torch.zeros((len(rows), time))
        column[response_mask] = torch.tensor([value for values in lists for value in values], dtype=torch.float32)
        columns[name] = column
    return Sequences(input_ids, attention_mask, response_mask, columns)
