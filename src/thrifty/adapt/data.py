"""Labelled pictures, texts or features of the user's, cut into training and test examples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.core.seeding import derive_seed
from thrifty.data.images import images
from thrifty.data.letters import letters
from thrifty.data.readers import read
from thrifty.data.text import texts

log = logging.getLogger("thrifty")
Kind = Literal["pictures", "texts", "features"]
PICTURE_SETS, TEXT_SETS = ("fashion-mnist", "digits", "mnist"), ("sarcasm", "bbc-news", "spam")
PICTURE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True, eq=False)
class Labelled:
    """Examples with labels.

    Parameters
    ----------
    inputs
        N pictures (array or paths), texts, or a feature array ``[N, D]``.
    labels
        ``[N]`` integers or strings.
    test
        Which examples are for testing, bool ``[N]``; ``None`` where the source does not say.
    kind
        What the inputs are.
    domains
        The domain of each example, where the source says.
    name
        What to call it.
    """

    inputs: Any
    labels: Labels
    test: NDArray[np.bool_] | None
    kind: Kind
    domains: Labels | None = None
    name: str = "data"

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        """Some of the examples."""
        array = isinstance(self.inputs, np.ndarray)
        inputs = self.inputs[rows] if array else [self.inputs[row] for row in rows.tolist()]
        test = None if self.test is None else self.test[rows]
        domains = None if self.domains is None else self.domains[rows]
        return Labelled(inputs, self.labels[rows], test, self.kind, domains, self.name)


def read_labelled(
    data: str,
    *,
    text_column: str = "text",
    label_column: str = "label",
    domain_column: str | None = None,
) -> Labelled:
    """Labelled examples from wherever they are.

    Parameters
    ----------
    data
        A set's name (``fashion-mnist``, ``digits``, ``mnist``, ``letters``, ``sarcasm``, ``bbc-news``, ``spam``); a
        folder with a sub-folder of pictures for each class, or ``train`` and ``test`` folders of such; an ``.npz`` file
        with arrays ``x`` and ``y``, and ``test_x``, ``test_y``, ``domain`` where there are some; or a table of texts
        (CSV, JSONL, Parquet). Empty: ``fashion-mnist``, or ``digits`` where that can't be fetched.
    text_column, label_column, domain_column
        Columns of a table.

    Raises
    ------
    NotFoundError
        When there is no such data.
    InputError
        When a column or array is missing, a text or label is missing, or there is no example.
    """
    if not data:
        try:
            return read_labelled("fashion-mnist")
        except NotFoundError as error:
            log.warning("fashion-mnist is not at hand (%s): using the 8x8 digits of scikit-learn instead", error)
            return read_labelled("digits")
    if data in PICTURE_SETS:
        found = images(data)
        names = np.array(found.classes)
        labels = names[np.concatenate([found.train_y, found.test_y])]
        test = np.arange(len(labels)) >= len(found.train_y)
        return Labelled(np.concatenate([found.train_x, found.test_x]), labels, test, "pictures", name=data)
    if data == "letters":
        drawn = letters()
        return Labelled(drawn.images, drawn.labels, None, "pictures", drawn.font, data)
    if data in TEXT_SETS:
        split = texts(data)
        names = np.array(split.classes)
        labels = names[np.concatenate([split.train_labels, split.test_labels])]
        test = np.arange(len(labels)) >= len(split.train_labels)
        return Labelled([*split.train_texts, *split.test_texts], labels, test, "texts", name=data)
    path = Path(data).expanduser()
    if path.is_dir() and any(inside.is_dir() for inside in path.iterdir()):
        return _folder(path)
    if path.suffix.lower() == ".npz" and path.exists():
        return _arrays(path)
    if not path.exists():
        hint = nearest(data, (*PICTURE_SETS, "letters", *TEXT_SETS))
        raise NotFoundError(f"there is no data {data!r}: {hint}".rstrip(": "))
    return _table(path, text_column, label_column, domain_column)


def split_and_limit(data: Labelled, *, test_share: float, limit: int | None, seed: int) -> Labelled:
    """The same examples, each marked as for training or testing, and no more than ``limit`` of them.

    Parameters
    ----------
    data
        Examples; a split that they bring is kept.
    test_share
        Share of each class, in (0, 1), that is drawn for testing where they bring none.
    limit
        Examples to keep, drawn evenly; at least one of each class for training and testing stays. ``None`` for all.
    seed
        Of the draws.

    Raises
    ------
    InputError
        When the share or the limit is out of range, or a class has too few examples to be split.
    """
    if not 0 < test_share < 1:
        raise InputError(f"the test share must be between 0 and 1, not {test_share}")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 example, not {limit}")
    random = np.random.default_rng(derive_seed(seed, "split"))
    count = len(data.labels)
    shuffled = random.permutation(count)
    kept: list[NDArray[np.int64]] = []
    test = np.zeros(count, dtype=bool) if data.test is None else data.test
    for name in np.unique(data.labels).tolist():
        rows = shuffled[data.labels[shuffled] == name]
        if data.test is None:
            if len(rows) < 2:
                raise InputError(f"class {name!r} has 1 example: it needs at least 2, for training and for testing")
            test[rows[: min(max(round(test_share * len(rows)), 1), len(rows) - 1)]] = True
        for part in (rows[test[rows]], rows[~test[rows]]):
            most = len(part) if limit is None else max(round(len(part) * limit / count), 1)
            kept.append(part[:most])
    chosen = np.sort(np.concatenate(kept))
    return Labelled(data.inputs, data.labels, test, data.kind, data.domains, data.name).take(chosen)


def _folder(path: Path) -> Labelled:
    parts = [path / "train", path / "test"]
    given = all(part.is_dir() for part in parts)
    files: list[Path] = []
    labels: list[str] = []
    test: list[bool] = []
    for part in parts if given else [path]:
        for folder in sorted(inside for inside in part.iterdir() if inside.is_dir()):
            found = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURE_FILES)
            files += found
            labels += [folder.name] * len(found)
            test += [part.name == "test"] * len(found)
    if not files:
        raise InputError(f"{path.name} has no pictures: expected a sub-folder for each class with .png or .jpg files")
    return Labelled(files, np.array(labels), np.array(test) if given else None, "pictures", name=path.name)


def npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an NPZ file.

    Raises
    ------
    InputError
        When it is none, or holds pickles.
    """
    try:
        with np.load(path, allow_pickle=False) as bundle:
            return {name: bundle[name] for name in bundle.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is no readable NPZ file without pickles ({type(error).__name__})") from error


def _arrays(path: Path) -> Labelled:
    arrays = npz_arrays(path)
    for name in ("x", "y"):
        if name not in arrays:
            raise InputError(f"{path.name} has no array {name!r}: it has {', '.join(arrays) or 'none'}")
    inputs, labels = arrays["x"], as_labels(arrays["y"])
    test = None
    if ("test_x" in arrays) != ("test_y" in arrays):
        raise InputError(f"{path.name} has one of test_x and test_y: both are needed")
    if "test_x" in arrays:
        held = arrays["test_x"]
        if held.shape[1:] != inputs.shape[1:]:
            raise InputError(f"{path.name}: test_x is {list(held.shape)}, x is {list(inputs.shape)}")
        test = np.arange(len(inputs) + len(held)) >= len(inputs)
        inputs, labels = np.concatenate([inputs, held]), np.concatenate([labels, as_labels(arrays["test_y"])])
    if inputs.ndim not in (2, 3, 4) or len(inputs) != len(labels) or not len(inputs):
        raise InputError(
            f"{path.name}: x is {list(inputs.shape)} and there are {len(labels)} labels, expected features [N, D] or "
            "pictures [N, H, W] or [N, H, W, 3], and N labels"
        )
    domains = as_labels(arrays["domain"]) if "domain" in arrays else None
    if domains is not None and len(domains) != len(labels):
        raise InputError(f"{path.name}: there are {len(domains)} domains for {len(labels)} examples")
    return Labelled(inputs, labels, test, "features" if inputs.ndim == 2 else "pictures", domains, path.name)


def _table(path: Path, text_column: str, label_column: str, domain_column: str | None) -> Labelled:
    extra = [] if domain_column is None else [domain_column]
    rows = read(path, columns=[text_column, label_column, *extra])
    written = rows[text_column]
    for number, text in enumerate(written):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{path.name}: row {number + 1} has no {text_column!r}: fill it in or leave it out")
    labels = _column(rows[label_column], path, label_column)
    domains = _column(rows[domain_column], path, domain_column) if domain_column is not None else None
    return Labelled(list(written), labels, None, "texts", domains, path.name)


def _column(values: Sequence[Any], path: Path, name: str) -> Labels:
    for number, value in enumerate(values):
        if value is None or value == "":
            raise InputError(f"{path.name}: row {number + 1} has no value in {name!r}: fill it in or leave it out")
    if any(isinstance(value, str) for value in values):
        return np.array([str(value) for value in values])
    return as_labels(np.array(values))


def some_letters(classes: int = 200, drawings: int = 16) -> Labelled:
    """Letters that many fonts draw, as many drawings of each: always the same, so that features are computed once.

    Parameters
    ----------
    classes
        How many letters.
    drawings
        How many drawings of each.

    Raises
    ------
    InputError
        When there are fewer letters with so many drawings.
    """
    drawn = letters()
    random = np.random.default_rng(0)
    having = np.flatnonzero(np.bincount(drawn.labels) >= drawings)
    if len(having) < classes:
        raise InputError(
            f"{len(having)} letters have {drawings} drawings, fewer than {classes}: ask for fewer of either"
        )
    pool = random.permutation(having)[:classes]
    rows = np.concatenate([random.permutation(np.flatnonzero(drawn.labels == name))[:drawings] for name in pool])
    return Labelled(drawn.images[rows], drawn.labels[rows], None, "pictures", drawn.font[rows], "letters")


def place_in_class(labels: Labels) -> NDArray[np.float64]:
    """Where each example stands among those of its class, from 0 to below 1: what is below 0.75 is three quarters of
    each class."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    place = np.empty(len(codes))
    place[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place / counts[codes]
