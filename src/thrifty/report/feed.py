"""The Atom feed of papers that were added."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime

from thrifty.report.catalogue import Entry
from thrifty.report.html import GENERATOR

_ATOM = "http://www.w3.org/2005/Atom"


def atom(entries: Sequence[Entry], url: str = "") -> str:
    """The feed as XML, newest first.

    Papers that are not implemented, or of which no day is known, are left out.

    Parameters
    ----------
    entries
        Papers of the catalogue.
    url
        Where the page will be, ending in ``/``; links are relative when empty.

    Returns
    -------
    str
        An Atom 1.0 document (RFC 4287).
    """
    dated = sorted((entry for entry in entries if entry.implemented and entry.added), key=lambda entry: entry.paper.id)
    dated.sort(key=lambda entry: entry.added, reverse=True)
    # An empty feed needs a day too, and must not change from one build to the next.
    newest = dated[0].added if dated else "2026-01-01"
    ET.register_namespace("", _ATOM)
    feed = ET.Element(f"{{{_ATOM}}}feed")
    _text(feed, "id", _urn("index"))
    _text(feed, "title", "thrifty: papers added")
    _text(feed, "updated", _moment(newest))
    _text(feed, "generator", GENERATOR)
    _text(_child(feed, "author"), "name", "thrifty")
    _child(feed, "link", rel="self", href=f"{url}feed.atom", type="application/atom+xml")
    _child(feed, "link", rel="alternate", href=f"{url}index.html", type="text/html")
    for entry in dated:
        _entry(feed, entry, url)
    ET.indent(feed)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(feed, encoding="unicode") + "\n"


def _entry(feed: ET.Element, entry: Entry, url: str) -> None:
    paper = entry.paper
    element = _child(feed, "entry")
    _text(element, "id", _urn(paper.id))
    _text(element, "title", f"{paper.name}: {paper.title}")
    _text(element, "updated", _moment(entry.added))
    _child(element, "link", rel="alternate", href=f"{url}index.html#{paper.id}", type="text/html")
    _child(element, "link", rel="related", href=f"https://arxiv.org/abs/{paper.arxiv}")
    _child(element, "category", term=paper.room)
    verdict = "" if entry.result is None else f" Its claim: {entry.status}. {entry.result['says']}"
    _text(element, "summary", paper.summary + verdict)


def _child(parent: ET.Element, name: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, f"{{{_ATOM}}}{name}", attributes)


def _text(parent: ET.Element, name: str, text: str) -> None:
    _child(parent, name).text = text


def _moment(day: str) -> str:
    moment = datetime.fromisoformat(day)
    return moment.replace(tzinfo=moment.tzinfo or UTC).isoformat(timespec="seconds")


def _urn(name: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"thrifty/{name}").urn
