"""Sums, products and norms: which channels an operation reads, makes, and ties together."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from thrifty.shrink.graph.axes import Axis, freeze, mark_nonzero, product, unify
from thrifty.shrink.graph.axes import split as split_axis
from thrifty.shrink.graph.layout import LAYOUT
from thrifty.shrink.graph.pointwise import POINTWISE, STATISTIC, aten, broadcast, fresh, pointwise, unknown
from thrifty.shrink.graph.recorder import Recorder, Rule
from thrifty.shrink.graph.space import SPACE, SPATIAL
from thrifty.shrink.graph.traced import Traced


def matmul(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Products of matrices, of batches of them, and with a bias added."""
    biased = func.overloadpacket in (aten.addmm, aten.baddbmm)
    a, b = args[1:3] if biased else args[:2]
    out, n = outs[0], args[1 if biased else 0].elem.ndim
    recorder.contract(a, n - 1, b, n - 2)
    if n == 3:
        unify(a.axes[0], b.axes[0])
    axes = [*a.axes[:-1], b.axes[-1]]
    zero = [*([a.zero[0] or b.zero[0]] if n == 3 else []), a.zero[-2], b.zero[-1]]
    out.set(axes, zero)
    recorder.count(2, [*axes, a.axes[-1]])
    if biased:
        _add(recorder, args[0], out)


def matvec(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """A matrix times a vector, or two vectors."""
    a, b = args[:2]
    recorder.contract(a, a.elem.ndim - 1, b, 0)
    outs[0].set(a.axes[:-1], a.zero[:-1])
    recorder.count(2, list(a.axes))


def linear(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """The product with a transposed matrix, where it is one operation."""
    x, w = args[:2]
    recorder.contract(x, x.elem.ndim - 1, w, 1)
    outs[0].set([*x.axes[:-1], w.axes[0]], [*x.zero[:-1], w.zero[0]])
    recorder.count(2, [*x.axes, w.axes[0]])
    if len(args) > 2 and args[2] is not None:
        _add(recorder, args[2], outs[0])


def _add(recorder: Recorder, bias: Traced, out: Traced) -> None:
    axes, zero, _ = broadcast([out, bias], out, all)
    out.set(axes, zero)
    recorder.produced.update(origin for origin in bias.origin if origin is not None)


def convolution(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """Convolutions of all kinds: plain, grouped, depthwise, transposed."""
    x, w, bias, *_, transposed, _, groups = args[:9]
    out = outs[0]
    made, read = (1, 0) if transposed else (0, 1)
    for axis in [*x.axes[2:], *w.axes[2:]]:
        freeze(axis, SPACE)
    zero_made = w.zero[made]
    if groups == 1:
        recorder.contract(x, 1, w, read)
        channels = w.axes[made]
        reads = w.axes[read]
    else:
        pair = split_axis(x.axes[1], groups)
        outer = split_axis(w.axes[0], groups)
        if pair is None or outer is None:
            unknown(recorder, func, args, kwargs, outs)
            return
        unify(pair[0], outer[0])
        inner = outer[1] if transposed else w.axes[1]
        unify(pair[1], inner)
        if not transposed and w.origin[read] is not None:
            recorder.consumed.add(w.origin[read])
        if not x.zero[1]:
            mark_nonzero(pair[1], f"{recorder.where()} reads it where it is not zero")
        recorder.use(groups, pair[0])
        reads = inner
        channels = product([pair[0], w.axes[1]]) if transposed else w.axes[0]
    space = [Axis(n, SPACE) for n in out.elem.shape[2:]]
    out.set([x.axes[0], channels, *space], [False, zero_made] + [False] * len(space))
    kernel = prod(w.elem.shape[2:])
    positions = x.axes[2:] if transposed else space
    recorder.count(2 * kernel, [x.axes[0], channels, reads, *positions])
    if bias is not None:
        unify(channels, bias.axes[0])
        out.zero[1] = zero_made and bias.zero[0]


def embedding(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Rows of a table."""
    table, ids = args[:2]
    freeze(table.axes[0], "its rows are picked by number")
    outs[0].set([*ids.axes, *table.axes[1:]], [False] * len(ids.axes) + table.zero[1:])
    recorder.produced.update(origin for origin in table.origin[1:] if origin is not None)


def batch_norm(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Each channel shifted and scaled by numbers of its own."""
    x, *given = args[:5]
    vectors = [value for value in given if type(value) is Traced]
    for value in vectors:
        unify(x.axes[1], value.axes[0])
    scale, shift = (value if type(value) is Traced else None for value in given[:2])
    zero = list(x.zero)
    zero[1] = scale is not None and scale.zero[0] and shift is not None and shift.zero[0]
    outs[0].set(x.axes, [False if i != 1 else flag for i, flag in enumerate(zero)])
    for out in outs[1:]:
        fresh(out, STATISTIC)


def layer_norm(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """The last dimensions get mean 0 and deviation 1, which counts all of their channels."""
    x, shape = args[:2]
    why = f"{recorder.where()} takes mean and deviation over it, which a cut would change"
    first = x.elem.ndim - len(shape)
    vectors = [value for value in args[2:4] if type(value) is Traced]
    for axis in x.axes[first:]:
        freeze(axis, why)
    for value in vectors:
        for a, b in zip(x.axes[first:], value.axes, strict=True):
            unify(a, b)
    shifted = len(args) > 3 and args[3] is not None
    outs[0].set(x.axes, [zero and not shifted for zero in x.zero[:first]] + [False] * len(shape))
    for out in outs[1:]:
        fresh(out, STATISTIC)


def group_norm(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """Groups of channels get mean 0 and deviation 1: a group goes whole or stays whole."""
    x, scale, shift, _, _, _, groups = args[:7]
    pair = split_axis(x.axes[1], groups)
    if pair is None:
        unknown(recorder, func, args, kwargs, outs)
        return
    freeze(pair[1], f"{recorder.where()} takes mean and deviation over it, which a cut would change")
    recorder.use(groups, pair[0])
    for value in (scale, shift):
        if value is not None:
            unify(x.axes[1], value.axes[0])
    affine = scale is not None and shift is not None
    zero = scale.zero[0] and shift.zero[0] if affine else x.zero[1] and shift is None
    outs[0].set(x.axes, [False, zero] + [False] * (x.elem.ndim - 2))
    for out in outs[1:]:
        fresh(out, STATISTIC)


def attention(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """Scaled dot-product attention: queries [.., H, T, D], keys [.., K, S, D], values [.., K, S, E]."""
    q, k, v = args[:3]
    out = outs[0]
    heads, keys = q.elem.shape[1], k.elem.shape[1]
    repeated: Axis | None = None
    if heads == keys:
        unify(q.axes[1], k.axes[1])
    else:
        pair = split_axis(q.axes[1], keys)
        if pair is None:
            unknown(recorder, func, args, kwargs, outs)
            return
        unify(pair[0], k.axes[1])
        repeated = pair[1]
        recorder.seen.setdefault(recorder.module, []).append(repeated)
    unify(k.axes[1], v.axes[1])
    recorder.contract(q, 3, k, 3)
    unify(k.axes[2], v.axes[2])
    freeze(k.axes[2], "attention runs along it")
    mask = next((x for x in [*args[3:], *kwargs.values()] if type(x) is Traced), None)
    if mask is not None:
        targets = [q.axes[0], q.axes[1], q.axes[2], k.axes[2]][-mask.elem.ndim :]
        for i, axis in enumerate(targets):
            if mask.elem.shape[i] != 1:
                unify(axis, mask.axes[i])
    if repeated is not None:
        mark_nonzero(repeated, f"{recorder.where()} shares values among heads")
    out.set([q.axes[0], q.axes[1], q.axes[2], v.axes[3]], [False, v.zero[1], False, v.zero[3]])
    for extra in outs[1:]:
        fresh(extra, STATISTIC)
    recorder.count(2, [*q.axes, k.axes[2]])
    recorder.count(2, [*q.axes[:3], k.axes[2], v.axes[3]])


def reduction(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """Sums need the removed channels to be zero; other statistics count all of them."""
    x = args[0]
    dims = kwargs.get("dim")
    if dims is None:
        at = 2 if func.overloadpacket in (aten.linalg_vector_norm, aten.norm) else 1
        dims = args[at] if len(args) > at and not isinstance(args[at], bool) else None
    if dims is None or dims == []:
        gone = list(range(x.elem.ndim))
    else:
        gone = sorted({int(d) % x.elem.ndim for d in (dims if isinstance(dims, list | tuple) else [dims])})
    sums = func.overloadpacket in (aten.sum, aten.linalg_vector_norm, aten.norm)
    for i in gone:
        if not sums:
            freeze(x.axes[i], f"{str(func.overloadpacket).removeprefix('aten.')} in {recorder.where()} runs over it")
        elif not x.zero[i]:
            mark_nonzero(x.axes[i], f"{recorder.where()} sums it where it is not zero")
    keeps = func.overloadpacket not in (aten.argmax, aten.argmin)
    for out in outs:
        kept = out.elem.ndim == x.elem.ndim
        axes, zero = [], []
        for i, axis in enumerate(x.axes):
            if i not in gone:
                axes.append(axis)
                zero.append(x.zero[i] and keeps)
            elif kept:
                axes.append(Axis(1))
                zero.append(False)
        out.set(axes, zero)


def copy_(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:
    """Numbers written into a tensor, or into a part of one, which does not know of it."""
    before, source = args[:2]
    pointwise(recorder, func, (before, source), kwargs, outs)
    for axis, zero in zip(before.axes, outs[0].zero, strict=True):
        if not zero:
            mark_nonzero(axis, f"{recorder.where()} writes into it")


def masked_fill(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Numbers replaced where a condition holds."""
    x, mask, value = args[:3]
    zero_value = not isinstance(value, Traced) and value == 0
    axes, zero, _ = broadcast([x, mask], outs[0], lambda flags: bool(flags[0]) and zero_value)
    outs[0].set(axes, zero)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **LAYOUT,
    **SPATIAL,
    **dict.fromkeys([aten.mm, aten.bmm, aten.addmm, aten.baddbmm], matmul),
    **dict.fromkeys([aten.mv, aten.dot], matvec),
    aten.linear: linear,
    aten.convolution: convolution,
    aten.embedding: embedding,
    **dict.fromkeys([aten.native_batch_norm, aten._native_batch_norm_legit_no_training], batch_norm),
    aten.native_layer_norm: layer_norm,
    aten._fused_rms_norm: layer_norm,
    aten.native_group_norm: group_norm,
    **dict.fromkeys([aten._scaled_dot_product_flash_attention_for_cpu], attention),
    **dict.fromkeys([aten._scaled_dot_product_flash_attention], attention),
    **dict.fromkeys([aten._scaled_dot_product_efficient_attention], attention),
    **dict.fromkeys([aten._scaled_dot_product_cudnn_attention], attention),
    **dict.fromkeys([aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.var_mean], reduction),
    **dict.fromkeys([aten.prod, aten.argmax, aten.argmin, aten.any, aten.all], reduction),
    **dict.fromkeys([aten.linalg_vector_norm, aten.norm, aten.logsumexp], reduction),
    aten.copy_: copy_,
    **dict.fromkeys([aten.masked_fill, aten.masked_fill_], masked_fill),
}
