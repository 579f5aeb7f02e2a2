"""The user's pictures, with labels or without, as one tensor cut into training and test pictures."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.core.seeding import derive_seed
from thrifty.data.image_files import read_images
from thrifty.data.images import images
from thrifty.data.letters import letters
from thrifty.nets.pictures import as_rgb

log = logging.getLogger("thrifty")
SETS = ("fashion-mnist", "digits", "mnist", "letters")
_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
FOLDER_SIZE = 32
"""Pixels a side that a folder's pictures are resized to unless something else is said."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures, and their classes where these are known.

    Parameters
    ----------
    x
        uint8 ``[N, C, H, W]``, C 1 or 3.
    y
        Class of each, int64 ``[N]``; ``None`` without labels.
    test
        Which are for testing, bool ``[N]``; ``None`` where the source does not say.
    classes
        Names of the classes; empty without labels.
    name
        What to call them.
    """

    x: UInt8[Tensor, "count channels height width"]
    y: Int[Tensor, " count"] | None
    test: Tensor | None
    classes: tuple[str, ...] = ()
    name: str = "data"

    def take(self, rows: Tensor) -> Pictures:
        """Some of them."""
        y, test = (None if part is None else part[rows] for part in (self.y, self.test))
        return Pictures(self.x[rows], y, test, self.classes, self.name)

    def resized(self, size: int) -> Pictures:
        """The same as squares of so many pixels a side."""
        if self.x.shape[-2:] == (size, size):
            return self
        parts = [
            nn.functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
            for part in self.x.split(4096)
        ]
        return Pictures(torch.cat([part.byte() for part in parts]), self.y, self.test, self.classes, self.name)


def as_pictures(x: Any) -> UInt8[Tensor, "count channels height width"]:
    """Pictures as a tensor ``[N, C, H, W]``.

    Parameters
    ----------
    x
        uint8: an array ``[N, H, W]`` or ``[N, H, W, 1 or 3]``, or a tensor ``[N, C, H, W]``.

    Raises
    ------
    InputError
        When it is of another kind or shape, or empty.
    """
    if isinstance(x, Tensor):
        tensor = x
    else:
        array = np.asarray(x)
        if array.dtype == np.uint8 and array.ndim in (3, 4):
            array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
        tensor = torch.from_numpy(np.ascontiguousarray(array)) if array.dtype.kind in "uif" else torch.empty(0)
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[1] not in (1, 3) or not len(tensor):
        raise InputError(
            f"pictures must be uint8, an array [N, H, W] or [N, H, W, 3] or a tensor [N, C, H, W], not {tensor.dtype} "
            f"{list(tensor.shape)}: scale them to 0-255"
        )
    return tensor


def read_pictures(data: str, size: int | None = None) -> Pictures:
    """Pictures from wherever they are.

    Parameters
    ----------
    data
        The name of a set (``fashion-mnist``, ``digits``, ``mnist``, ``letters``); a folder with a sub-folder for each
        class, or of pictures without classes; or an ``.npz`` file with an array ``x``, and ``y``, ``test_x`` and
        ``test_y`` where there are some. Empty: ``fashion-mnist``, or ``digits`` where that can't be fetched.
    size
        Pixels a side to resize them to. By default they stay as they are, those of a folder become 32.

    Raises
    ------
    NotFoundError
        When there is no such data.
    InputError
        When there is no picture, or one can't be read.
    """
    if not data:
        try:
            return read_pictures("fashion-mnist", size)
        except NotFoundError as error:
            log.warning("fashion-mnist is not at hand (%s): using the 8x8 digits of scikit-learn instead", error)
            return read_pictures("digits", size)
    path = Path(data).expanduser()
    if data in SETS:
        found = _named(data)
    elif path.is_dir():
        found = _folder(path, FOLDER_SIZE if size is None else size)
    elif path.suffix.lower() == ".npz" and path.exists():
        found = _arrays(path)
    elif path.exists():
        raise InputError(f"{path.name} holds no pictures: expected a folder or an .npz file")
    else:
        raise NotFoundError(f"there is no data {data!r}: {nearest(data, SETS)}".rstrip(": "))
    return found if size is None else found.resized(size)


def split_and_limit(data: Pictures, *, test_share: float, limit: int | None, seed: int) -> Pictures:
    """The same pictures, each marked as for training or testing, and no more than ``limit`` of them.

    Parameters
    ----------
    data
        A split that they bring is kept.
    test_share
        Share that is drawn for testing where they bring none, of each class where there are some.
    limit
        Pictures to keep, drawn evenly over the classes, of each of which at least one for training and one for testing
        stays; ``None`` for all.
    seed
        Of the draws.

    Raises
    ------
    InputError
        When a number is out of its range, or a class has too few pictures to be split.
    """
    if not 0 < test_share < 1:
        raise InputError(f"the test share must be between 0 and 1, not {test_share}")
    if limit is not None and limit < 4:
        raise InputError(f"the limit must be at least 4 pictures, not {limit}")
    count = len(data.x)
    order = torch.from_numpy(np.random.default_rng(derive_seed(seed, "split")).permutation(count))
    y = torch.zeros(count, dtype=torch.long) if data.y is None else data.y
    test = torch.zeros(count, dtype=torch.bool) if data.test is None else data.test.clone()
    kept: list[Tensor] = []
    for number in y.unique().tolist():
        rows = order[y[order] == number]
        if data.test is None:
            if len(rows) < 2:
                name = data.classes[number] if data.classes else "pictures"
                raise InputError(f"{name!r} has 1 picture: at least 2 are needed, for training and for testing")
            test[rows[: min(max(round(test_share * len(rows)), 1), len(rows) - 1)]] = True
        for part in (rows[test[rows]], rows[~test[rows]]):
            most = len(part) if limit is None else max(round(len(part) * limit / count), 1)
            kept.append(part[:most])
    chosen = torch.cat(kept).sort().values
    return Pictures(data.x, data.y, test, data.classes, data.name).take(chosen)


def _named(name: str) -> Pictures:
    if name == "letters":
        drawn = letters()
        return Pictures(as_pictures(drawn.images), torch.from_numpy(drawn.labels), None, drawn.letters, name)
    found = images(name)
    x = as_pictures(np.concatenate([found.train_x, found.test_x]))
    y = torch.from_numpy(np.concatenate([found.train_y, found.test_y]))
    return Pictures(x, y, torch.arange(len(y)) >= len(found.train_y), found.classes, name)


def _folder(path: Path, size: int) -> Pictures:
    if any(inside.is_dir() for inside in path.iterdir()):
        found = read_images(path, size=(size, size))
        return Pictures(as_pictures(found.x), torch.from_numpy(found.y), None, found.classes, path.name)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _FILES)
    if not files:
        raise InputError(f"{path.name} has no pictures: expected .png or .jpg files, or a sub-folder of them per class")
    parts = [Pictures(as_pictures(as_rgb(file)[None]), None, None).resized(size).x for file in files]
    x = torch.cat(parts)
    grey = bool((x == x[:, :1]).all())
    return Pictures(x[:, :1] if grey else x, None, None, (), path.name)


def _arrays(path: Path) -> Pictures:
    try:
        with np.load(path, allow_pickle=False) as bundle:
            arrays = {name: bundle[name] for name in bundle.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is no readable NPZ file without pickles ({type(error).__name__})") from error
    if "x" not in arrays:
        raise InputError(f"{path.name} has no array 'x': it has {', '.join(arrays) or 'none'}")
    if ("test_x" in arrays) != ("test_y" in arrays) or ("test_x" in arrays and "y" not in arrays):
        raise InputError(f"{path.name} has test pictures without their classes: y, test_x and test_y go together")
    parts = [(arrays["x"], arrays.get("y"))]
    if "test_x" in arrays:
        parts.append((arrays["test_x"], arrays["test_y"]))
    for x, y in parts:
        if y is not None and y.shape != x.shape[:1]:
            raise InputError(f"{path.name}: there are {len(y)} labels for {len(x)} pictures")
    x = torch.cat([as_pictures(_bytes(part, path.name)) for part, _ in parts])
    test = torch.arange(len(x)) >= len(parts[0][0]) if len(parts) > 1 else None
    if parts[0][1] is None:
        return Pictures(x, None, test, (), path.name)
    labels: NDArray[Any] = np.concatenate([y for _, y in parts if y is not None])
    names, numbers = np.unique(labels, return_inverse=True)
    return Pictures(x, torch.from_numpy(numbers.astype(np.int64)), test, tuple(map(str, names)), path.name)


def _bytes(x: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if x.dtype.kind == "f":
        if not ((x >= 0) & (x <= 1)).all():
            raise InputError(f"{name}: pictures of floats must be between 0 and 1, without NaN (integers: 0 to 255)")
        x = np.rint(x * 255)
    elif x.dtype.kind not in "ui" or ((x < 0) | (x > 255)).any():
        raise InputError(f"{name}: pictures must be integers from 0 to 255, or floats from 0 to 1, not {x.dtype}")
    return x.astype(np.uint8)
