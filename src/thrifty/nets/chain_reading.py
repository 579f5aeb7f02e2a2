"""Reads the table of layers of any convolutional classifier that is a chain with or without residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Node

from thrifty.core.errors import InputError
from thrifty.lm.backbone import evaluating
from thrifty.nets.chain import ChainConfig, ChainNet, Layer, shapes

_PASSED = (  # what changes no number that the next layer sees, in evaluation mode
    "flatten", "view", "reshape", "_unsafe_view", "squeeze", "dropout", "dropout_", "clone", "contiguous", "detach",
    "alias", "to", "_to_copy",
)  # fmt: skip
_ADDED = ("add", "add_")


def read_chain(model: nn.Module, example: Float[Tensor, "batch channels height width"]) -> ChainConfig:
    """The layers of a classifier, as the code runs them on an example.

    Parameters
    ----------
    model
        Any PyTorch module that maps pictures to logits by square convolutions, batch normalisation, relu, pooling and
        linear layers, with residual blocks that do not overlap; their shortcut is the identity or one convolution,
        with normalisation or without.
    example
        Pictures as it takes them.

    Returns
    -------
    ChainConfig
        Dropout is left out.

    Raises
    ------
    InputError
        When the model can't be traced or does something else; the module is named.
    """
    if isinstance(model, ChainNet):
        return model.config
    try:
        with evaluating(model), torch.no_grad():
            traced = torch.export.export(model, (example,), strict=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the {type(model).__name__} can't be traced on such pictures: {reason}") from error
    names = traced.graph_signature
    given = next(node for node in traced.graph.nodes if node.name in names.user_inputs)
    outputs = [
        one for one in traced.graph.output_node().args[0] if isinstance(one, Node) and one.name in names.user_outputs
    ]
    if not outputs:
        raise InputError(f"the {type(model).__name__} returns no tensor: give one that returns logits")
    rows = _Reader(given).chain(outputs[0])
    height, width = example.shape[2:]
    config = ChainConfig(tuple(layer for layer, _ in rows), example.shape[1], (height, width))
    for (layer, node), shape in zip(rows, shapes(config)[1:], strict=True):
        found = tuple(node.meta["val"].shape[1:])
        if found[0] != shape[0] or (len(found) == 3 and found != shape):
            raise InputError(
                f"{_where(node)}: a {layer.kind} layer that makes {list(found)} of what is given is not known"
            )
    return config


class _Reader:
    """Walks from the logits back to the picture."""

    def __init__(self, given: Node) -> None:
        self.given = given

    def chain(self, node: Node) -> list[tuple[Layer, Node]]:
        found: list[list[tuple[Layer, Node]]] = []
        while node is not self.given:
            if _is_sum(node):
                rows, node = self.block(node)
                found.append(rows)
            else:
                found.append(_row(node))
                node = _before(node)
        blocks = 0
        ordered: list[tuple[Layer, Node]] = []
        for rows in reversed(found):
            blocks += bool(rows and rows[0][0].block)
            ordered += [(layer._replace(block=blocks if layer.block else 0), node) for layer, node in rows]
        return ordered

    def block(self, total: Node) -> tuple[list[tuple[Layer, Node]], Node]:
        """The layers of the block whose sum this is, and what the block was given."""
        one, other = (self.path(node) for node in total.all_input_nodes[:2])
        start = next((node for node in one if node in other), None)
        if start is None:
            raise InputError(f"{_where(total)}: blocks within blocks, or paths that do not meet, can't be read")
        sides = [[row for node in path[: path.index(start)] for row in _row(node)] for path in (one, other)]
        layers, shortcut = sorted(sides, key=len, reverse=True)
        if [layer.kind for layer, _ in reversed(shortcut)] not in ([], ["conv"], ["conv", "norm"]):
            raise InputError(f"{_where(total)}: a shortcut must be the identity or one convolution, not more")
        return [(layer._replace(block=1), node) for layer, node in reversed(layers)], start

    def path(self, node: Node) -> list[Node]:
        """A node and all before it, until two paths meet."""
        found = [node]
        while node is not self.given and not _is_sum(node):
            node = _before(node)
            found.append(node)
        return found


def _before(node: Node) -> Node:
    before = node.all_input_nodes
    if not before:
        raise InputError(f"{_where(node)}: {_operation(node)} can't be read as part of a chain of layers")
    return before[0]


def _is_sum(node: Node) -> bool:
    return _operation(node) in _ADDED and len(node.all_input_nodes) == 2


def _operation(node: Node) -> str:
    # aten.conv2d.default -> conv2d
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _where(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    names = [name for name, _ in stack.values() if name]
    return names[-1] if names else "the model"


def _row(node: Node) -> list[tuple[Layer, Node]]:
    """The layer that an operation is; none where it changes nothing."""
    kind = _operation(node)
    if kind in _PASSED:
        return []
    read = _ROWS.get(kind)
    if read is None:
        advice = "; give a model that returns logits" if "softmax" in kind else ""
        raise InputError(f"{_where(node)}: {kind} is none of the layers that can be read{advice}")
    return [(read(node), node)]


def _window(node: Node, numbers: Any, name: str) -> int:
    sides = set(numbers) if isinstance(numbers, list | tuple) else {numbers}
    if len(sides) != 1 or not isinstance(next(iter(sides)), int):
        raise InputError(f"{_where(node)}: its {name} must be square, not {numbers}")
    return int(next(iter(sides)))


def _argument(node: Node, at: int, name: str, default: Any) -> Any:
    found = node.args[at] if len(node.args) > at else node.kwargs.get(name, default)
    return default if found is None or found == [] else found


def _conv(node: Node) -> Layer:
    weight = node.all_input_nodes[1].meta["val"]
    bias = _argument(node, 2, "bias", None) is not None
    stride, padding, dilation = (
        _window(node, _argument(node, at, name, default), name)
        for at, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if dilation != 1 or _argument(node, 6, "groups", 1) != 1:
        raise InputError(f"{_where(node)}: convolutions with groups or dilation can't be read")
    kernel = _window(node, list(weight.shape[2:]), "kernel")
    return Layer("conv", kernel, stride, weight.shape[0], padding, bias)


def _linear(node: Node) -> Layer:
    weight = node.all_input_nodes[1].meta["val"]
    return Layer("linear", channels=weight.shape[0], bias=len(node.all_input_nodes) > 2)


def _pool(kind: str) -> Callable[[Node], Layer]:
    def read(node: Node) -> Layer:
        kernel = _window(node, node.args[1], "kernel")
        stride = _window(node, _argument(node, 2, "stride", kernel), "stride")
        return Layer(kind, kernel, stride, padding=_window(node, _argument(node, 3, "padding", 0), "padding"))

    return read


_ROWS: Mapping[str, Callable[[Node], Layer]] = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": lambda _: Layer("norm"),
    "relu": lambda _: Layer("relu"),
    "relu_": lambda _: Layer("relu"),
    "max_pool2d": _pool("max-pool"),
    "avg_pool2d": _pool("avg-pool"),
    "adaptive_avg_pool2d": lambda _: Layer("global-pool"),
    "mean": lambda _: Layer("global-pool"),
}
