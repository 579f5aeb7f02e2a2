"""Classification as text: a class is a word that a language model says. Questions, few-shot splits, and how answers
are judged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from thrifty.core.errors import InputError
from thrifty.data.assets import ASSETS
from thrifty.data.image_files import LabelledImages, read_images
from thrifty.data.images import images
from thrifty.data.readers import read
from thrifty.data.records import require_columns
from thrifty.nets.pictures import open_picture

_log = logging.getLogger("thrifty")

Setting = Literal["few-shot", "base-to-new"]
SEEN, NEW = "seen", "new"


@dataclass(frozen=True)
class Example:
    """Something to be classified.

    Parameters
    ----------
    label
        Its class, as it should be said.
    text
        What is to be read; may be empty where there is a picture.
    image
        What is to be seen: a path, PIL image or array.
    """

    label: str
    text: str = ""
    image: Any = None


def readable(name: str) -> str:
    """A class name as it stands in the list of choices: without underscores, and with single spaces.

    Raises
    ------
    InputError
        When it is empty or has a comma, which stands between the choices.
    """
    said = " ".join(str(name).replace("_", " ").split())
    if not said or "," in said:
        raise InputError(f"the class name {str(name)!r} can't stand in a list of choices: rename it, without commas")
    return said


def choices(count: int, *, fraction: float = 0.4, min_n: int = 30, max_n: int = 100) -> int:
    """How many of so many classes are offered: ``int(fraction * count)``, all where that is below ``min_n``, at most
    ``max_n``."""
    offered = int(fraction * count)
    return min(count if offered < min_n else offered, max_n)


def choice_prompt(
    question: str,
    label: str,
    classes: Sequence[str],
    *,
    fraction: float = 0.4,
    min_n: int = 30,
    max_n: int = 100,
    rng: Random,
) -> str:
    """The question with a list of choices: classes drawn at random with the true one among them, in random order.

    Parameters
    ----------
    question
        Such as "What type of texture is in the photo?".
    label
        The true class.
    classes
        All of them, the true one included.
    fraction, min_n, max_n
        See :func:`choices`.
    rng
        Draws and shuffles.

    Raises
    ------
    InputError
        When the label is none of the classes.

    References
    ----------
    Li et al., "CLS-RL", arXiv 2503.16188, and its released training data.
    """
    if label not in classes:
        raise InputError(f"the label {label!r} is none of the {len(classes)} classes: {', '.join(classes[:8])} ...")
    others = [name for name in dict.fromkeys(classes) if name != label]
    offered = choices(len(others) + 1, fraction=fraction, min_n=min_n, max_n=max_n)
    chosen = [label, *rng.sample(others, offered - 1)]
    rng.shuffle(chosen)
    return f"{question}\nPlease choose one from list [ {', '.join(chosen)}]."


def accepted(completion: str, label: str) -> bool:
    """Whether an answer counts as right **when a model is evaluated**: it is the class name, or has it in it.

    Case does not count, and "_" in the label may be said as a space. What stands in ``<answer>`` tags is looked at,
    also over several lines; without them all of it. This is more lenient than the rewards, so the two are not
    comparable; "not a cat" is a cat.

    Parameters
    ----------
    completion
        What the model said.
    label
        The true class.
    """
    _, tag, rest = completion.partition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    said = (inside.strip() if tag and closed and inside.strip() else completion).lower()
    return label.lower() in said or label.lower().replace("_", " ") in said


def base_to_new(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes in two halves: those that are learnt (the larger half), and those that are only asked for.

    Raises
    ------
    InputError
        When there are fewer than four: a half needs two to choose from.
    """
    if len(classes) < 4:
        raise InputError(f"base-to-new needs at least 4 classes, there are {len(classes)}: take --setting few-shot")
    middle = math.ceil(len(classes) / 2)
    return list(classes[:middle]), list(classes[middle:])


@dataclass(frozen=True)
class Split:
    """What is learnt, and what is asked in the end.

    Parameters
    ----------
    train
        A few examples of each class to be learnt.
    classes
        These classes.
    tests
        By name, examples that are not learnt from, with the classes that are offered.
    """

    train: Sequence[Example]
    classes: Sequence[str]
    tests: Mapping[str, tuple[Sequence[Example], Sequence[str]]]


def split(examples: Sequence[Example], setting: Setting, shots: int, tests: int, rng: Random) -> Split:
    """A few examples of each class to learn from, and others to test with.

    Parameters
    ----------
    examples
        All there are.
    setting
        ``few-shot``: all classes are learnt and asked for; ``base-to-new``: half are learnt, and both halves asked for.
    shots
        Examples of each class to learn from.
    tests
        Most examples of a test.
    rng
        Draws them.

    Raises
    ------
    InputError
        When a class has too few examples to learn from and be tested with, or there are too few classes.
    """
    classes = sorted({example.label for example in examples})
    if len(classes) < 2:
        raise InputError(f"a classification needs at least two classes, the data have {len(classes)}")
    base, new = base_to_new(classes) if setting == "base-to-new" else (classes, [])
    by_class: dict[str, list[Example]] = {name: [] for name in classes}
    for example in examples:
        by_class[example.label].append(example)
    train: list[Example] = []
    for name in classes:
        rng.shuffle(by_class[name])
        if name in base:
            if len(by_class[name]) <= shots:
                raise InputError(
                    f"class {name!r} has {len(by_class[name])} examples: {shots} to learn from and at least one to "
                    "test with are needed; give fewer --shots"
                )
            train += by_class[name][:shots]
            by_class[name] = by_class[name][shots:]
    asked = {SEEN: base, NEW: new} if new else {SEEN: base}
    found = {}
    for part, names in asked.items():
        pool = [example for name in names for example in by_class[name]]
        found[part] = (rng.sample(pool, min(tests, len(pool))), names)
    return Split(train, base, found)


def read_examples(data: str, *, image_size: int | None = None, limit: int | None = None) -> list[Example]:
    """Labelled pictures or texts.

    Parameters
    ----------
    data
        A folder with one sub-folder of pictures for each class, or an NPZ file of pictures; an embedded set of
        pictures (``fashion-mnist``; its test part); or rows (JSONL, CSV, Parquet ...; ``bbc-news``, ``sarcasm``) with
        the columns ``label`` and ``text`` (or ``prompt``), or ``image``: a file's path, from where the rows are.
    image_size
        Pixels a side that a folder's pictures are resized to.
    limit
        The first so many; all by default.

    Raises
    ------
    NotFoundError
        When there is no such file or set.
    InputError
        When it holds no examples, or lacks a column.
    """
    path, asset = Path(data).expanduser(), ASSETS.get(data)
    if asset is not None and asset.loader.endswith(".images"):
        known = images(data)
        return _pictures(LabelledImages(known.test_x, known.test_y, known.classes), limit)
    if path.suffix.lower() == ".npz" or (path.is_dir() and any(part.is_dir() for part in path.iterdir())):
        return _pictures(read_images(path, size=None if image_size is None else (image_size, image_size)), limit)
    rows = list(read(data))[:limit]
    column = next((name for name in ("image", "text", "prompt") if name in rows[0]), "text")
    require_columns(rows, ["label", column], data)
    found = []
    for number, row in enumerate(rows, start=1):
        if not str(row[column] or "").strip():
            raise InputError(f"record {number} of {data} has nothing in its column {column!r}")
        text, image = str(row.get("text") or row.get("prompt") or ""), None
        if column == "image":
            image = open_picture(path.parent / str(row["image"]))
        found.append(Example(readable(row["label"]), text, image))
    return found


def _pictures(found: LabelledImages, limit: int | None) -> list[Example]:
    names = [readable(name) for name in found.classes]
    pairs = zip(found.x[:limit], found.y[:limit].tolist(), strict=True)
    return [Example(names[label], image=picture) for picture, label in pairs]
