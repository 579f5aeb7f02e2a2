"""A small residual network for small pictures, and how networks of this library are kept on disk.

A saved network is a directory with ``config.json`` (which class, which settings) and ``model.safetensors``
(weights and buffers): nothing in it runs code when it is loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.atomic import replacing, write_json
from thrifty.core.errors import InputError, NotFoundError, nearest

CONFIG, WEIGHTS = "config.json", "model.safetensors"
N = TypeVar("N", bound=type[nn.Module])
_NETS: dict[str, type[nn.Module]] = {}


def storable(config: type) -> Callable[[N], N]:
    """Lets :func:`save_net` and :func:`load_net` handle a network class.

    Parameters
    ----------
    config
        The frozen dataclass that is the only argument of the class' constructor; instances keep it as
        ``self.config``. Its fields must be JSON values or tuples of them.
    """

    def enter(cls: N) -> N:
        cls.config_class = config  # type: ignore[attr-defined]
        _NETS[cls.__name__] = cls
        return cls

    return enter


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The shape of a :class:`ResNet`.

    Parameters
    ----------
    classes
        Number of classes, at least 2.
    channels
        Channels of the picture: 1 for grey, 3 for colour.
    width
        Channels of the first stage; each later stage has twice as many at half the resolution.
    blocks
        Residual blocks of each stage.
    stem_stride
        Stride of the first convolution: 1 for 8x8 pictures, 2 saves three quarters of the work on 28x28 ones.
    """

    classes: int
    channels: int = 1
    width: int = 16
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = 1

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(f"a classifier needs at least 2 classes, not {self.classes}")
        if self.channels < 1 or self.width < 1 or not self.blocks or min(self.blocks) < 1 or self.stem_stride < 1:
            raise InputError(f"channels, width, blocks and stem_stride must all be positive, not {self}")


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut: ``relu(shortcut(x) + f(x))``.

    Parameters
    ----------
    inside, outside
        Channels of input and output.
    stride
        Stride of the first convolution; the shortcut gets a 1x1 convolution when the shape changes.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        same = inside == outside and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch outside h w"]:
        """The features of the next stage or block."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.shortcut(x) + self.norm2(self.conv2(inner)))


@storable(ResNetConfig)
class ResNet(nn.Module):
    """A residual network for small pictures such as 8x8 digits and 28x28 grey or colour pictures.

    Parameters
    ----------
    config
        Its shape.

    References
    ----------
    He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385 (the CIFAR form: a 3x3 stem
    and no pooling before the last layer).
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(config.channels, width, 3, config.stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[Block] = []
        for stage, count in enumerate(config.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                inside = width if not blocks else blocks[-1].conv2.out_channels
                blocks.append(Block(inside, config.width * 2**stage, stride))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(blocks[-1].conv2.out_channels, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The averaged feature map that the last layer sees."""
        pooled: Tensor = self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3))
        return pooled

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits; ``x`` as :func:`pixels` gives it."""
        logits: Tensor = self.head(self.features(x))
        return logits


def pixels(images: NDArray[np.uint8]) -> Float[Tensor, "batch channels height width"]:
    """Grey levels or colours 0-255 as the network input, in [-1, 1].

    Parameters
    ----------
    images
        uint8, [N, H, W] or [N, H, W, C].

    Raises
    ------
    InputError
        For another dtype or number of dimensions.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"pictures must be uint8 [N, H, W] or [N, H, W, C], not {images.dtype} {list(images.shape)}: "
            "scale them to 0-255"
        )
    x = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32).div_(127.5).sub_(1.0)
    return x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()


def save_net(net: nn.Module, directory: str | Path) -> None:
    """Writes ``config.json`` and ``model.safetensors``, each atomically.

    Parameters
    ----------
    net
        A network whose class is :func:`storable`.
    directory
        Made if missing.

    Raises
    ------
    InputError
        When the class is not storable.
    DiskFullError
        When there is no room.
    """
    name = type(net).__name__
    if _NETS.get(name) is not type(net):
        raise InputError(f"a {name} can't be saved this way: it is none of {', '.join(sorted(_NETS))}")
    folder = Path(directory)
    config: Any = net.config
    # Weights first: a directory with a config.json is a whole one.
    with replacing(folder / WEIGHTS) as temporary:
        save_model(net, str(temporary))
    write_json(folder / CONFIG, {"net": name, **dataclasses.asdict(config)})


def is_net(directory: str | Path) -> bool:
    """Whether a directory was written by :func:`save_net`."""
    try:
        config = json.loads((Path(directory) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return isinstance(config, dict) and "net" in config


def load_net(directory: str | Path) -> nn.Module:
    """Reads what :func:`save_net` wrote, in evaluation mode on the CPU.

    Raises
    ------
    NotFoundError
        When the directory holds no such network.
    InputError
        When its class is unknown, or its files do not fit together.
    """
    folder = Path(directory)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name = config.pop("net")
    except (OSError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise NotFoundError(f"{folder} holds no saved network: expected {CONFIG} with a 'net' and {WEIGHTS}") from error
    if name not in _NETS:
        raise InputError(f"{folder} holds an unknown network {name!r}: {nearest(str(name), _NETS)}")
    cls: Any = _NETS[name]
    try:
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        net: nn.Module = cls(cls.config_class(**settings))
        load_model(net, folder / WEIGHTS)
    except (OSError, SafetensorError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} is no whole {name}: {reason}") from error
    return net.eval()
