"""The index joined with what is implemented and what was measured."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty.claims import store
from thrifty.core import index
from thrifty.core.errors import InputError

if TYPE_CHECKING:
    from thrifty.claims.harness import Claim


def rows(room: str | None = None, have: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One row a paper: ``id, title, arxiv, room, needs, gives, implemented, claim``.

    Parameters
    ----------
    room
        Only this room's papers.
    have
        Only papers that need no more than these words of the index's vocabulary.

    Returns
    -------
    list of dict
        ``claim`` is ``{verdict, metric, arms, date}`` or ``None``; a verdict is ``stale`` when the code that
        was measured has changed since.
    """
    return [
        {
            "id": paper.id,
            "title": paper.title,
            "arxiv": paper.arxiv,
            "room": paper.room,
            "needs": list(paper.needs),
            "gives": list(paper.gives),
            "implemented": index.implemented(paper),
            "claim": store.row(paper.id),
        }
        for paper in index.matching(room, have)
    ]


def load_claim(paper_id: str) -> Claim:
    """The claim of a paper.

    Raises
    ------
    NotFoundError
        When no paper has that id.
    InputError
        When its claim can't be reproduced yet.
    """
    paper = index.paper(paper_id)
    name = f"thrifty.claims.{paper.id.replace('-', '_')}"
    try:
        claim: Claim = importlib.import_module(name).CLAIM
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(f"{paper_id} has no claim to reproduce yet: `thrifty list` shows which have") from error
    return claim


def outdated() -> list[str]:
    """Ids of the implemented papers whose claim was never measured, or whose code has changed since."""
    found = []
    for paper in index.papers().values():
        if index.implemented(paper):
            result = store.read(paper.id)
            if result is None or result["status"] == "stale":
                found.append(paper.id)
    return found
