"""Random views of pictures, made by kornia on a batch of tensors, each picture by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.data.optional import need

Recipe = Literal["natural", "drawing", "none"]


@dataclass(frozen=True)
class Views:
    """How random views of pictures are made, in this order.

    Parameters
    ----------
    crop
        Smallest share of the area that is cut out, and resized to the whole; 1 for no crop.
    flip
        Share of pictures that are mirrored left to right.
    rotation
        Largest turn either way, in degrees.
    shift
        Largest shift along each axis, as a share of the side.
    jitter
        How far brightness and contrast change at most, as a share; in colour, saturation as far and the hue a quarter
        as far.
    jitter_share
        Share of pictures whose colours change.
    grey
        Share of colour pictures that lose their colour.
    blur
        Share of pictures that are blurred.
    noise
        Deviation of noise that is added, on a scale on which white is 1.

    Raises
    ------
    InputError
        When a value is out of its range.
    """

    crop: float = 0.2
    flip: float = 0.5
    rotation: float = 0.0
    shift: float = 0.0
    jitter: float = 0.4
    jitter_share: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise InputError(f"crop must be above 0 and at most 1, not {self.crop:g}")
        for field in fields(self):
            value = getattr(self, field.name)
            most = {"rotation": 180.0}.get(field.name, 1.0)
            if not 0 <= value <= most:
                raise InputError(f"{field.name} must be between 0 and {most:g}, not {value:g}")


RECIPES: Mapping[Recipe, Views] = {
    # SimCLR's for small pictures, as BYOL and SimSiam take it on CIFAR-10 and STL-10.
    "natural": Views(),
    # What stays the same drawing: letters and digits are others when mirrored or cut in half.
    "drawing": Views(crop=0.6, flip=0.0, rotation=10.0, shift=0.05, noise=0.1),
    "none": Views(crop=1.0, flip=0.0, jitter=0.0, jitter_share=0.0, grey=0.0),
}


class Augmentation(nn.Module):
    """Makes a random view of each picture of a batch.

    Random numbers come from PyTorch's global generator, whose state is in a run's checkpoints.

    Parameters
    ----------
    views
        What is done, or the name of a recipe: ``natural`` (crops, mirroring, colours), ``drawing`` (no mirroring) or
        ``none``.
    size
        Height and width of the pictures.
    channels
        1 for grey, 3 for colour.

    Raises
    ------
    InputError
        When kornia is not installed, or the channels are neither 1 nor 3.
    """

    def __init__(self, views: Views | Recipe, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise InputError(f"pictures must have 1 or 3 channels, not {channels}")
        v = RECIPES[views] if isinstance(views, str) else views
        kornia = need("kornia.augmentation", "vision", "Augmented pictures")
        steps: list[nn.Module] = []
        if v.crop < 1:
            # "resample" cuts all pictures in one call, "slice" one after the other.
            steps.append(kornia.RandomResizedCrop(size, scale=(v.crop, 1.0), cropping_mode="resample"))
        if v.rotation or v.shift:
            steps.append(kornia.RandomAffine(v.rotation, translate=(v.shift, v.shift), p=1.0))
        if v.flip:
            steps.append(kornia.RandomHorizontalFlip(p=v.flip))
        if v.jitter and v.jitter_share:
            colour = (v.jitter, v.jitter / 4) if channels == 3 else (0.0, 0.0)
            steps.append(kornia.ColorJitter(v.jitter, v.jitter, *colour, p=v.jitter_share))
        if v.grey and channels == 3:
            steps.append(kornia.RandomGrayscale(p=v.grey))
        if v.blur:
            side = max(3, min(size) // 10 * 2 + 1)
            steps.append(kornia.RandomGaussianBlur((side, side), (0.1, 2.0), p=v.blur))
        self.steps, self.noise = nn.Sequential(*steps), v.noise

    @torch.no_grad()
    def forward(self, pictures: Float[Tensor, "batch channels height width"]) -> Tensor:
        """The views, of the pictures' size and range, 0 to 1."""
        out: Tensor = self.steps(pictures)
        return (out + self.noise * torch.randn_like(out)).clamp(0, 1) if self.noise else out


def crop_and_flip(
    pictures: Float[Tensor, "batch channels height width"], padding: int, flip: float
) -> Float[Tensor, "batch channels height width"]:
    """Each picture shifted by up to ``padding`` pixels along each axis, black coming in, and mirrored at random.

    Parameters
    ----------
    pictures
        Any range; black is their least value.
    padding
        Most pixels.
    flip
        Share of pictures that are mirrored.
    """
    count, _, height, width = pictures.shape
    device = pictures.device
    black = float(pictures.min())
    padded = nn.functional.pad(pictures, (padding,) * 4, value=black)
    top, left = torch.randint(2 * padding + 1, (2, count, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    mirrored = torch.rand(count, 1, device=device) < flip
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded.permute(0, 2, 3, 1)[
        torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)
