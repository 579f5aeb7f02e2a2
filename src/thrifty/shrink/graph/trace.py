"""Runs a model on tensors without values and writes down which channels belong together.

``torch.export`` records the same operations (without strict mode it runs the same code), but took 3.1 s for a ResNet-50
and 1.5 s for a ViT-B before anything is known of channels. This takes a tenth of that, needs no graph, and what depends
on neither weights nor inputs (positions, causal masks) is computed with real numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from thrifty.core.errors import InputError
from thrifty.shrink.graph.axes import Axis, freeze, unify
from thrifty.shrink.graph.pointwise import pointwise, unknown
from thrifty.shrink.graph.recorder import Recorder
from thrifty.shrink.graph.rules import RULES
from thrifty.shrink.graph.traced import Origin, Traced, held_among, hold, release


def parameter_names(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Name and tensor of all parameters and buffers, shared ones once; whether it is a buffer."""
    for name, parameter in model.named_parameters():
        yield name, parameter, False
    for name, buffer in model.named_buffers():
        yield name, buffer, True


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recorder:
    """Runs the model without values and follows its channels.

    Parameters
    ----------
    model
        Any module; it stays as it is.
    args, kwargs
        What it is called with. Of floating-point tensors only the shape counts.

    Raises
    ------
    InputError
        When the model can't be run so: its module, and what it does there, are named.
    """
    recorder = Recorder()
    for name, value, is_buffer in parameter_names(model):
        if value.is_floating_point():
            meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            origin: list[Origin | None] = [(name, dim) for dim in range(value.ndim)]
            made = Traced(meta, value.device, [Axis(n) for n in value.shape], [not is_buffer] * value.ndim, origin)
            recorder.known[id(value)] = recorder.names[name] = made
    for value in tree_leaves((args, dict(kwargs))):
        if isinstance(value, Tensor) and value.is_floating_point():
            recorder.known[id(value)] = recorder.constant(value)
            for axis in recorder.known[id(value)].axes:
                axis.why = "it is the model's input"
    _freeze_what_computes_its_own_sizes(model, recorder)
    args, kwargs = tree_map(lambda v: recorder.known.get(id(v), v), (args, dict(kwargs)))
    with _prepared(model, recorder), torch.no_grad(), _Dispatch(recorder), _Sizes(recorder):
        try:
            output = model(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"the model can't be traced: {recorder.where()} ({_kind(model, recorder.module)}) fails with: {first}"
            ) from error
    _tie_what_one_integer_sizes(recorder)
    outputs = [value for value in _tensors(output) if isinstance(value, Traced)]
    if not outputs:
        raise InputError(f"{type(model).__name__} returns no tensor that depends on its weights and inputs")
    for value in outputs:
        for axis in value.axes:
            freeze(axis, "it is the model's output")
    return recorder


def _tie_what_one_integer_sizes(recorder: Recorder) -> None:
    """Makes axes one whose size is the same attribute of the same module: the code can't hold two values of it."""
    first: dict[tuple[str, str], Axis] = {}
    for module, attribute, axis in recorder.uses:
        unify(first.setdefault((module, attribute), axis), axis)


def _kind(model: nn.Module, name: str) -> str:
    return type(dict(model.named_modules()).get(name, model)).__name__


def _tensors(output: Any) -> Iterator[Tensor]:
    # A cache of keys and values is no output: what reads it is the model itself, at the next token.
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        yield from _tensors(vars(output))


def _freeze_what_computes_its_own_sizes(model: nn.Module, recorder: Recorder) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            for parameter in module.parameters():
                for axis in recorder.known[id(parameter)].axes:
                    freeze(axis, f"{name} is an nn.MultiheadAttention, which takes its head size from its width")


@contextlib.contextmanager
def _prepared(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """The model in evaluation mode, its integers marked, and the recorder told which module runs."""
    names = {id(module): name for name, module in model.named_modules()}
    training = [module for module in model.modules() if module.training]
    path: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        path.append(recorder.module)
        recorder.module = names.get(id(module), recorder.module)

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        recorder.module = path.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    for module in training:
        module.training = False
    held = hold(model)
    try:
        yield
    finally:
        release(held)
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()


class _Sizes(TorchFunctionMode):
    """Tells the recorder which of a call's integers are attributes of modules."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        held = held_among(args)
        if kwargs:
            held += held_among(kwargs.values())
        if not held:
            return func(*args, **kwargs)
        before, self.recorder.held = self.recorder.held, held
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.held = before


class _Dispatch(TorchDispatchMode):
    """Runs each operation on shapes alone, and applies its rule."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        tensors = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
        device = next((v.device for v in tensors if type(v) is Traced or id(v) in recorder.known), None)
        if device is None:
            return func(*args, **kwargs)  # depends on neither weights nor inputs
        packet = func.overloadpacket
        if packet in _ASKS:
            raise InputError(
                f"the model can't be traced: what {recorder.where()} does depends on the values it computes; give the "
                "part of the model before or after it, or an example input that does not need it"
            )
        args, kwargs = _mapped(args, self._traced), {key: _mapped(value, self._traced) for key, value in kwargs.items()}
        plain = kwargs | {"device": torch.device("meta")} if "device" in kwargs else kwargs
        quick = QUICK.get(packet)
        if quick is not None and not plain:
            results = quick(args)
        else:
            results = func(*_mapped(args, _elem), **{key: _mapped(value, _elem) for key, value in plain.items()})
        written = _written(func, args)
        if written is not None:
            outs: Any = written
        else:
            outs = _mapped(results, lambda value: Traced(value, device))
        listed = [value for value in _flat(outs) if type(value) is Traced]
        rule = RULES.get(packet) or (pointwise if torch.Tag.pointwise in func.tags else unknown)
        rule(recorder, func, args, kwargs, listed)
        recorder.nodes.append((str(packet), recorder.module, [list(value.axes) for value in listed]))
        return outs

    def _traced(self, value: Tensor) -> Tensor:
        if type(value) is Traced:
            return value
        known = self.recorder.known.get(id(value))
        if known is None:
            return self.recorder.constant(value)
        if known.origin and known.origin[0] is not None:
            self.recorder.used.add(known.origin[0][0])
        return known


_ASKS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.equal, torch.ops.aten.nonzero}


def _like(x: Traced, *shape: int) -> Tensor:
    if shape:
        return torch.empty(shape, dtype=x.elem.dtype, device="meta")
    return torch.empty_strided(x.elem.shape, x.elem.stride(), dtype=x.elem.dtype, device="meta")


def _like_first(args: tuple[Any, ...]) -> Tensor:
    return _like(args[0])


def _norm(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return _like(args[0]), _like(args[0], 0), _like(args[0], 0)


def _mm(args: tuple[Any, ...]) -> Tensor:
    a, b = args[-2:]
    return _like(a, a.elem.shape[0], b.elem.shape[1])


# Shapes that PyTorch's own functions for tensors without values take a millisecond for.
QUICK: dict[Any, Callable[[tuple[Any, ...]], Any]] = {
    **dict.fromkeys([torch.ops.aten.native_batch_norm, torch.ops.aten.native_layer_norm], _norm),
    **dict.fromkeys(
        [torch.ops.aten.relu, torch.ops.aten.gelu, torch.ops.aten.silu, torch.ops.aten.sigmoid], _like_first
    ),
    **dict.fromkeys([torch.ops.aten.addmm, torch.ops.aten.mm], _mm),
}


def _elem(value: Tensor) -> Tensor:
    assert isinstance(value, Traced)
    return value.elem


def _written(func: Any, args: tuple[Any, ...]) -> Traced | None:
    """The argument that an operation in place writes and returns."""
    name = func._schema.name
    return args[0] if name.endswith("_") and not name.endswith("__") and type(args[0]) is Traced else None


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value
