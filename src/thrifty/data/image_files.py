"""Users' labelled images: folders with one sub-folder per class, and NPZ files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.optional import first_line

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of a user's with their classes.

    Parameters
    ----------
    x
        Pixels, [N, H, W] or [N, H, W, 3]; uint8 from an image folder, as stored from NPZ.
    y
        Class of each image, int64, [N], in 0 … C-1.
    classes
        The C class names.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    classes: tuple[str, ...]


def read_images(path: str | Path, *, size: tuple[int, int] | None = None) -> LabelledImages:
    """Read labelled images from a folder with one sub-folder per class, or an NPZ file with arrays ``x`` and ``y``.

    Parameters
    ----------
    path
        The folder or file. Grey images give [N, H, W]; one colour image among them makes all colour.
    size
        Height and width to resize a folder's images to; None if they all have the same.

    Returns
    -------
    LabelledImages
        At least one image.

    Raises
    ------
    NotFoundError
        If there is no such path.
    InputError
        If it holds no images, an image can't be read or has another size, or an array is missing or does not fit.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise NotFoundError(f"no file or folder {str(path)!r}")
    return _image_folder(path, size) if path.is_dir() else _image_arrays(path)


def _image_folder(path: Path, size: tuple[int, int] | None) -> LabelledImages:
    files = {
        folder.name: sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
        for folder in sorted(path.iterdir())
        if folder.is_dir()
    }
    files = {name: inside for name, inside in files.items() if inside}
    if not files:
        raise InputError(
            f"{path.name} has no images: expected one sub-folder per class with {', '.join(sorted(_PICTURES))}"
        )
    images = [_picture(file, size) for inside in files.values() for file in inside]
    first = images[0].shape[:2]
    odd = next((at for at, image in enumerate(images) if image.shape[:2] != first), None)
    if odd is not None:
        file = [file for inside in files.values() for file in inside][odd]
        raise InputError(
            f"{file.parent.name}/{file.name} is {images[odd].shape[0]}x{images[odd].shape[1]}, the first image is "
            f"{first[0]}x{first[1]}: give size=(height, width) to resize them all"
        )
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    y = np.repeat(np.arange(len(files)), [len(inside) for inside in files.values()])
    return LabelledImages(np.stack(images), y.astype(np.int64), tuple(files))


def _picture(file: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            grey = picture.mode in ("1", "L", "I;16", "I")
            converted = picture.convert("L" if grey else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file.parent.name}/{file.name} is not a readable image: {first_line(error)}") from error
    if size is not None:
        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8)


def _image_arrays(path: Path) -> LabelledImages:
    try:
        with np.load(path, allow_pickle=False) as bundle:
            for name in ("x", "y"):
                if name not in bundle.files:
                    raise InputError(f"{path.name} has no array {name!r}: it has {', '.join(bundle.files) or 'none'}")
            x, y = bundle["x"], bundle["y"]
    except InputError:
        raise
    except Exception as error:  # NumPy raises many kinds for what is no NPZ file, or holds pickled objects
        raise InputError(f"{path.name} is not a readable NPZ file without pickles: {first_line(error)}") from error
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3) or y.shape != x.shape[:1] or len(x) == 0:
        raise InputError(
            f"{path.name}: x is {list(x.shape)} and y is {list(y.shape)}, expected [N, H, W] or [N, H, W, 3], and [N]"
        )
    if x.dtype.kind not in "uif" or y.dtype.kind not in "uiU":
        raise InputError(f"{path.name}: x is {x.dtype} and y is {y.dtype}, expected pixels, and integers or names")
    if not np.isfinite(x).all():
        raise InputError(f"{path.name}: x has NaN or infinite values")
    names, numbers = np.unique(y, return_inverse=True)
    return LabelledImages(x, numbers.astype(np.int64), tuple(str(name) for name in names))
