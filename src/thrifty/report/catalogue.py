"""What the index page shows: the papers, which of them are implemented, and what was measured of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from thrifty.claims import store
from thrifty.core import index
from thrifty.core.index import Paper

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One paper on the page.

    Parameters
    ----------
    paper
        Its entry in the index.
    implemented
        Whether a module implements it.
    result
        The stored result of its claim; ``None`` where it was never measured.
    """

    paper: Paper
    implemented: bool
    result: Result | None

    @property
    def status(self) -> str:
        """``planned``, ``not measured``, ``stale``, or the verdict."""
        if not self.implemented:
            return "planned"
        return "not measured" if self.result is None else str(self.result["status"])

    @property
    def added(self) -> str:
        """The day (``YYYY-MM-DD``) of the index's ``added``, else of the measurement; empty when neither is known."""
        return str(getattr(self.paper, "added", "") or (self.result or {}).get("date", ""))


@dataclass(frozen=True)
class Catalogue:
    """All that the index page is made of.

    Parameters
    ----------
    entries
        The papers in order.
    rooms
        Name of a room to what its user wants done.
    vocabulary
        Word for what one can have to its meaning.
    includes
        Word to the words that who has it has too.
    """

    entries: tuple[Entry, ...]
    rooms: Mapping[str, str]
    vocabulary: Mapping[str, str]
    includes: Mapping[str, tuple[str, ...]]


def packaged(results: Callable[[str], Result | None] = store.read) -> Catalogue:
    """The catalogue of this package, with the stored results of its claims.

    Parameters
    ----------
    results
        Gives the stored result of a paper's claim.
    """
    text = resources.files("thrifty").joinpath("papers.toml").read_text(encoding="utf-8")
    parsed = index.parse(text)
    entries = []
    for paper in parsed.papers.values():
        there = index.implemented(paper)
        entries.append(Entry(paper, there, results(paper.id) if there else None))
    return Catalogue(tuple(entries), index.ROOMS, parsed.vocabulary, parsed.includes)
