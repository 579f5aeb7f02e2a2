"""The index of papers: what each one gives, what it needs, and which module implements it.

The entries live in ``papers.toml`` beside the package. Nothing heavy is imported here, so that ``thrifty list`` answers
at once.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from typing import Any

from thrifty.core.errors import InputError, NotFoundError, nearest

ROOMS: dict[str, str] = {
    "align": "tune a language model from ratings, preferences, sources or verifiers",
    "reward": "where a reward comes from: verifiers, outcome and process reward models, CLIP, preferences",
    "select": "which examples are worth training on or labelling",
    "represent": "features without labels, or classifiers from weak ones",
    "adapt": "new classes, tasks or domains on a pretrained model with a handful of labels or none",
    "forget": "remove data or a skill from a trained model",
    "shrink": "a smaller model: prune, sparsify, search, distil, extract",
    "control": "policies from logged or live environment data",
    "steer": "better outputs of a pretrained generator or vision-language model, without retraining it",
    "tune": "cheaper ways to train: adapters, optimizers, bilevel, training without back-propagation",
    "scale": "more than one device",
}
"""Room name to what its user wants done, in the order in which rooms are listed."""


@dataclasses.dataclass(frozen=True)
class Paper:
    """One entry of the index.

    Parameters
    ----------
    id
        The name used in commands, modules and results, such as ``"ssd"``.
    title
        The paper's full title.
    name
        The short name of the method, such as ``"SSD"``.
    arxiv
        The arXiv identifier, such as ``"2308.07707"``.
    year
        The year of the first arXiv version.
    room
        The room it belongs to, one of :data:`ROOMS`.
    summary
        One sentence that says what a user gets.
    equation
        The core equations as plain text, one to four lines.
    needs, gives
        Words of :func:`vocabulary`: what must be in hand, and what comes back.
    code
        The authors' implementation as ``"owner/repo"``, empty when there is none.
    licence
        SPDX name of that code's licence, ``"none"`` without a licence file, empty without code.
    added
        The day it was implemented here, ``YYYY-MM-DD``; empty until then.
    """

    id: str
    title: str
    name: str
    arxiv: str
    year: int
    room: str
    summary: str
    equation: str
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    code: str
    licence: str
    added: str = ""


@dataclasses.dataclass(frozen=True)
class Index:
    """What an index file holds: papers by id, the meaning of each word, and the words that a word includes."""

    papers: Mapping[str, Paper]
    vocabulary: Mapping[str, str]
    includes: Mapping[str, tuple[str, ...]]


_TYPES: dict[str, type] = dict.fromkeys((field.name for field in dataclasses.fields(Paper)), str)
_TYPES |= {"year": int, "needs": list, "gives": list}
_MAY_BE_EMPTY = {"code", "licence", "added"}
_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse(text: str) -> Index:
    """Reads and checks the text of an index file.

    Parameters
    ----------
    text
        TOML with the tables ``[vocabulary]``, ``[includes]`` (optional) and ``[[paper]]``.

    Returns
    -------
    Index
        Its papers in the order of the file.

    Raises
    ------
    ValueError
        When the text is no TOML, or an entry is wrong; the message names the entry and the field.
    """
    document = tomllib.loads(text)
    vocabulary: dict[str, str] = document.get("vocabulary", {})
    includes: dict[str, tuple[str, ...]] = {word: tuple(words) for word, words in document.get("includes", {}).items()}
    for word, words in includes.items():
        _check_words(f"includes of {word!r}", (word, *words), vocabulary)
    papers: dict[str, Paper] = {}
    for position, entry in enumerate(document.get("paper", []), start=1):
        paper = _read_entry(entry, position, vocabulary)
        if paper.id in papers:
            raise ValueError(f"paper {paper.id!r} appears twice in the index")
        papers[paper.id] = paper
    return Index(papers, vocabulary, includes)


def _read_entry(entry: Mapping[str, Any], position: int, vocabulary: Mapping[str, str]) -> Paper:
    label = f"paper {entry['id']!r}" if entry.get("id") else f"paper number {position}"
    entry = {"added": "", **entry}
    missing = ", ".join(name for name in _TYPES if name not in entry)
    if missing:
        raise ValueError(f"{label}: missing {missing}")
    unknown = ", ".join(name for name in entry if name not in _TYPES)
    if unknown:
        raise ValueError(f"{label}: unknown field {unknown}")
    for name, kind in _TYPES.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{label}: {name} must be of type {kind.__name__}, is {entry[name]!r}")
        if name not in _MAY_BE_EMPTY and not entry[name]:
            raise ValueError(f"{label}: {name} is empty")
    if not _ID.fullmatch(entry["id"]):
        raise ValueError(f"{label}: id must be a module name with '-' for '_'")
    if not _ARXIV.fullmatch(entry["arxiv"]):
        raise ValueError(f"{label}: arxiv must look like '2308.07707', is {entry['arxiv']!r}")
    if entry["room"] not in ROOMS:
        raise ValueError(f"{label}: unknown room {entry['room']!r}; {nearest(entry['room'], ROOMS)}")
    if entry["added"] and not _DAY.fullmatch(entry["added"]):
        raise ValueError(f"{label}: added must be a day such as '2026-11-23', is {entry['added']!r}")
    for name in ("needs", "gives"):
        _check_words(f"{label}: {name}", entry[name], vocabulary)
    values: dict[str, Any] = dict(entry)
    return Paper(**values | {name: tuple(entry[name]) for name in ("needs", "gives")})


def _check_words(label: str, words: Iterable[str], vocabulary: Mapping[str, str]) -> None:
    for word in words:
        if word not in vocabulary:
            raise ValueError(f"{label}: {word!r} is not in the vocabulary; {nearest(str(word), vocabulary)}")


@functools.cache
def _packaged() -> Index:
    return parse(resources.files("thrifty").joinpath("papers.toml").read_text(encoding="utf-8"))


def papers() -> dict[str, Paper]:
    """All papers by id, by room in the order of :data:`ROOMS`, then by id.

    Raises
    ------
    ValueError
        When the packaged index is damaged; the message names the entry.
    """
    return dict(_packaged().papers)


def vocabulary() -> dict[str, str]:
    """The words in which needs and gives are written, each with its meaning."""
    return dict(_packaged().vocabulary)


def paper(id: str) -> Paper:
    """The paper of that id.

    Raises
    ------
    NotFoundError
        When there is none; the nearest ids are named.
    """
    known = _packaged().papers
    if id not in known:
        hint = nearest(id.lower(), known) or f"`thrifty list` shows all {len(known)}"
        raise NotFoundError(f"no paper {id!r}: {hint}")
    return known[id]


def matching(room: str | None = None, have: Collection[str] | None = None) -> list[Paper]:
    """The papers of a room that need no more than what is in hand.

    Parameters
    ----------
    room
        Only papers of this room; all rooms when ``None``.
    have
        Words of :func:`vocabulary`. A word counts for those it includes too: who has a ``language-model`` has a
        ``model``. Needs are not looked at when ``None``.

    Returns
    -------
    list of Paper
        In the order of the index.

    Raises
    ------
    InputError
        When there is no such room or word; the nearest are named.
    """
    index = _packaged()
    if room is not None and room not in ROOMS:
        raise InputError(f"no room {room!r}: {nearest(room.lower(), ROOMS)}")
    found = [entry for entry in index.papers.values() if room in (None, entry.room)]
    if have is None:
        return found
    words = {have} if isinstance(have, str) else set(have)
    for word in sorted(words - index.vocabulary.keys()):
        hint = nearest(word.lower(), index.vocabulary) or "known: " + ", ".join(index.vocabulary)
        raise InputError(f"{word!r} is not a word for what one can have: {hint}")
    in_hand = words.union(*(index.includes.get(word, ()) for word in words))
    return [entry for entry in found if in_hand.issuperset(entry.needs)]


def module_name(paper: Paper) -> str:
    """The module that implements a paper, such as ``"thrifty.control.ss_orl"``, whether it exists or not."""
    return f"thrifty.{paper.room}.{paper.id.replace('-', '_')}"


def implemented(paper: Paper) -> bool:
    """Whether the package holds the paper's module; nothing is imported to find out."""
    path = module_name(paper).split(".")
    return resources.files(path[0]).joinpath(*path[1:-1], f"{path[-1]}.py").is_file()
