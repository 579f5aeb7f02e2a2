from __future__ import annotations

import re
from pathlib import Path

import pytest

from thrifty.core import index
from thrifty.core.errors import DiskFullError, ExistsError
from thrifty.report import index as page
from thrifty.report.catalogue import packaged
from thrifty.report.index import render, write_index


def test_every_paper_has_a_card_with_status_and_needs(catalogue) -> None:
    text = render(catalogue)
    cards = re.findall(
        r'<details id="(\w+)" class="card" data-room="(\w+)" data-status="([^"]+)" data-needs="([^"]+)"', text
    )
    assert [card[0] for card in cards] == ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    assert cards[3] == ("delta", "shrink", "stale", "language-model text")


def test_the_counts_are_those_of_the_catalogue(catalogue) -> None:
    assert "5 of 6 implemented · 1 claim holds · 1 does not · 1 inconclusive · 1 stale" in render(catalogue)


def test_a_card_says_how_to_run_it_where_that_is_possible(catalogue) -> None:
    text = render(catalogue)
    assert "thrifty run alpha\nthrifty reproduce alpha" in text
    assert "thrifty run zeta" not in text
    assert "the code has changed since the verdict “holds”" in text
    assert "https://arxiv.org/abs/2308.07707" in text
    assert "https://github.com/someone/code" in text
    assert "(no licence)" in text


def test_only_words_that_some_paper_can_use_are_offered(catalogue) -> None:
    offered = re.findall(r'name="have" value="([^"]+)"', render(catalogue))
    assert offered == ["model", "language-model", "classifier", "text", "forget-set"]


def test_texts_of_the_index_are_escaped(catalogue) -> None:
    assert "would: <b>" not in render(catalogue)
    assert "would: &lt;b&gt;&amp;&quot;&#x27;" in render(catalogue)


def test_ids_are_unique(catalogue) -> None:
    ids = re.findall(r'\sid="([^"]+)"', render(catalogue))
    assert len(ids) == len(set(ids))


def test_page_feed_and_a_plot_a_measured_claim_are_written(tmp_path: Path, catalogue) -> None:
    path = write_index(tmp_path / "site", catalogue=catalogue, url="https://example.org/thrifty")
    assert path == tmp_path / "site" / "index.html"
    files = {str(file.relative_to(tmp_path / "site")) for file in path.parent.rglob("*") if file.is_file()}
    plots = {f"plots/{id}.svg" for id in ("alpha", "beta", "gamma", "delta")}
    assert files == {"index.html", "feed.atom"} | plots
    assert set(re.findall(r'src="(plots/[^"]+)"', path.read_text())) == plots
    assert "https://example.org/thrifty/index.html#alpha" in (path.parent / "feed.atom").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["site"]


def test_an_earlier_page_is_replaced_and_other_files_stay(tmp_path: Path, catalogue) -> None:
    write_index(tmp_path, catalogue=catalogue)
    (tmp_path / "CNAME").write_text("x")
    (tmp_path / "feed.atom").write_text("outdated")
    write_index(tmp_path, catalogue=catalogue)
    assert (tmp_path / "CNAME").read_text() == "x"
    assert "outdated" not in (tmp_path / "feed.atom").read_text()


@pytest.mark.parametrize("name", ["notes.txt", "index.html"])
def test_another_directory_is_left_alone_unless_asked(tmp_path: Path, catalogue, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ExistsError, match="--overwrite"):
        write_index(tmp_path, catalogue=catalogue)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]
    (tmp_path / "other").write_text("stays")
    write_index(tmp_path, overwrite=True, catalogue=catalogue)
    assert (tmp_path / "other").read_text() == "stays"
    assert "thrifty" in (tmp_path / "index.html").read_text()


def test_a_file_is_never_replaced(tmp_path: Path, catalogue) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ExistsError):
        write_index(tmp_path / "x", overwrite=True, catalogue=catalogue)
    assert (tmp_path / "x").read_text() == "mine"


def test_a_full_disk_leaves_the_former_page(tmp_path: Path, catalogue, monkeypatch) -> None:
    before = write_index(tmp_path / "site", catalogue=catalogue).read_bytes()

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "atom", full)
    with pytest.raises(DiskFullError):
        write_index(tmp_path / "site", catalogue=catalogue)
    assert (tmp_path / "site" / "index.html").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["site"]


def test_the_packaged_catalogue_holds_every_paper() -> None:
    stored = {"status": "holds", "date": "2026-11-23"}
    entries = packaged(lambda _: stored).entries
    assert [entry.paper.id for entry in entries] == list(index.papers())
    for entry in entries:
        assert entry.status == ("holds" if index.implemented(entry.paper) else "planned")


def test_the_packaged_page_shows_every_paper() -> None:
    text = render(packaged(lambda _: None))
    assert text.count('class="card"') == len(index.papers())
