"""Pictures of any kind (arrays, tensors, files, PIL images) as RGB batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.core.errors import InputError, NotFoundError


def open_picture(path: str | Path) -> NDArray[np.uint8]:
    """A picture file as RGB, uint8 ``[H, W, 3]``; what is transparent becomes white.

    Raises
    ------
    NotFoundError
        When there is no such file.
    InputError
        When it is no picture, or a damaged one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return _from_pil(image)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no picture {path}") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{path} is no picture that can be read ({type(error).__name__})") from error


def _from_pil(image: Any) -> NDArray[np.uint8]:
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def as_rgb(picture: Any) -> NDArray[np.uint8]:
    """One picture as RGB, uint8 ``[H, W, 3]``.

    Parameters
    ----------
    picture
        A file's path, a PIL image, or an array or tensor ``[H, W]`` or ``[H, W, 1 or 3]``: integers 0-255 or floats
        0-1.

    Raises
    ------
    InputError
        When it is something else, or its numbers are outside of that range.
    """
    if isinstance(picture, (str, Path)):
        return open_picture(picture)
    if hasattr(picture, "convert"):
        return _from_pil(picture)
    return np.ascontiguousarray(_rgb_batch(np.asarray(picture)[None])[0])


def rgb_batches(pictures: Any) -> list[NDArray[np.uint8]]:
    """Pictures as RGB batches ``[B, H, W, 3]`` of one size each, in order; a single one where all have one size."""
    if isinstance(pictures, Tensor):
        pictures = pictures.cpu().numpy()
    if isinstance(pictures, np.ndarray) and pictures.dtype.kind != "O":
        return [_rgb_batch(pictures)]
    singles = [as_rgb(picture) for picture in pictures]
    if len({single.shape for single in singles}) == 1:
        return [np.stack(singles)]
    return [single[None] for single in singles]


def _rgb_batch(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3):
        raise InputError(f"pictures must be [N, H, W] or [N, H, W, 1 or 3], not {list(pictures.shape)}")
    if pictures.dtype.kind == "f":
        if not ((pictures >= 0) & (pictures <= 1)).all():
            raise InputError("pictures of floats must be between 0 and 1 (integers: between 0 and 255)")
        pictures = np.rint(pictures * 255)
    elif pictures.dtype != np.uint8 and ((pictures < 0) | (pictures > 255)).any():
        raise InputError("pictures of integers must be between 0 and 255")
    return np.broadcast_to(pictures.astype(np.uint8, copy=False), (*pictures.shape[:3], 3))


def resized(pictures: Sequence[Any] | NDArray[Any] | Tensor, size: int) -> Float[Tensor, "B 3 size size"]:
    """Pictures as float32 between 0 and 1, bilinearly resampled (with antialiasing) to a square.

    The shape is not kept: a picture that is no square is squeezed into one, nothing is cut off.
    """
    parts = []
    for batch in rgb_batches(pictures):
        grey = batch.strides[-1] == 0
        channels = batch[..., :1] if grey else batch
        x = torch.from_numpy(np.require(channels, requirements=["C", "W"])).permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (size, size):
            x = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(
                0, 1
            )
        parts.append(x.expand(-1, 3, -1, -1))
    return torch.cat(parts)
