"""What a dimension of a tensor is made of, so that channels can be followed through any layout of numbers.

An :class:`Axis` has a size and is a leaf, a product or a sum of smaller axes. A reshape that splits 768 channels
into 12 heads of 64 makes the axis a product; a concatenation, a slice or a split makes it a sum. Two dimensions that
must be cut alike (both sides of an addition, what a matrix product contracts) are made one by :func:`unify`, which
refines both until their parts correspond. The leaves that remain are what can be cut, and whatever is cut from
them leaves every tensor rectangular: a grouped convolution loses whole groups or the same channel of each group,
attention loses whole heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

CLASH = "its channels are laid out in two ways that no cut fits"


class Axis:
    """A dimension's channels: a leaf, or made of others. Compare axes after :func:`find`.

    Parameters
    ----------
    size
        How many there are.
    why
        Why it must stay whole; ``None`` while nothing says so.
    """

    __slots__ = ("kind", "leads_to", "nonzero", "parts", "size", "why")

    def __init__(self, size: int, why: str | None = None) -> None:
        self.size = size
        self.kind: Literal["leaf", "product", "sum"] = "leaf"
        self.parts: list[Axis] = []
        self.why = "there is only one" if why is None and size == 1 else why
        # Where a removed unit's values matter although its producers are zero, and why.
        self.nonzero: str | None = None
        self.leads_to: Axis | None = None

    def become(self, kind: Literal["product", "sum"], parts: list[Axis]) -> None:
        """Makes a leaf an axis with parts; what held for it holds for them."""
        self.kind, self.parts = kind, parts
        if self.why is not None:
            freeze(self, self.why)
        if self.nonzero is not None:
            mark_nonzero(self, self.nonzero)


def find(axis: Axis) -> Axis:
    """The axis that this one was made one with."""
    while axis.leads_to is not None:
        if axis.leads_to.leads_to is not None:
            axis.leads_to = axis.leads_to.leads_to
        axis = axis.leads_to
    return axis


def leaves(axis: Axis) -> Iterator[Axis]:
    """All leaves, from left to right; one that occurs twice comes twice."""
    axis = find(axis)
    if axis.kind == "leaf":
        yield axis
    else:
        for part in axis.parts:
            yield from leaves(part)


def freeze(axis: Axis, why: str) -> None:
    """Says that an axis must stay whole; the first reason stays."""
    for leaf in leaves(axis):
        if leaf.why is None:
            leaf.why = why


def mark_nonzero(axis: Axis, why: str) -> None:
    """Says that zeroing the producers of a unit of this axis does not make it irrelevant."""
    for leaf in leaves(axis):
        if leaf.nonzero is None:
            leaf.nonzero = why


def factors(axis: Axis) -> list[Axis]:
    """What an axis is the product of, outermost first, without factors of one."""
    axis = find(axis)
    if axis.kind == "product":
        return [factor for part in axis.parts for factor in factors(part)]
    return [axis] if axis.size > 1 else []


def segments(axis: Axis) -> list[Axis]:
    """What an axis is the concatenation of."""
    axis = find(axis)
    return [piece for part in axis.parts for piece in segments(part)] if axis.kind == "sum" else [axis]


def product(axes: Sequence[Axis]) -> Axis:
    """The axis whose index runs over those of several, the last one fastest."""
    parts = [factor for axis in axes for factor in factors(axis)]
    if len(parts) < 2:
        return parts[0] if parts else Axis(1)
    made = Axis(prod(part.size for part in parts))
    made.kind, made.parts = "product", parts
    return made


def concatenation(axes: Sequence[Axis]) -> Axis:
    """The axis that consists of several, one after another."""
    parts = [axis for axis in axes if axis.size]
    if len(parts) < 2:
        return find(parts[0]) if parts else Axis(0, "it is empty")
    made = Axis(sum(part.size for part in parts))
    made.kind, made.parts = "sum", parts
    return made


def unify(one: Axis, other: Axis) -> None:
    """Makes two axes of the same size one: what is cut from one is cut from the other."""
    one, other = find(one), find(other)
    if one is other:
        return
    if one.kind == "leaf":
        one, other = other, one
    if other.kind == "leaf":
        other.leads_to = one
        if other.why is not None:
            freeze(one, other.why)
        if other.nonzero is not None:
            mark_nonzero(one, other.nonzero)
        return
    if one.kind == other.kind == "product":
        fits = _unify_factors(factors(one), factors(other))
    elif one.kind == other.kind == "sum":
        fits = _unify_segments(one, other)
    else:
        made, concatenated = (one, other) if one.kind == "product" else (other, one)
        inner = factors(made)[1:]
        fits = split(concatenated, made.size // prod(f.size for f in inner)) is not None
        fits = fits and _unify_factors(factors(concatenated), factors(made))
        one, other = made, concatenated
    if fits:
        # Parts that were unified may have led back here; an axis must never lead to itself.
        one, other = find(one), find(other)
        if one is not other:
            other.leads_to = one
    else:
        freeze(one, CLASH)
        freeze(other, CLASH)


def _unify_factors(ours: list[Axis], theirs: list[Axis]) -> bool:
    ours, theirs = list(ours), list(theirs)
    while ours and theirs:
        a, b = find(ours.pop(0)), find(theirs.pop(0))
        if a.size == b.size:
            unify(a, b)
            continue
        if a.size < b.size:
            a, b, ours, theirs = b, a, theirs, ours
        pair = split(a, b.size)
        if pair is None:
            return False
        unify(pair[0], b)
        ours.insert(0, pair[1])
    return True


def _unify_segments(one: Axis, other: Axis) -> bool:
    for a, b in ((one, other), (other, one)):
        at = 0
        for piece in segments(b):
            if part(a, at, at + piece.size) is None:
                return False
            at += piece.size
    ours, theirs = segments(one), segments(other)
    if [a.size for a in ours] != [b.size for b in theirs]:
        return False
    for a, b in zip(ours, theirs, strict=True):
        unify(a, b)
    return True


def split(axis: Axis, outer: int) -> tuple[Axis, Axis] | None:
    """An axis as a product whose first factor has that size; ``None`` where its parts do not allow it."""
    axis = find(axis)
    if axis.size % outer:
        return None
    inner = axis.size // outer
    if outer == 1:
        return Axis(1), axis
    if inner == 1:
        return axis, Axis(1)
    if axis.kind == "leaf":
        pair = (Axis(outer, axis.why), Axis(inner, axis.why))
        axis.become("product", list(pair))
        return pair
    if axis.kind == "product":
        found = regroup([axis], [outer, inner])
        return None if found is None else (found[0], found[1])
    return _split_sum(axis, outer, inner)


def _split_sum(axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis] | None:
    pieces = segments(axis)
    if all(piece.size % inner == 0 for piece in pieces):
        pairs = [split(piece, piece.size // inner) for piece in pieces]
        outers = [pair[0] for pair in pairs if pair is not None]
        inners = [pair[1] for pair in pairs if pair is not None]
        if len(inners) < len(pieces):
            return None
        rows = concatenation(outers)
    else:
        # Several pieces to a row: all rows have to be cut alike, and none can go.
        parts = [part(axis, i * inner, (i + 1) * inner) for i in range(outer)]
        inners = [piece for piece in parts if piece is not None]
        if len(inners) < outer:
            return None
        rows = Axis(outer, "it counts rows that are cut alike")
    for other in inners[1:]:
        unify(inners[0], other)
    axis.kind, axis.parts = "product", [rows, find(inners[0])]
    return rows, find(inners[0])


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
    """The axes of a tensor after a reshape to ``sizes``; ``None`` where channels would be torn apart."""
    left = [factor for axis in axes for factor in factors(axis)]
    made: list[Axis] = []
    for size in sizes:
        taken, have = [], 1
        while have < size:
            if not left or size % have:
                return None
            axis, need = left.pop(0), size // have
            if axis.size > need:
                pair = split(axis, need)
                if pair is None:
                    return None
                # A split may leave a product on either side.
                left[:0] = factors(pair[1])
                taken += factors(pair[0])
                have = size
            else:
                taken.append(axis)
                have *= axis.size
        if have != size:
            return None
        made.append(product(taken))
    return None if left else made


def part(axis: Axis, start: int, stop: int) -> Axis | None:
    """The axis of a slice; ``None`` where the slice tears channels apart."""
    axis = find(axis)
    if (start, stop) == (0, axis.size):
        return axis
    if start >= stop:
        return Axis(0, "it is empty")
    if axis.kind == "product":
        outer, *rest = factors(axis)
        inner = prod(factor.size for factor in rest)
        if start % inner or stop % inner:
            return None
        piece = part(outer, start // inner, stop // inner)
        return None if piece is None else product([piece, *rest])
    if axis.kind == "leaf":
        bounds = sorted({0, start, stop, axis.size})
        pieces = [Axis(b - a, axis.why) for a, b in pairwise(bounds)]
        axis.become("sum", pieces)
        return pieces[bounds.index(start)]
    found, at = [], 0
    for segment in segments(axis):
        low, high = max(start - at, 0), min(stop - at, segment.size)
        if low < high:
            piece = part(segment, low, high)
            if piece is None:
                return None
            found.append(piece)
        at += segment.size
    return concatenation(found)
