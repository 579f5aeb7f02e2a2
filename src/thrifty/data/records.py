"""Tables of examples in the form the ecosystem passes around: a list of dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from thrifty.core.atomic import replacing
from thrifty.core.errors import ExistsError, InputError, nearest


class Records(Sequence[dict[str, Any]]):
    """Rows that can also be read by column.

    ``records[3]`` is a row, ``records[2:5]`` are some rows, ``records["prompt"]`` is a column.

    Parameters
    ----------
    rows
        One dictionary per example.
    source
        What errors call it: the file's name.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], source: str = "records") -> None:
        self.rows = [dict(row) for row in rows]
        self.source = source

    @property
    def columns(self) -> tuple[str, ...]:
        """All column names, in the order they first occur."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    @overload
    def __getitem__(self, index: str) -> list[Any]: ...
    def __getitem__(self, index: int | slice | str) -> dict[str, Any] | Records | list[Any]:
        if isinstance(index, str):
            require_columns(self, [index], self.source)
            return [row[index] for row in self.rows]
        if isinstance(index, slice):
            return Records(self.rows[index], self.source)
        return self.rows[index]

    def __repr__(self) -> str:
        return f"Records({len(self)} rows of {', '.join(self.columns)} from {self.source})"


def require_columns(records: Iterable[Mapping[str, Any]], names: Sequence[str], source: str) -> None:
    """Make sure that every row has the columns.

    Parameters
    ----------
    records
        The rows.
    names
        Columns that must be there.
    source
        What the error calls the rows: the file's name.

    Raises
    ------
    InputError
        If there is no row, or for the first column that is missing: it names the column, those there, and the
        nearest of them; where only some rows lack it, the first of these.
    """
    rows = list(records)
    if not rows:
        raise InputError(f"{source} is empty: expected rows with {', '.join(names) or 'data'}")
    for name in names:
        lacking = [at for at, row in enumerate(rows) if name not in row]
        if len(lacking) == len(rows):
            there = list(dict.fromkeys(column for row in rows for column in row))
            hint = nearest(name, there) if len(there) > 12 else f"it has {', '.join(there)}"
            close = nearest(name, there)
            meant = f"; {close}" if close.startswith("did you mean") and len(there) <= 12 else ""
            raise InputError(f"{source} has no column {name!r}: {hint}{meant}")
        if lacking:
            raise InputError(
                f"{source}: row {lacking[0] + 1} has no {name!r} ({len(lacking)} of {len(rows)} rows lack it): "
                f"add it or leave these rows out"
            )


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]], *, overwrite: bool = False) -> Path:
    """Write rows as JSON lines, whole or not at all.

    Parameters
    ----------
    path
        The file.
    records
        One mapping per line; NumPy numbers and arrays are written as numbers and lists.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ExistsError
        If it exists and may not be replaced.
    InputError
        If a row holds what JSON can't express.
    DiskFullError
        If there is no room; an existing file is untouched.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists: choose another name, or ask to overwrite it")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for number, row in enumerate(records, start=1):
            try:
                line = json.dumps(dict(row), ensure_ascii=False, default=_plain)
            except (TypeError, ValueError) as error:
                raise InputError(f"row {number} can't be written to {path} as JSON: {error}") from error
            out.write(line + "\n")
    return path


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
