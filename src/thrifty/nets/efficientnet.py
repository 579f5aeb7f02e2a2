"""EfficientNet-lite0: a small ImageNet backbone without squeeze-and-excitation, made for CPUs.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946), in the
*lite* variant of its authors: ReLU6 in the place of swish, no squeeze-and-excitation, stem and head not scaled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from thrifty.core.errors import InputError, NotFoundError

FEATURES, CLASSES = 1280, 1000


class Stage(NamedTuple):
    """A row of the architecture's table: ``repeats`` blocks, of which the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STEM = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ``ceil(size / stride)`` pixels a side, the odd pixel of padding at the end.

    The published weights were trained so; PyTorch's symmetric padding would shift the pictures by half a
    pixel at every stride.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(input.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(nn.functional.pad(input, padding) if any(padding) else input)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Module):
    """Expand by 1x1, filter each channel, project by 1x1; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        middle = inputs * expand
        self.skips = stride == 1 and inputs == outputs
        # The names are those of the published weights.
        self._expand_conv = SameConv2d(inputs, middle, 1) if expand != 1 else nn.Identity()
        self._bn0 = _norm(middle) if expand != 1 else nn.Identity()
        self._depthwise_conv = SameConv2d(middle, middle, kernel, stride, groups=middle)
        self._bn1 = _norm(middle)
        self._project_conv = SameConv2d(middle, outputs, 1)
        self._bn2 = _norm(outputs)
        self.expands = expand != 1

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.relu6(self._bn0(self._expand_conv(images))) if self.expands else images
        x = nn.functional.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + images if self.skips else x


class EfficientNetLite0(nn.Module):
    """The network; its state has the names and shapes of the published PyTorch weights.

    References
    ----------
    arXiv 1905.11946, Table 1 (B0), without squeeze-and-excitation and with ReLU6.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, STEM, 3, 2), _norm(STEM)
        blocks: list[nn.Module] = []
        width = STEM
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(InvertedBottleneck(width, stage.channels, stage.kernel, stride, stage.expand))
                width = stage.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv2d(width, FEATURES, 1), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1280"]:
        """The channels of the last map, averaged over the pixels.

        Parameters
        ----------
        images
            Pictures with ImageNet's mean and deviation taken out, at least 32 pixels a side.
        """
        return self.maps(images).mean((2, 3))

    def maps(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1280 h w"]:
        """The last map itself, of a 32nd of the pixels a side; pictures as for :meth:`features`."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(images)))
        return nn.functional.relu6(self._bn1(self._conv_head(self._blocks(x))))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1000"]:
        """The logits of ImageNet's 1000 classes."""
        logits: Tensor = self._fc(self.features(images))
        return logits


def load_efficientnet(folder: Path) -> EfficientNetLite0:
    """The network with the weights of a folder, in evaluation mode.

    Parameters
    ----------
    folder
        Holds ``model.safetensors`` and ``config.json`` with ``"architecture": "efficientnet-lite0"``.

    Raises
    ------
    NotFoundError
        When the folder holds no ``model.safetensors``.
    InputError
        When the weights are of another network, or damaged.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise NotFoundError(f"{folder} holds no model.safetensors")
    network = EfficientNetLite0()
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{weights} does not hold EfficientNet-lite0's weights: {reason}") from error
    return network.eval()


def is_efficientnet(folder: Path) -> bool:
    """Whether a folder says that it holds an EfficientNet-lite0."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("architecture") == "efficientnet-lite0"
