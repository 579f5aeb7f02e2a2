"""Which examples make up few-shot episodes: ways, shots, and how the queries spread over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import InputError, nearest
from thrifty.core.seeding import derive_seed

Balance = Literal["balanced", "pooled", "dirichlet"]
_KEYS = 1 << 22  # random numbers that are held at once while episodes are drawn


@dataclass(frozen=True)
class Design:
    """What an episode looks like.

    Parameters
    ----------
    ways
        K, the classes with a support in each episode, at least 2; ``None`` for all there are.
    shots
        Support examples of each class.
    queries
        Nq, query examples of an episode, of all classes together.
    present
        K_eff, how many of the K classes the queries come from; ``None`` for all of them.
    balance
        balanced: as many queries of each present class (as evenly as ``queries`` can be divided); pooled: drawn
        uniformly from all examples of the present classes; dirichlet: class shares are drawn anew for each episode from
        a Dirichlet distribution.
    concentration
        Of that distribution: small values make shares uneven (2 in the literature).

    Raises
    ------
    InputError
        When a number is out of range.
    """

    ways: int | None = 5
    shots: int = 1
    queries: int = 75
    present: int | None = None
    balance: Balance = "balanced"
    concentration: float = 2.0

    def __post_init__(self) -> None:
        if self.ways is not None and self.ways < 2:
            raise InputError(f"an episode needs at least 2 ways, not {self.ways}")
        for name in ("shots", "queries"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.present is not None and not 1 <= self.present <= (self.ways or self.present):
            raise InputError(f"present classes must be between 1 and the {self.ways} ways, not {self.present}")
        if self.balance not in get_args(Balance):
            raise InputError(f"balance {self.balance!r} is unknown: {nearest(str(self.balance), get_args(Balance))}")
        if not self.concentration > 0:
            raise InputError(f"the concentration must be above 0, not {self.concentration:g}")


def draw_rows(
    codes: NDArray[np.int64], design: Design, count: int, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which examples make up each episode.

    Parameters
    ----------
    codes
        The class of each example, 0 to C - 1, ``[N]``.
    design, count, seed
        As for :func:`draw_episodes`.

    Returns
    -------
    support
        Rows ``[T, K·shots]``, class by class.
    query
        Rows ``[T, Nq]``, shuffled.
    chosen
        The classes of each episode, ``[T, K]``.
    truth
        Which of them each query belongs to, ``[T, Nq]``.
    """
    sizes = np.bincount(codes)
    ways = len(sizes) if design.ways is None else design.ways
    if ways > len(sizes) or ways < 2:
        raise InputError(f"{ways}-way episodes need as many classes, and at least 2; there are {len(sizes)}")
    present = ways if design.present is None else design.present
    if present > ways:
        raise InputError(f"{present} classes can't be present among {ways}")
    _check_sizes(sizes, design, present)
    table = np.zeros((len(sizes), sizes.max()), dtype=np.int64)
    inside = np.arange(sizes.max()) < sizes[:, None]
    table[inside] = np.argsort(codes, kind="stable")
    random = np.random.default_rng(derive_seed(seed, "episodes"))
    step = max(_KEYS // (ways * table.shape[1]), 1)
    drawn = [
        _draw_part(table, sizes, design, ways, present, min(step, count - start), random)
        for start in range(0, count, step)
    ]
    support, query, chosen, truth = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return support, query, chosen, truth


def _check_sizes(sizes: NDArray[np.int64], design: Design, present: int) -> None:
    """Every class must be able to give the support, and any ``present`` of them the queries."""
    most = -(-design.queries // present) if design.balance == "balanced" else 1
    if sizes.min() < design.shots + most:
        raise InputError(
            f"class number {sizes.argmin()} has {sizes.min()} examples: {design.shots} shots and {most} queries of it "
            f"need {design.shots + most}; give fewer --shots or --queries, or leave small classes out"
        )
    room = np.sort(sizes - design.shots)[:present].sum()
    if room < design.queries:
        raise InputError(
            f"the {present} smallest classes have {room} examples beside their shots: too few for {design.queries} "
            "queries; give fewer --queries, or leave small classes out"
        )


def _draw_part(
    table: NDArray[np.int64],
    sizes: NDArray[np.int64],
    design: Design,
    ways: int,
    present: int,
    count: int,
    random: np.random.Generator,
) -> Sequence[NDArray[np.int64]]:
    chosen = random.random((count, len(sizes))).argsort(1)[:, :ways]
    room = sizes[chosen] - design.shots
    # The classes come in random order, yet the absent ones must not always be the last labels.
    here = random.random((count, ways)).argsort(1) < present
    wanted = _query_counts(room * here, design, random)
    # The smallest keys of a class are a random choice of its examples: first its support, then its queries.
    keys = random.random((count, ways, table.shape[1]))
    keys[np.arange(table.shape[1]) >= sizes[chosen][..., None]] = 2.0
    most = min(design.shots + int(wanted.max()), table.shape[1])
    smallest = np.argpartition(keys, most - 1, axis=2)[..., :most]
    inner = np.take_along_axis(smallest, np.take_along_axis(keys, smallest, 2).argsort(2), 2)
    rows = table[chosen[..., None], inner]
    asked = np.arange(most - design.shots) < wanted[..., None]
    order = np.where(asked, random.random(asked.shape), 2.0).reshape(count, -1).argsort(1)[:, : design.queries]
    query = np.take_along_axis(rows[..., design.shots :].reshape(count, -1), order, 1)
    truth = order // asked.shape[2]
    return rows[..., : design.shots].reshape(count, -1), query, chosen, truth


def _query_counts(room: NDArray[np.int64], design: Design, random: np.random.Generator) -> NDArray[np.int64]:
    """How many queries each class gives, ``[T, K]``; ``room`` says how many it can, 0 for absent ones."""
    here = room > 0
    if design.balance == "pooled":
        return _pooled(room, design.queries, random)
    if design.balance == "dirichlet":
        shares = random.gamma(design.concentration, size=room.shape).clip(min=1e-300) * here
        counts = random.multinomial(design.queries, shares / shares.sum(1, keepdims=True))
    else:
        even, more = np.divmod(design.queries, here.sum(1, keepdims=True))
        first = (np.cumsum(here, 1) - 1 < more) & here
        counts = even * here + first
    over = (counts - room).clip(min=0).sum(1, keepdims=True)
    counts = np.minimum(counts, room)
    # What a class is too small to give, the others give in turn.
    free = room - counts
    before = np.cumsum(free, 1) - free
    return counts + (over - before).clip(min=0).clip(max=free)


def _pooled(room: NDArray[np.int64], queries: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The counts when queries are drawn without replacement from all examples together."""
    counts = np.zeros_like(room)
    left = np.full(len(room), queries)
    for label in range(room.shape[1]):
        later = room[:, label + 1 :].sum(1)
        counts[:, label] = random.hypergeometric(room[:, label], later, left) if label + 1 < room.shape[1] else left
        left = left - counts[:, label]
    return counts
