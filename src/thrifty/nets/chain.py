"""Convolutional networks that a table of layers describes: chains, with or without residual blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError, nearest
from thrifty.nets.vision import storable

KINDS = ("conv", "norm", "relu", "max-pool", "avg-pool", "global-pool", "linear")
WINDOWED = ("conv", "max-pool", "avg-pool")
Shape = tuple[int, int, int]


class Layer(NamedTuple):
    """One row of the table.

    Parameters
    ----------
    kind
        One of :data:`KINDS`; a linear layer flattens what it is given, and global pooling averages each channel.
    kernel, stride, padding
        Of convolutions and pooling, in pixels, alike in both directions; 0 elsewhere.
    channels
        Outputs of a convolution or linear layer; 0 elsewhere.
    bias
        Whether a convolution or linear layer has one.
    block
        The number of the residual block that the layer is in, from 1; 0 outside of blocks. A block's input is added to
        its output, through a 1x1 convolution with normalisation where they differ in shape.
    """

    kind: str
    kernel: int = 0
    stride: int = 0
    channels: int = 0
    padding: int = 0
    bias: bool = False
    block: int = 0


@dataclasses.dataclass(frozen=True)
class ChainConfig:
    """The shape of a :class:`ChainNet`.

    Parameters
    ----------
    layers
        From input to logits.
    channels
        Channels of the picture.
    size
        Height and width of the picture.

    Raises
    ------
    InputError
        When a row is no layer, or a layer can't take what the one before makes.
    """

    layers: tuple[Layer, ...]
    channels: int = 1
    size: tuple[int, int] = (28, 28)

    def __post_init__(self) -> None:
        # Rows come back from JSON as lists.
        object.__setattr__(self, "layers", tuple(_row(row) for row in self.layers))
        object.__setattr__(self, "size", tuple(self.size))
        shapes(self)

    @property
    def classes(self) -> int:
        """Outputs of the last layer that has some."""
        return next(layer.channels for layer in reversed(self.layers) if layer.channels)


def _row(row: Any) -> Layer:
    try:
        layer = Layer(*row)
    except TypeError as error:
        raise InputError(f"a layer is {', '.join(Layer._fields)}, not {row!r}") from error
    if layer.kind not in KINDS:
        raise InputError(f"no layer {layer.kind!r}: {nearest(str(layer.kind), KINDS)}")
    return layer


def shapes(config: ChainConfig) -> list[Shape]:
    """What each layer is given, and behind them what the last one makes: channels, height and width.

    Raises
    ------
    InputError
        When a layer can't take what it is given; the layer is named.
    """
    if not config.layers:
        raise InputError("a network needs at least one layer")
    found: list[Shape] = [(config.channels, *config.size)]
    flat = False
    for at, layer in enumerate(config.layers):
        flat = flat or layer.kind == "linear"
        try:
            if flat and (layer.block or layer.kind not in ("linear", "relu")):
                raise InputError("behind a linear layer only linear layers and relu can stand, and no residual block")
            found.append(_after(layer, found[-1]))
        except InputError as error:
            raise InputError(f"layer {at + 1} ({layer.kind}): {error}") from error
    return found


def _after(layer: Layer, given: Shape) -> Shape:
    channels, height, width = given
    if layer.kind in ("conv", "linear") and layer.channels < 1:
        raise InputError(f"needs at least 1 channel, not {layer.channels}")
    if layer.kind == "linear":
        return layer.channels, 1, 1
    if layer.kind == "global-pool":
        return channels, 1, 1
    if layer.kind not in WINDOWED:
        return given
    if layer.kernel < 1 or layer.stride < 1 or layer.padding < 0:
        raise InputError(
            f"kernel and stride must be at least 1 and padding 0, not {layer.kernel}, {layer.stride} and "
            f"{layer.padding}"
        )
    if layer.kind != "conv" and layer.padding > layer.kernel // 2:
        raise InputError(f"pooling pads at most half of its kernel of {layer.kernel}, not {layer.padding}")
    high, wide = ((side + 2 * layer.padding - layer.kernel) // layer.stride + 1 for side in (height, width))
    if high < 1 or wide < 1:
        raise InputError(f"a kernel of {layer.kernel} with padding {layer.padding} does not fit on {height}x{width}")
    return layer.channels if layer.kind == "conv" else channels, high, wide


class Span(NamedTuple):
    """Layers that belong together: those of one residual block, or a single one outside."""

    first: int
    end: int
    block: int


def spans(layers: Sequence[Layer]) -> Iterator[Span]:
    """The layers in order, those of a block together."""
    at = 0
    while at < len(layers):
        block, end = layers[at].block, at + 1
        while block and end < len(layers) and layers[end].block == block:
            end += 1
        yield Span(at, end, block)
        at = end


class Residual(nn.Module):
    """Adds what a block is given to what its layers make of it.

    Parameters
    ----------
    layers
        The block.
    inside, outside
        Shapes of what it is given and makes.

    Raises
    ------
    InputError
        When no 1x1 convolution brings the one shape to the other.
    """

    def __init__(self, layers: nn.Sequential, inside: Shape, outside: Shape) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut: nn.Module = nn.Identity()
        if inside != outside:
            stride = projection_stride(inside, outside)
            conv = nn.Conv2d(inside[0], outside[0], 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outside[0]))

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch outside h w"]:
        """The sum."""
        total: Tensor = self.shortcut(x) + self.layers(x)
        return total


def projection_stride(inside: Shape, outside: Shape) -> int:
    """The stride of the 1x1 convolution that brings one shape to another.

    Raises
    ------
    InputError
        When there is none.
    """
    stride = -(-inside[1] // outside[1])
    if any((side - 1) // stride + 1 != wanted for side, wanted in zip(inside[1:], outside[1:], strict=True)):
        raise InputError(f"a shortcut can't bring {inside[1]}x{inside[2]} pixels to {outside[1]}x{outside[2]}")
    return stride


@storable(ChainConfig)
class ChainNet(nn.Module):
    """A convolutional classifier as a table of layers says.

    Parameters
    ----------
    config
        Its layers, and the pictures that it takes.
    """

    def __init__(self, config: ChainConfig) -> None:
        super().__init__()
        self.config = config
        given, made = shapes(config), [_module(layer, shape) for layer, shape in _pairs(config)]
        parts: list[nn.Module] = []
        for first, end, block in spans(config.layers):
            inner = nn.Sequential(*made[first:end])
            parts.append(Residual(inner, given[first], given[end]) if block else inner[0])
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits."""
        logits: Tensor = self.parts(x)
        return logits.flatten(1)


def _pairs(config: ChainConfig) -> Iterator[tuple[Layer, Shape]]:
    return zip(config.layers, shapes(config)[:-1], strict=True)


def _module(layer: Layer, given: Shape) -> nn.Module:
    window = (layer.kernel, layer.stride, layer.padding)
    if layer.kind == "conv":
        return nn.Conv2d(given[0], layer.channels, *window, bias=layer.bias)
    if layer.kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(given), layer.channels, bias=layer.bias))
    plain: dict[str, Any] = {
        "norm": lambda: nn.BatchNorm2d(given[0]),
        "relu": nn.ReLU,
        "max-pool": lambda: nn.MaxPool2d(*window),
        "avg-pool": lambda: nn.AvgPool2d(*window),
        "global-pool": lambda: nn.AdaptiveAvgPool2d(1),
    }
    return plain[layer.kind]()


def parameters(config: ChainConfig) -> int:
    """How many numbers the parameters of such a network hold; none is made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ChainNet(config).parameters())


def vgg(
    classes: int, channels: int = 1, size: tuple[int, int] = (28, 28), widths: Sequence[int] = (32, 64), depth: int = 2
) -> ChainConfig:
    """A chain of 3x3 convolutions with batch normalisation, halved by pooling behind each stage.

    Parameters
    ----------
    classes
        Number of classes.
    channels, size
        Of the picture.
    widths
        Channels of each stage.
    depth
        Convolutions of each stage.
    """
    layers: list[Layer] = []
    for stage, width in enumerate(widths):
        layers += [Layer("max-pool", 2, 2)] if stage else []
        for _ in range(depth):
            layers += [Layer("conv", 3, 1, width, 1), Layer("norm"), Layer("relu")]
    layers += [Layer("global-pool"), Layer("linear", channels=classes, bias=True)]
    return ChainConfig(tuple(layers), channels, size)
