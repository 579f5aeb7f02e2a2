from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from datetime import datetime

import pytest

from thrifty.report.catalogue import Entry
from thrifty.report.feed import atom

ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture
def feed(catalogue) -> ET.Element:
    return ET.fromstring(atom(catalogue.entries))


def _one(element: ET.Element, name: str) -> str:
    found = element.findall(ATOM + name)
    assert len(found) == 1
    assert found[0].text
    return found[0].text


def test_measured_papers_are_entries_newest_first(feed: ET.Element) -> None:
    titles = [_one(entry, "title") for entry in feed.findall(f"{ATOM}entry")]
    assert [title.split(":")[0] for title in titles] == ["DELTA", "GAMMA", "BETA", "ALPHA"]


def test_feed_and_entries_hold_what_the_standard_demands(feed: ET.Element) -> None:
    assert feed.tag == f"{ATOM}feed"
    assert feed.find(f"{ATOM}author/{ATOM}name") is not None
    for element in (feed, *feed.findall(f"{ATOM}entry")):
        assert _one(element, "id").startswith("urn:uuid:")
        assert _one(element, "title")
        assert datetime.fromisoformat(_one(element, "updated")).tzinfo is not None
        alternates = [link for link in element.findall(f"{ATOM}link") if link.get("rel") == "alternate"]
        assert len(alternates) == 1
    assert _one(feed, "updated") == _one(feed.findall(f"{ATOM}entry")[0], "updated") == "2026-11-04T00:00:00+00:00"


def test_ids_are_unique_and_stay_the_same(catalogue) -> None:
    ids = [[element.text for element in ET.fromstring(atom(catalogue.entries)).iter(f"{ATOM}id")] for _ in range(2)]
    assert len(set(ids[0])) == 5
    assert ids[0] == ids[1]


def test_texts_are_escaped(feed: ET.Element) -> None:
    assert "<b>&\"'" in _one(feed.findall(f"{ATOM}entry")[0], "summary")


def test_links_are_absolute_where_the_address_is_known(catalogue) -> None:
    links = [
        link.get("href", "") for link in ET.fromstring(atom(catalogue.entries, "https://x.org/")).iter(f"{ATOM}link")
    ]
    assert all(link.startswith("https://") for link in links)
    assert "https://x.org/index.html#alpha" in links


def test_an_empty_feed_is_valid_and_always_the_same() -> None:
    feed = ET.fromstring(atom([]))
    assert not feed.findall(f"{ATOM}entry")
    assert datetime.fromisoformat(_one(feed, "updated")).tzinfo is not None
    assert atom([]) == atom([])


def test_the_indexs_own_day_comes_before_the_measurements(catalogue) -> None:
    @dataclasses.dataclass(frozen=True)
    class Dated:
        added: str

    assert Entry(Dated("2025-01-02"), True, {"date": "2026-11-01"}).added == "2025-01-02"  # type: ignore[arg-type]
    assert catalogue.entries[0].added == "2026-11-01"
    assert catalogue.entries[4].added == ""
