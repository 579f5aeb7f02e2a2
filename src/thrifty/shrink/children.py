"""What the policies of N2N see of a network, and the networks that their actions make of it.

Actions are applied to the table of layers (:mod:`thrifty.nets.chain`); whether a child can exist, and how large it
would be, is known before anything is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.nets.chain import ChainConfig, Layer, parameters, shapes, spans

ATTRIBUTES = ("kind", "kernel", "stride", "channels", "padding")
FEWEST_CHANNELS = 10  # as in the released code
_LINEAR_INPUTS = (10, 50_000)
# As the released code numbers them; global pooling is average pooling there.
_NUMBERS = {"conv": 1, "max-pool": 2, "relu": 3, "norm": 4, "linear": 5, "avg-pool": 8, "global-pool": 8}
_KEPT = ("linear", "avg-pool", "global-pool")


@dataclass(frozen=True, eq=False)
class Limits:
    """What a child must keep to.

    Parameters
    ----------
    most_parameters
        It must have fewer.
    fewest_channels
        Layers are not made narrower.
    linear_inputs
        The least and the most that a linear layer may be given.
    """

    most_parameters: int
    fewest_channels: int = FEWEST_CHANNELS
    linear_inputs: tuple[int, int] = _LINEAR_INPUTS


def layer_features(layers: Sequence[Layer], *, skips: bool = False) -> Float[Tensor, "layer feature"]:
    """Each layer as numbers: its kind, kernel, stride, channels and padding.

    Parameters
    ----------
    layers
        Of a network.
    skips
        Two more: how many layers lie between it and the beginning, and the end, of its residual block.
    """
    rows = [[_NUMBERS[layer.kind], layer.kernel, layer.stride, layer.channels, layer.padding] for layer in layers]
    found = torch.tensor(rows, dtype=torch.float32)
    if not skips:
        return found
    inside = [
        [at, span.end - span.first - at - 1] if span.block else [0, 0]
        for span in spans(layers)
        for at in range(span.end - span.first)
    ]
    return torch.cat([found, torch.tensor(inside, dtype=torch.float32)], 1)


def removable(layers: Sequence[Layer]) -> Bool[Tensor, " layer"]:
    """Which layers may go: not the first and the last, linear layers, average pooling, convolutions with a stride."""
    found = [not (layer.kind in _KEPT or (layer.kind == "conv" and layer.stride != 1)) for layer in layers]
    found[0] = found[-1] = False
    return torch.tensor(found)


def shrinkable(layers: Sequence[Layer]) -> Bool[Tensor, "layer 5"]:
    """Which attributes may be made smaller, in the order of :data:`ATTRIBUTES`.

    The kind never; nothing of linear layers, average pooling and convolutions with a stride; in residual blocks the
    channels of convolutions only, the last one's only where the block has a convolution in its shortcut.
    """
    found = torch.zeros(len(layers), len(ATTRIBUTES), dtype=torch.bool)
    for at, layer in enumerate(layers):
        if layer.block:
            found[at, 3] = layer.kind == "conv"
        elif layer.kind == "max-pool" or (layer.kind == "conv" and layer.stride == 1):
            found[at, 1:] = torch.tensor([True, True, layer.kind == "conv", True])
    return found


def without(config: ChainConfig, keep: Bool[Tensor, " layer"]) -> ChainConfig:
    """A network without some layers; what follows takes as many channels as it is given.

    Parameters
    ----------
    config
        The network.
    keep
        True for the layers that stay.

    Raises
    ------
    InputError
        When the layers that stay do not fit together.
    """
    chosen = [layer for layer, stays in zip(config.layers, keep.tolist(), strict=True) if stays]
    return _fitted(config, chosen)


def scaled(
    config: ChainConfig, multipliers: Float[Tensor, "layer 5"], fewest_channels: int = FEWEST_CHANNELS
) -> ChainConfig:
    """A network whose layers' attributes are scaled and rounded down.

    Parameters
    ----------
    config
        The network.
    multipliers
        In the order of :data:`ATTRIBUTES`; that of the kind is not looked at.
    fewest_channels
        Layers are not made narrower.

    Raises
    ------
    InputError
        When the layers do not fit together.
    """
    chosen = [
        _scaled(layer, row, fewest_channels) for layer, row in zip(config.layers, multipliers.tolist(), strict=True)
    ]
    return _fitted(config, chosen)


def _scaled(layer: Layer, multipliers: Sequence[float], fewest: int) -> Layer:
    _, k, s, o, p = multipliers
    padding = _down(layer.padding, p)
    if layer.kernel:
        layer = layer._replace(kernel=max(_down(layer.kernel, k), 1), stride=max(_down(layer.stride, s), 1))
        padding = padding if layer.kind == "conv" else min(padding, layer.kernel // 2)
    channels = max(_down(layer.channels, o), min(fewest, layer.channels))
    return layer._replace(channels=channels, padding=padding)


def _down(value: int, multiplier: float) -> int:
    return int(value * multiplier + 1e-3)  # 90 * 0.7 is 62.99...


def _fitted(config: ChainConfig, layers: Sequence[Layer]) -> ChainConfig:
    """The layers with the last convolution of each block as wide as the block's input, where it has to be."""
    before, fitted, width = _projected(config), list(layers), config.channels
    for span in spans(layers):
        convs = [at for at in range(span.first, span.end) if layers[at].kind == "conv"]
        if span.block and span.block not in before and convs:
            fitted[convs[-1]] = fitted[convs[-1]]._replace(channels=width)
        if convs:
            width = fitted[convs[-1]].channels
    return replace(config, layers=tuple(fitted))


def _projected(config: ChainConfig) -> set[int]:
    """The blocks whose input and output differ in shape, so that there is a convolution in the shortcut."""
    given = shapes(config)
    return {span.block for span in spans(config.layers) if span.block and given[span.first] != given[span.end]}


def allowed(child: ChainConfig, limits: Limits) -> bool:
    """Whether a child is within its limits.

    Raises
    ------
    InputError
        When a shortcut can't bring a block's input to the shape of its output.
    """
    given = shapes(child)
    for layer, shape in zip(child.layers, given[:-1], strict=True):
        if layer.kind == "linear":
            inputs = shape[0] * shape[1] * shape[2]
            if not limits.linear_inputs[0] <= inputs <= limits.linear_inputs[1]:
                return False
    return parameters(child) < limits.most_parameters


def removal_child(config: ChainConfig, keep: Bool[Tensor, " layer"], limits: Limits) -> ChainConfig | None:
    """The child that removal makes, if it can exist within its limits; layers that must stay do."""
    try:
        child = without(config, keep | ~removable(config.layers))
        return child if allowed(child, limits) else None
    except InputError:
        return None


def shrinkage_child(config: ChainConfig, multipliers: Float[Tensor, "layer 5"], limits: Limits) -> ChainConfig | None:
    """The child that shrinkage makes, if it can exist within its limits; attributes that must stay do."""
    try:
        chosen = torch.where(shrinkable(config.layers), multipliers, 1.0)
        child = scaled(config, chosen, limits.fewest_channels)
        return child if allowed(child, limits) else None
    except InputError:
        return None


def narrower(config: ChainConfig, width: float, fewest_channels: int = FEWEST_CHANNELS) -> ChainConfig:
    """All convolutions narrower by one factor: what one would do by hand.

    Parameters
    ----------
    config
        The network.
    width
        What channels are multiplied by.
    fewest_channels
        Layers are not made narrower.
    """
    factors = torch.ones(len(config.layers), len(ATTRIBUTES))
    factors[:, 3] = torch.tensor([width if layer.kind == "conv" else 1.0 for layer in config.layers])
    return scaled(config, factors, fewest_channels)
