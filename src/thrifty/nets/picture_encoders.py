"""Encoders of pictures that can be trained: a small residual network, a small vision transformer, a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.data.fetch import fetch
from thrifty.nets.vision import ResNet, ResNetConfig, is_net, load_net, save_net, storable


@dataclass(frozen=True)
class ResNetEncoderConfig:
    """The shape of a :class:`ResNetEncoder`; see :class:`thrifty.nets.vision.ResNetConfig`."""

    channels: int = 1
    width: int = 16
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = 1


@storable(ResNetEncoderConfig)
class ResNetEncoder(nn.Module):
    """The small residual network of :mod:`thrifty.nets.vision` without its last layer.

    Parameters
    ----------
    config
        Its shape.
    """

    def __init__(self, config: ResNetEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.net = ResNet(ResNetConfig(2, config.channels, config.width, config.blocks, config.stem_stride))
        self.net.head = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The averaged feature map."""
        return self.net.features(x)


@dataclass(frozen=True)
class ViTEncoderConfig:
    """The shape of a :class:`ViTEncoder`.

    Parameters
    ----------
    channels
        1 for grey, 3 for colour.
    size
        Pixels a side of the pictures.
    patch
        Pixels a side of a patch; divides ``size``.
    width
        Features of a patch.
    depth
        How many blocks.
    heads
        Attention heads of each.
    """

    channels: int = 1
    size: int = 28
    patch: int = 7
    width: int = 64
    depth: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        if self.patch < 1 or self.size % self.patch:
            raise InputError(f"patches of {self.patch} pixels don't divide pictures of {self.size}: resize them")


@storable(ViTEncoderConfig)
class ViTEncoder(nn.Module):
    """A vision transformer for small pictures: the mean over the patches after its last block.

    Parameters
    ----------
    config
        Its shape.

    References
    ----------
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, arXiv 2010.11929.
    """

    def __init__(self, config: ViTEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (config.size // config.patch) ** 2, config.width))
        block = nn.TransformerEncoderLayer(
            config.width, config.heads, 2 * config.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, config.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch features"]:
        """The mean token."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        mean: Tensor = self.norm(self.blocks(tokens)).mean(1)
        return mean


class HubEncoder(nn.Module):
    """A Hugging Face vision model that takes pictures in [-1, 1] of any size, and can be trained.

    Parameters
    ----------
    folder
        A model folder with ``preprocessor_config.json``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        super().__init__()
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder)
        size = dict(self.processor.size)
        edge = size.get("shortest_edge")
        self.size = (edge, edge) if edge else (size["height"], size["width"])
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.processor, f"image_{name}"), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The first token, or the mean of a map."""
        colour = (x + 1) / 2
        if colour.shape[-2:] != self.size:
            colour = nn.functional.interpolate(colour, self.size, mode="bilinear", antialias=True)
        if getattr(self.model.config, "num_channels", 3) == 3:
            colour = colour.expand(-1, 3, -1, -1)
        hidden: Tensor = self.model(pixel_values=(colour - self.mean) / self.std).last_hidden_state
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]

    def save(self, directory: Path) -> None:
        """With ``save_pretrained``, the processor beside the model."""
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def _resnet(channels: int, size: int, width: int) -> nn.Module:
    return ResNetEncoder(ResNetEncoderConfig(channels, width, stem_stride=1 if size < 12 else 2))


def _vit(channels: int, size: int, width: int) -> nn.Module:
    # Some 16 patches, or as many as divide the side.
    patch = next(patch for patch in range(max(1, size // 4), 0, -1) if size % patch == 0)
    return ViTEncoder(ViTEncoderConfig(channels, size, patch, 4 * width))


SMALL: Mapping[str, Callable[[int, int, int], nn.Module]] = {"resnet": _resnet, "vit": _vit}


def picture_encoder(name: str, channels: int, size: int, width: int = 16) -> nn.Module:
    """An encoder to train, for pictures of a shape.

    Parameters
    ----------
    name
        ``resnet`` or ``vit``, small and with new weights from PyTorch's global generator; a folder that
        :func:`save_encoder` wrote; or the folder or hub id of a Hugging Face vision model.
    channels
        1 for grey, 3 for colour.
    size
        Pixels a side.
    width
        Of a new network: its features are four times as many.

    Raises
    ------
    NotFoundError
        When there is no such encoder.
    InputError
        When what is there is no encoder of pictures.
    """
    if name in SMALL:
        return SMALL[name](channels, size, width)
    folder = fetch(name)
    if is_net(folder):
        return load_net(folder)
    if not (folder / "preprocessor_config.json").exists():
        raise InputError(
            f"{name} is no encoder of pictures: its folder holds neither a network that thrifty saved nor an image "
            f"processor; known: {', '.join(SMALL)}"
        )
    try:
        return HubEncoder(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} can't be loaded as an encoder: {str(error).splitlines()[0]}") from error


def save_encoder(encoder: nn.Module, directory: Path) -> None:
    """Writes an encoder for :func:`picture_encoder` to read; a Hugging Face model stays one.

    Raises
    ------
    InputError
        When it is neither one of this library nor a Hugging Face model.
    """
    if isinstance(encoder, HubEncoder):
        encoder.save(directory)
    else:
        save_net(encoder, directory)
