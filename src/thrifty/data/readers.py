"""Readers of users' data; here those of rows (JSONL, Parquet, CSV, saved datasets), beside them images and episodes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data.episode_files import read_minari
from thrifty.data.image_files import LabelledImages, read_images
from thrifty.data.optional import first_line, need
from thrifty.data.records import Records, require_columns, write_jsonl

__all__ = ["LabelledImages", "Records", "read", "read_images", "read_minari", "require_columns", "write_jsonl"]


def read(path_or_name: str | Path, *, columns: Sequence[str] | None = None) -> Records:
    """Read examples.

    Parameters
    ----------
    path_or_name
        A ``.jsonl``, ``.json``, ``.parquet`` or ``.csv`` file; a folder that ``Dataset.save_to_disk`` wrote; a folder
        of files of one of these kinds; or the name of a text set such as ``sarcasm``.
    columns
        Columns to keep, in this order; None for all.

    Returns
    -------
    Records
        The rows, at least one.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it is empty, broken (a broken JSON line is named by its number), of another kind, or lacks a column.
    """
    path = _located(path_or_name)
    rows = _rows(path)
    require_columns(rows, columns or (), path.name)
    if columns is not None:
        rows = [{name: row[name] for name in columns} for row in rows]
    return Records(rows, path.name)


def _located(path_or_name: str | Path) -> Path:
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    from thrifty.data.assets import ASSETS
    from thrifty.data.fetch import fetch

    texts = [asset.name for asset in ASSETS.values() if asset.kind == "text"]
    if str(path_or_name) in texts:
        return fetch(str(path_or_name)) / "texts.jsonl"
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise NotFoundError(f"no file {str(path_or_name)!r}: {nearest(path.name, beside + texts)}".rstrip(": "))


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return _read_folder(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.name} is of an unknown kind: expected {', '.join(sorted(_READERS))} or a saved dataset"
        )
    return reader(path)


def _read_folder(path: Path) -> list[dict[str, Any]]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _read_saved(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if not files or len({file.suffix.lower() for file in files}) > 1:
        raise InputError(
            f"{path.name} is neither a saved dataset nor a folder of files of one kind "
            f"({', '.join(sorted(_READERS))}): name the file to read"
        )
    return [row for file in files for row in _rows(file)]


def _read_saved(path: Path) -> list[dict[str, Any]]:
    datasets = need("datasets", "lm", "saved datasets")
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever Arrow or the library's own files make it raise
        raise InputError(f"{path.name} is not a readable saved dataset: {first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found and len(found) != 1:
            raise InputError(f"{path.name} has the splits {', '.join(found)}: give the folder of one of them")
        found = found["train"] if "train" in found else next(iter(found.values()))
    return list(found)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"{path.name}: line {number} is not UTF-8; fix or delete it") from error
            except ValueError as error:
                raise InputError(f"{path.name}: line {number} is not JSON ({error}); fix or delete it") from error
            if not isinstance(row, dict):
                raise InputError(f"{path.name}: line {number} is a {type(row).__name__}, expected an object {{...}}")
            rows.append(row)
    return rows


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path.name} is not JSON ({error}); name it .jsonl if it has one object per line") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path.name}: expected a list of objects")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    parquet = need("pyarrow.parquet", "lm", "Parquet files")
    try:
        return list(parquet.read_table(path).to_pylist())
    except (OSError, ValueError) as error:  # Arrow's errors derive from these
        raise InputError(f"{path.name} is not a readable Parquet file: {first_line(error)}") from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = next(lines, [])
            rows = []
            for row in lines:
                if row and len(row) != len(header):
                    raise InputError(
                        f"{path.name}: line {lines.line_num} has {len(row)} fields, the header has {len(header)}"
                    )
                if row:
                    rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not a readable CSV file in UTF-8: {first_line(error)}") from error
    typed = [_typed([row[at] for row in rows]) for at in range(len(header))]
    return [dict(zip(header, values, strict=True)) for values in zip(*typed, strict=True)]


def _typed(cells: list[str]) -> list[Any]:
    """A CSV column as integers or floats if all of it is, with None for empty cells; else as text."""
    for kind in (int, float):
        try:
            return [kind(cell) if cell.strip() else None for cell in cells]
        except ValueError:
            continue
    return list(cells)


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
