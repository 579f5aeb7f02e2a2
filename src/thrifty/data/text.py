"""Text classification sets as lists of strings and NumPy labels."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import NotFoundError, nearest
from thrifty.data.assets import ASSETS
from thrifty.data.fetch import fetch


@dataclass(frozen=True, eq=False)
class TextSet:
    """Labelled texts, split for training and testing; no text is in both parts.

    Parameters
    ----------
    train_texts, test_texts
        N strings each.
    train_labels, test_labels
        Class of each text, int64, [N], in 0 … C-1.
    classes
        The C class names.
    """

    train_texts: tuple[str, ...]
    train_labels: NDArray[np.int64]
    test_texts: tuple[str, ...]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]


def texts(name: str) -> TextSet:
    """Load a text set, fetching it first if need be.

    Repeated texts occur once; a fixed fifth of each class is for testing.

    Parameters
    ----------
    name
        ``sarcasm`` (news headlines), ``bbc-news`` (articles in five topics) or ``spam`` (e-mails: subject and body).

    Returns
    -------
    TextSet
        Its texts and labels.

    Raises
    ------
    NotFoundError
        If there is no such set, or it can't be fetched.
    """
    known = [asset.name for asset in ASSETS.values() if asset.kind == "text"]
    if name not in known:
        raise NotFoundError(f"unknown text set {name!r}: {nearest(name, known)}")
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    with (fetch(name) / "texts.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows[row["split"]].append((row["text"], row["label"]))
    classes = tuple(sorted({label for part in rows.values() for _, label in part}))
    number = {label: index for index, label in enumerate(classes)}

    def labels(part: str) -> NDArray[np.int64]:
        return np.array([number[label] for _, label in rows[part]], dtype=np.int64)

    def content(part: str) -> tuple[str, ...]:
        return tuple(text for text, _ in rows[part])

    return TextSet(content("train"), labels("train"), content("test"), labels("test"), classes)
