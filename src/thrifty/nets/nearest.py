"""The most similar of many feature vectors by cosine, a chunk at a time, so that a million of them fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError

CHUNK = 65_536


def unit_rows(features: Any, name: str, first: int = 0) -> Float[Tensor, "N D"]:
    """Feature vectors scaled to length one.

    Parameters
    ----------
    features
        ``[N, D]``, NumPy or torch; floats stay of their kind, other numbers become float32.
    name
        What errors call them.
    first
        The number of the first row.

    Raises
    ------
    InputError
        When they are no matrix, or a row holds NaN or infinity or is all zero, which has no direction: it is named.
    """
    x = features.detach() if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
    if x.ndim != 2 or not x.shape[1]:
        raise InputError(f"{name} features must be [N, D], not {list(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    norms = torch.linalg.vector_norm(x, dim=1)
    bad = ~torch.isfinite(norms) | (norms == 0)
    if bad.any():
        row = int(bad.nonzero()[0])
        what = "is all zero: it has no direction" if norms[row] == 0 else "holds NaN or infinity"
        raise InputError(f"{name} feature row {first + row} {what} ({int(bad.sum())} such rows); leave it out")
    return x / norms[:, None]


def most_similar(
    queries: Float[Tensor, "K D"], pool: Any, count: int, *, chunk: int = CHUNK
) -> tuple[Float[Tensor, "K M"], Int[Tensor, "K M"]]:
    """For each query the ``M = min(count, N)`` rows of the pool with the largest cosine, the largest first.

    Of equal ones the first comes first, however the pool is cut into chunks.

    Parameters
    ----------
    queries
        Vectors of length one.
    pool
        ``[N, D]``: an array (also one mapped from a file) or a tensor of any length.
    count
        How many for each query.
    chunk
        Rows of the pool at a time.

    Returns
    -------
    similarities, indices
        On the queries' device.
    """
    values = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start, end in _growing(len(pool), min(4 * count, chunk), chunk):
        part = unit_rows(pool[start:end], "pool", start).to(queries)
        if part.shape[1] != queries.shape[1]:
            raise InputError(f"the pool has {part.shape[1]} features, the target {queries.shape[1]}: use one encoder")
        found = queries @ part.T
        columns = torch.arange(end - start, device=queries.device)
        if values.shape[1] == count:
            # Later rows lose ties, so only what is larger than the last of a list can enter it.
            columns = (found > values[:, -1:]).any(0).nonzero()[:, 0]
            found = found[:, columns]
        values = torch.cat([values, found], 1)
        indices = torch.cat([indices, (start + columns).expand(len(queries), -1)], 1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        values, indices = values[:, :count], indices.gather(1, order[:, :count])
    return values, indices


class SimilarityLists:
    """For each query the pool by falling cosine, as far as it was asked for.

    Parameters
    ----------
    queries, pool, chunk
        As for :func:`most_similar`.
    length
        How many of each are looked for at first; four times as many whenever they are used up.
    """

    def __init__(self, queries: Float[Tensor, "K D"], pool: Any, chunk: int = CHUNK, length: int = 128) -> None:
        self.queries, self.pool, self.chunk = queries, pool, chunk
        self.grow(length)

    def grow(self, length: int) -> None:
        """Looks for so many of each; the pool is gone through again."""
        found = most_similar(self.queries, self.pool, min(length, len(self.pool)), chunk=self.chunk)
        self.values, self.indices = (part.cpu() for part in found)

    def at(self, place: Int[Tensor, " K"]) -> tuple[Float[Tensor, " K"], Int[Tensor, " K"]]:
        """The cosine and the index at a place of each list."""
        while int(place.max()) >= self.values.shape[1]:
            self.grow(4 * self.values.shape[1])
        return self.values.gather(1, place[:, None])[:, 0], self.indices.gather(1, place[:, None])[:, 0]


def _growing(rows: int, first: int, most: int) -> Iterator[tuple[int, int]]:
    """Chunks that start small: the first is sorted whole, the others hardly."""
    start, size = 0, max(first, 1)
    while start < rows:
        end = min(start + size, rows)
        yield start, end
        start, size = end, min(2 * size, max(most, 1))
