"""Operations that move, cut, join or repeat numbers: what each does to the dimensions of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from thrifty.shrink.graph.axes import Axis, concatenation, freeze, mark_nonzero, part, product, regroup, unify
from thrifty.shrink.graph.pointwise import aten, unknown, whole
from thrifty.shrink.graph.recorder import Recorder, Rule
from thrifty.shrink.graph.traced import Origin, Traced

TORN = "a reshape or slice in {} tears its channels apart"


def same(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """The result is the argument."""
    outs[0].set(args[0].axes, args[0].zero, args[0].origin)


def filled(zeros: bool) -> Rule:
    """A tensor of the argument's shape with values of its own."""

    def rule(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
        outs[0].set(args[0].axes, [zeros] * outs[0].elem.ndim)

    return rule


def view(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """A reshape: dimensions are split and merged, row by row."""
    x, out = args[0], outs[0]
    old, new = list(x.elem.shape), list(out.elem.shape)
    if old == new:
        return same(recorder, func, args, kwargs, outs)
    axes = regroup(x.axes, new) if 0 not in new else None
    if axes is None:
        return whole(TORN.format(recorder.where()), [x], outs)
    zero, origin = [False] * len(new), _moved_origin(x, new)
    for sources, targets in _blocks(old, new):
        if any(x.zero[i] for i in sources):
            for i in sources:
                if not x.zero[i]:
                    mark_nonzero(x.axes[i], f"{recorder.where()} merges it with other channels")
            for j in targets:
                zero[j] = True
    out.set(axes, zero, origin)
    for size, axis in zip(new, axes, strict=True):
        recorder.use(size, axis)
    return None


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions of one shape hold the same numbers as which of the other."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        sources: list[int] = []
        targets: list[int] = []
        a = b = 1
        while a != b or not (sources and targets):
            if (a <= b and i < len(old)) or j >= len(new):
                if i >= len(old):
                    break
                sources.append(i)
                a, i = a * old[i], i + 1
            else:
                targets.append(j)
                b, j = b * new[j], j + 1
        blocks.append((sources, targets))
    return blocks


def _moved_origin(x: Traced, new: Sequence[int]) -> list[Origin | None]:
    """Dimensions stay what they are where only ones came or went."""
    kept = [i for i, n in enumerate(x.elem.shape) if n != 1]
    if [n for n in x.elem.shape if n != 1] != [n for n in new if n != 1]:
        return [None] * len(new)
    left = iter(kept)
    return [x.origin[next(left)] if n != 1 else None for n in new]


def _reorder(out: Traced, x: Traced, order: Sequence[int]) -> None:
    out.set([x.axes[i] for i in order], [x.zero[i] for i in order], [x.origin[i] for i in order])


def permute(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Dimensions in another order."""
    _reorder(outs[0], args[0], [int(i) % args[0].elem.ndim for i in args[1]])


def transpose(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Two dimensions swapped; the last two where none are given."""
    ndim = args[0].elem.ndim
    order = list(range(ndim))
    if ndim > 1:
        a, b = (int(i) % ndim for i in (args[1:3] if len(args) > 2 else (-2, -1)))
        order[a], order[b] = order[b], order[a]
    _reorder(outs[0], args[0], order)


def expand(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Dimensions of one are repeated."""
    x, out = args[0], outs[0]
    offset = out.elem.ndim - x.elem.ndim
    axes, zero, origin = [], [], []
    for j, size in enumerate(out.elem.shape):
        i = j - offset
        if i >= 0 and x.elem.shape[i] == size:
            axes.append(x.axes[i])
            zero.append(x.zero[i])
            origin.append(x.origin[i])
        else:
            axes.append(Axis(size))
            zero.append(False)
            origin.append(None)
        recorder.use(size, axes[-1])
    out.set(axes, zero, origin)


def repeat(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """All of a tensor several times along dimensions."""
    x, out = args[0], outs[0]
    offset = out.elem.ndim - x.elem.ndim
    axes = []
    for j, times in enumerate(args[1]):
        axis = x.axes[j - offset] if j >= offset else Axis(1)
        axes.append(axis if times == 1 else product([Axis(times), axis]))
    out.set(axes, [False] * offset + x.zero)
    for value in x.axes:
        mark_nonzero(value, f"{recorder.where()} repeats it")


def cat(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Tensors one after another."""
    parts = [value for value in args[0] if value.elem.shape != (0,)] or list(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].elem.ndim
    axes = list(parts[0].axes)
    for value in parts[1:]:
        for i, axis in enumerate(value.axes):
            if i != dim:
                unify(axes[i], axis)
    axes[dim] = concatenation([value.axes[dim] for value in parts])
    outs[0].set(axes, [all(value.zero[i] for value in parts) for i in range(len(axes))])


def stack(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Tensors side by side along a new dimension."""
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].elem.ndim
    axes = list(args[0][0].axes)
    for value in args[0][1:]:
        for a, b in zip(axes, value.axes, strict=True):
            unify(a, b)
    zero = [all(value.zero[i] for value in args[0]) for i in range(len(axes))]
    axes.insert(dim, Axis(len(args[0]), "it counts stacked tensors"))
    outs[0].set(axes, [*zero[:dim], False, *zero[dim:]])


def _piece(recorder: Recorder, x: Traced, out: Traced, dim: int, start: int) -> None:
    stop = start + out.elem.shape[dim]
    axis = part(x.axes[dim], start, stop)
    if axis is None:
        why = TORN.format(recorder.where())
        freeze(x.axes[dim], why)
        axis = Axis(stop - start, why)
    axes = list(x.axes)
    axes[dim] = axis
    origin = list(x.origin)
    if stop - start != x.elem.shape[dim]:
        origin[dim] = None
    out.set(axes, x.zero, origin)


def split(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """A dimension cut into pieces; pieces of one size are cut alike, as the code would cut them by that size."""
    x, sizes = args[0], args[1]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.elem.ndim
    start = 0
    for out in outs:
        _piece(recorder, x, out, dim, start)
        start += out.elem.shape[dim]
    even = not isinstance(sizes, list | tuple)
    for out in outs:
        if even and out is not outs[0] and out.elem.shape[dim] == outs[0].elem.shape[dim]:
            unify(outs[0].axes[dim], out.axes[dim])
    for out in outs if not even else outs[:1]:
        recorder.use(out.elem.shape[dim], out.axes[dim])


def slice_(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """From one index to another."""
    x, dim, start, _, step = (*args, *(0, 0, None, 1)[len(args) - 1 :])[:5]
    dim %= x.elem.ndim
    size = x.elem.shape[dim]
    if step != 1:
        return _picked(recorder, x, outs[0], dim)
    start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    _piece(recorder, x, outs[0], dim, start)
    if outs[0].elem.shape[dim] < size:
        recorder.use(outs[0].elem.shape[dim], outs[0].axes[dim])
        recorder.use(start, part(x.axes[dim], 0, start) or Axis(start))
    return None


def _picked(recorder: Recorder, x: Traced, out: Traced, dim: int) -> None:
    """A dimension of which some entries are taken by their numbers."""
    why = f"{recorder.where()} picks entries of it by number"
    freeze(x.axes[dim], why)
    axes, zero, origin = list(x.axes), list(x.zero), list(x.origin)
    axes[dim], zero[dim], origin[dim] = Axis(out.elem.shape[dim], why), False, None
    out.set(axes, zero, origin)


def select(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """One or each entry of a dimension, which goes."""
    x, dim = args[0], (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % args[0].elem.ndim
    freeze(x.axes[dim], f"{recorder.where()} picks entries of it by number")
    left = [i for i in range(x.elem.ndim) if i != dim]
    for out in outs:
        _reorder(out, x, left)


def index_select(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Entries along one dimension."""
    _picked(recorder, args[0], outs[0], args[1] % args[0].elem.ndim)


def index(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """Entries by tensors of numbers."""
    x, indices, out = args[0], args[1], outs[0]
    at = [i for i, value in enumerate(indices) if value is not None]
    if not at or any(indices[i].dtype is torch.bool for i in at):
        return unknown(recorder, func, args, kwargs, outs)
    why = f"{recorder.where()} picks entries of it by number"
    for i in at:
        freeze(x.axes[i], why)
    width = max(indices[i].elem.ndim for i in at)
    together = at == list(range(at[0], at[-1] + 1))
    kept = [i for i in range(x.elem.ndim) if i not in at]
    before = [i for i in kept if i < at[0]] if together else []
    after = [i for i in kept if i not in before]
    new = [Axis(n, why) for n in out.elem.shape[len(before) : len(before) + width]]
    out.set(
        [x.axes[i] for i in before] + new + [x.axes[i] for i in after],
        [x.zero[i] for i in before] + [False] * width + [x.zero[i] for i in after],
    )
    return None


LAYOUT: dict[Any, Rule] = {
    **dict.fromkeys([aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.unsqueeze], view),
    **dict.fromkeys([aten.squeeze, aten.flatten, aten.unflatten, aten.view_copy], view),
    **dict.fromkeys([aten.detach, aten.alias, aten.lift_fresh, aten.clone, aten._to_copy, aten.contiguous], same),
    **dict.fromkeys([aten.empty_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like], filled(False)),
    aten.fill_: filled(False),
    **dict.fromkeys([aten.zeros_like, aten.zero_], filled(True)),
    aten.permute: permute,
    **dict.fromkeys([aten.transpose, aten.t, aten.numpy_T, aten.swapaxes], transpose),
    aten.expand: expand,
    aten.repeat: repeat,
    aten.cat: cat,
    aten.stack: stack,
    **dict.fromkeys([aten.split, aten.split_with_sizes, aten.unsafe_split, aten.chunk], split),
    aten.slice: slice_,
    **dict.fromkeys([aten.select, aten.unbind], select),
    aten.index_select: index_select,
    aten.index: index,
}
