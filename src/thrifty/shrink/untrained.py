"""What training-free metrics share: copies of a network to look into, its loss, gradients, and rectifiers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from thrifty.core.errors import InputError

_RECTIFIERS = frozenset(
    {functional.relu, functional.relu6, functional.leaky_relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
)


def copied(model: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A copy in training mode, and the weights of its convolutions and linear layers.

    Raises
    ------
    InputError
        When it has none.
    """
    net = copy.deepcopy(model).train().requires_grad_()
    weights = {id(layer.weight): layer.weight for layer in net.modules() if is_weighted(layer)}
    if not weights:
        raise InputError(
            f"{type(model).__name__} has no convolution or linear layer, whose weights the metrics look at"
        )
    return net, [weight for weight in weights.values() if isinstance(weight, Tensor)]


def is_weighted(layer: nn.Module) -> bool:
    """Whether a module is one of those whose weights the metrics look at."""
    return isinstance(layer, _ConvNd | nn.Linear)


def without_batch_norms(model: nn.Module) -> nn.Module:
    """A copy whose batch normalisations let everything through."""
    net = copy.deepcopy(model)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    return net


def cross_entropy(net: nn.Module, x: Tensor, y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The mean loss of a batch.

    Raises
    ------
    InputError
        When the network gives no logits [B, C], or a label is no class.
    """
    logits = net(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network must give logits [{len(y)}, classes] for {len(y)} labels, not {shape}")
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise InputError(f"labels must lie between 0 and {logits.shape[1] - 1}, not {int(y.min())} to {int(y.max())}")
    return functional.cross_entropy(logits, y)


def gradients_of(value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients, 0 for what the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in inputs]
    found = torch.autograd.grad(value, list(inputs), create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def by_channel(tensor: Tensor, *, last: bool) -> Float[Tensor, "batch channel place"]:
    """An activation with its channels second (``last``: they are last) and all places behind them."""
    if tensor.ndim == 2:
        return tensor[:, :, None]
    return (tensor.movedim(-1, 1) if last else tensor).flatten(2)


def floating(x: Tensor) -> Tensor:
    """The inputs themselves.

    Raises
    ------
    InputError
        When they are whole numbers.
    """
    if not x.is_floating_point():
        raise InputError(f"synflow and jacob_cov need inputs of floating-point numbers, not {x.dtype}")
    return x


class Rectifiers(TorchFunctionMode):
    """While active, notes which rectifiers let through what they get, wherever they are called.

    Parameters
    ----------
    batch
        Examples; what has another first dimension, such as the weights of attention, is left out.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.patterns: list[Float[Tensor, "batch unit"]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RECTIFIERS:
            given = args[0] if args else kwargs["input"]
            if len(given) == self.batch:
                self.patterns.append((given > 0).flatten(1).double())
        return func(*args, **(kwargs or {}))
