"""Image classification sets as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import NotFoundError, nearest
from thrifty.data.assets import ASSETS
from thrifty.data.fetch import fetch


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, split for training and testing.

    Parameters
    ----------
    train_x, test_x
        Grey levels 0-255, uint8, [N, H, W]; [N, H, W, 3] for colour.
    train_y, test_y
        Class of each image, int64, [N], in 0 … C-1.
    classes
        The C class names.
    """

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]


def images(name: str) -> ImageSet:
    """Load an image set, fetching it first if need be.

    Parameters
    ----------
    name
        ``digits`` (8x8) or ``mnist`` (28x28), of which a fixed fifth of each class is for testing, or
        ``fashion-mnist`` (28x28) with its official split.

    Returns
    -------
    ImageSet
        Its images and labels.

    Raises
    ------
    NotFoundError
        If there is no such set, or it can't be fetched.
    """
    asset = ASSETS.get(name)
    if asset is None or not asset.loader.endswith(".images"):
        known = [asset.name for asset in ASSETS.values() if asset.loader.endswith(".images")]
        raise NotFoundError(f"unknown image set {name!r}: {nearest(name, known)}")
    with np.load(fetch(name) / "images.npz", allow_pickle=False) as bundle:
        return ImageSet(
            bundle["train_x"],
            bundle["train_y"],
            bundle["test_x"],
            bundle["test_y"],
            tuple(str(label) for label in bundle["classes"]),
        )
