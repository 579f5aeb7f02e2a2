"""Operations along dimensions of space, or along any dimension whose entries they mix: pooling, padding, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.shrink.graph.axes import Axis, concatenation, freeze
from thrifty.shrink.graph.pointwise import aten, fresh
from thrifty.shrink.graph.recorder import Recorder, Rule
from thrifty.shrink.graph.traced import Traced

SPACE = "it is a dimension of space"


def pad(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """Numbers put before and after."""
    x, widths, out = args[0], args[1], outs[0]
    value = args[2] if len(args) > 2 else 0
    axes, zero = list(x.axes), list(x.zero)
    for k in range(len(widths) // 2):
        i, (before, after) = x.elem.ndim - 1 - k, widths[2 * k : 2 * k + 2]
        if before < 0 or after < 0:
            freeze(axes[i], SPACE)
            axes[i] = Axis(out.elem.shape[i], SPACE)
        elif before or after:
            axes[i] = concatenation([Axis(before, "it is padding"), axes[i], Axis(after, "it is padding")])
            zero[i] = zero[i] and value == 0
    out.set(axes, zero)


def spatial(count: int | None) -> Rule:
    """Dimensions of space change, the last ``count`` of them or all from the third on; channels stay."""

    def rule(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
        x = args[0]
        first = x.elem.ndim - count if count is not None else 2
        for axis in x.axes[first:]:
            freeze(axis, SPACE)
        for out in outs:
            if out.elem.ndim != x.elem.ndim:
                fresh(out, SPACE)
                continue
            out.set(
                x.axes[:first] + [Axis(n, SPACE) for n in out.elem.shape[first:]],
                x.zero[:first] + [False] * (out.elem.ndim - first),
            )

    return rule


def along(recorder: Recorder, func: Any, args: Any, kwargs: Any, outs: Sequence[Traced]) -> None:  # noqa: ARG001
    """What mixes or orders the entries of some dimensions; these stay whole, the shape stays."""
    x = args[0]
    dims = args[2] if func.overloadpacket is aten.roll and len(args) > 2 else args[1] if len(args) > 1 else -1
    why = f"{str(func.overloadpacket).removeprefix('aten.').strip('_')} in {recorder.where()} runs along it"
    moved = [int(d) % x.elem.ndim for d in (dims if isinstance(dims, list | tuple) else [dims])]
    for i in moved or range(x.elem.ndim):
        freeze(x.axes[i], why)
    keeps = func.overloadpacket in (aten.roll, aten.flip, aten.cumsum, aten.sort)
    for out in outs:
        if out.elem.shape == x.elem.shape:
            out.set(x.axes, [zero and keeps for zero in x.zero])
        else:  # top-k
            axes = [
                Axis(n, why) if i in moved else a for i, (a, n) in enumerate(zip(x.axes, out.elem.shape, strict=True))
            ]
            out.set(axes, [False] * len(axes))


SPATIAL: dict[Any, Rule] = {
    aten.constant_pad_nd: pad,
    **dict.fromkeys([aten.reflection_pad1d, aten.replication_pad1d], spatial(1)),
    **dict.fromkeys([aten.reflection_pad2d, aten.replication_pad2d], spatial(2)),
    **dict.fromkeys([aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d], spatial(2)),
    **dict.fromkeys([aten.adaptive_max_pool2d, aten.adaptive_avg_pool2d, aten.max_pool2d], spatial(2)),
    **dict.fromkeys([aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.max_pool1d], spatial(1)),
    **dict.fromkeys([aten.max_pool3d_with_indices, aten.avg_pool3d, aten._adaptive_avg_pool3d], spatial(3)),
    **dict.fromkeys([aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_bilinear2d], spatial(None)),
    **dict.fromkeys([aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten.upsample_linear1d], spatial(None)),
    **dict.fromkeys([aten.upsample_nearest3d, aten.upsample_trilinear3d], spatial(None)),
    aten._upsample_nearest_exact2d: spatial(None),
    **dict.fromkeys([aten.roll, aten.flip, aten.cumsum, aten.cumprod, aten.sort, aten.topk], along),
    **dict.fromkeys([aten._softmax, aten._log_softmax, aten._safe_softmax], along),
}
