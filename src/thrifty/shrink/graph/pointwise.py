"""What an operation on each element does to channels, and what becomes of channels that nothing is known of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from thrifty.shrink.graph.axes import Axis, freeze, unify
from thrifty.shrink.graph.recorder import Recorder
from thrifty.shrink.graph.traced import Origin, Traced

aten: Any = torch.ops.aten

# f(0) = 0.
_KEEP_ZERO = {
    getattr(aten, name)
    for name in [
        "relu",
        "gelu",
        "silu",
        "tanh",
        "leaky_relu",
        "prelu",
        "_prelu_kernel",
        "elu",
        "selu",
        "celu",
        "mish",
        "softsign",
        "hardswish",
        "hardshrink",
        "softshrink",
        "sin",
        "tan",
        "asin",
        "asinh",
        "sinh",
        "atan",
        "atanh",
        "erf",
        "expm1",
        "log1p",
        "sqrt",
        "square",
        "abs",
        "neg",
        "sign",
        "sgn",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "nan_to_num",
        "relu6",
        "rrelu_with_noise",
        "clone",
        "detach",
        "positive",
        "real",
        "dropout",
        "native_dropout",
        "alias",
        "_to_copy",
        "to",
        "relu_",
        "gelu_",
        "silu_",
        "tanh_",
        "leaky_relu_",
        "elu_",
        "hardswish_",
        "lift_fresh",
        "contiguous",
    ]
    if hasattr(aten, name)
}
_PRODUCTS = {aten.mul, aten.mul_, aten.multiply, aten.logical_and}
_QUOTIENTS = {aten.div, aten.div_, aten.true_divide, aten.floor_divide, aten.fmod, aten.remainder}
_SUMS = {aten.add, aten.add_, aten.sub, aten.sub_, aten.maximum, aten.minimum, aten.where, aten.lerp, aten.copy_}
_CLAMPS = {aten.hardtanh, aten.hardtanh_, aten.clamp, aten.clamp_}
# PyTorch tags most of them itself, but not all.
POINTWISE = _KEEP_ZERO | _PRODUCTS | _QUOTIENTS | _SUMS | _CLAMPS | {aten.hardsigmoid, aten.softplus, aten.log_sigmoid}
STATISTIC = "it is a statistic"


def pointwise(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outs: Sequence[Traced]
) -> None:
    """Dimensions that are broadcast together become one."""
    inputs = [value for value in [*args, *kwargs.values()] if type(value) is Traced]
    scalars = [value for value in args if isinstance(value, int | float) and not isinstance(value, bool)]
    for out in outs:
        axes, zero, origin = broadcast(inputs, out, _zero_rule(func.overloadpacket, scalars))
        # Of two parameters that are combined the result is one no longer.
        out.set(axes, zero, origin if len(inputs) == 1 else None)
    if len(inputs) > 1:
        for value in inputs:
            recorder.produced.update(name for name in value.origin if name is not None)


Zero = Callable[[list[bool | None]], bool]


def broadcast(
    inputs: Sequence[Traced], out: Traced, zero_of: Zero
) -> tuple[list[Axis], list[bool], list[Origin | None]]:
    """The dimensions of a result to which the inputs are broadcast.

    Parameters
    ----------
    inputs
        The tensors.
    out
        The result; only its shape is read.
    zero_of
        Whether a slice of the result is zero, from whether each input's is: ``None`` for an input that does not have
        the dimension.
    """
    shape = out.elem.shape
    axes: list[Axis | None] = [None] * len(shape)
    flags: list[list[bool | None]] = [[] for _ in shape]
    origin: list[Origin | None] = [None] * len(shape)
    for value in inputs:
        offset = len(shape) - value.elem.ndim
        for j, size in enumerate(shape):
            i = j - offset
            if i < 0 or (value.elem.shape[i] == 1 != size):
                flags[j].append(None)
                continue
            flags[j].append(value.zero[i])
            found = axes[j]
            if found is None:
                axes[j], origin[j] = value.axes[i], value.origin[i]
            else:
                unify(found, value.axes[i])
    return [axis or Axis(n) for axis, n in zip(axes, shape, strict=True)], [zero_of(f) for f in flags], origin


def _zero_rule(packet: Any, scalars: list[int | float]) -> Zero:
    if packet in _KEEP_ZERO:
        return lambda flags: bool(flags[0])
    if packet in _PRODUCTS:
        return any
    if packet in _QUOTIENTS:
        return lambda flags: bool(flags[0])
    if packet in (aten.pow, aten.pow_):
        return lambda flags: bool(flags[0]) and all(power > 0 for power in scalars) and bool(scalars)
    if packet in _SUMS:
        # A condition's slices do not matter; a number that is added does.
        values = slice(1, None) if packet is aten.where else slice(None)
        return lambda flags: all(flags[values]) and not any(scalars)
    if packet in _CLAMPS:
        low, high = (*scalars, 0, 0)[:2] if len(scalars) < 2 else (scalars[0], scalars[1])
        return lambda flags: bool(flags[0]) and low <= 0 <= high
    return lambda _: False


def unknown(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outs: Sequence[Traced]
) -> None:
    """Everything that an unknown operation touches stays whole."""
    name = str(func.overloadpacket)
    recorder.unknown.append((name, recorder.where()))
    whole(f"{name} in {recorder.where()} has no rule", (args, kwargs), outs)


def whole(why: str, inputs: Any, outs: Sequence[Traced]) -> None:
    """Freezes all dimensions of inputs and results."""
    for value in tensors(inputs):
        for axis in value.axes:
            freeze(axis, why)
    for out in outs:
        fresh(out, why)


def fresh(out: Traced, why: str) -> None:
    """Gives a result dimensions of its own that stay whole."""
    out.set([Axis(n, why) for n in out.elem.shape], [False] * out.elem.ndim)


def tensors(value: Any) -> list[Traced]:
    """All traced tensors in nested lists."""
    if type(value) is Traced:
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in tensors(item)] if isinstance(value, list | tuple) else []
