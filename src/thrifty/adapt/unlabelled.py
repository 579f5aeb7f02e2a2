"""Queries of the user's: pictures, texts or features whose classes are asked for, and may be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.adapt.accumulator import Labels
from thrifty.adapt.data import PICTURE_FILES, Kind, npz_arrays, read_labelled
from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.readers import read


def read_queries(
    place: str, kind: Kind, *, text_column: str = "text", label_column: str = "label"
) -> tuple[Any, Labels | None, list[str]]:
    """What to label.

    Parameters
    ----------
    place
        A folder of pictures, or with a sub-folder of them for each class; an NPZ file with an array ``x``, and ``y``
        where the classes are known; or a table of texts, with a column of labels or without.
    kind
        What the support holds: the queries must be of that kind.
    text_column, label_column
        Columns of a table.

    Returns
    -------
    inputs
        N pictures, texts, or features.
    labels
        ``[N]``, where they are known.
    names
        What to call each: its file, or its number.

    Raises
    ------
    NotFoundError
        When there is nothing of that name.
    InputError
        When it holds nothing, or things of another kind.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise NotFoundError(
            f"there are no queries {place!r}: give a folder of pictures, an NPZ file or a table of texts"
        )
    if path.is_dir():
        inputs, labels, names = _pictures(path)
        found: Kind = "pictures"
    elif path.suffix.lower() == ".npz":
        inputs, labels = _arrays(path)
        names, found = [str(number) for number in range(len(inputs))], "features" if inputs.ndim == 2 else "pictures"
    else:
        rows = read(path)
        known = label_column in rows.columns
        inputs, found = list(rows[text_column]), "texts"
        labels = read_labelled(place, text_column=text_column, label_column=label_column).labels if known else None
        names = [str(number) for number in range(len(inputs))]
    if found != kind:
        raise InputError(f"the support holds {kind}, but {path.name} holds {found}: both must be of one kind")
    if not len(inputs):
        raise InputError(f"{path.name} holds no query")
    return inputs, labels, names


def _pictures(path: Path) -> tuple[list[Path], Labels | None, list[str]]:
    if any(inside.is_dir() for inside in path.iterdir()):
        data = read_labelled(str(path))
        return list(data.inputs), data.labels, [str(Path(file).relative_to(path)) for file in data.inputs]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_FILES)
    if not files:
        raise InputError(f"{path.name} has no pictures: expected .png or .jpg files")
    return files, None, [file.name for file in files]


def _arrays(path: Path) -> tuple[Any, Labels | None]:
    arrays = npz_arrays(path)
    if "x" not in arrays:
        raise InputError(f"{path.name} has no array 'x': it has {', '.join(arrays) or 'none'}")
    if "y" in arrays and len(arrays["y"]) != len(arrays["x"]):
        raise InputError(f"{path.name}: {len(arrays['x'])} queries came with {len(arrays['y'])} labels")
    return arrays["x"], arrays.get("y")
