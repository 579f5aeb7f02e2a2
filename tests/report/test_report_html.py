from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.report.html import STATUSES, Html, badge, embedded, escape, join, page, pairs, table, tag
from thrifty.report.tables import Best


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[str | None] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += [value for _, value in attributes]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1))
def test_any_text_comes_back_from_content_and_attributes_unchanged(text: str) -> None:
    parser = _Texts()
    parser.feed(tag("p", text, title=text))
    parser.close()
    assert parser.tags == ["p"]
    assert "".join(parser.texts) == text
    assert parser.attributes == [text]


def test_markup_is_not_escaped_twice() -> None:
    assert join(tag("b", "<"), "<") == "<b>&lt;</b>&lt;"
    assert escape(Html("<i>")) == "<i>"


def test_attributes_may_be_bare_or_absent() -> None:
    assert tag("input", name="x", hidden=True, title=None, checked=False, data_a="1", class_="c") == (
        '<input name="x" hidden data-a="1" class="c">'
    )


def test_tables_escape_align_and_emphasise() -> None:
    text = table([{"<n>": "<script>", "v": 0.5}, {"<n>": Best("b"), "v": None}], "C & D")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "<strong>b</strong>" in text
    assert '<td class="number">0.5</td>' in text
    assert "<caption>C &amp; D</caption>" in text


@pytest.mark.parametrize("status", list(STATUSES))
def test_every_status_says_its_name_beside_its_colour(status: str) -> None:
    assert f"</span> {status}</span>" in badge(status)


def test_a_page_names_its_maker_and_needs_no_network() -> None:
    text = page("<t>", tag("p", "x"), styles=["base.css"], script="index.js")
    assert "<title>&lt;t&gt;</title>" in text
    assert '<meta name="generator" content="thrifty ' in text
    assert "width=device-width" in text
    assert "http" not in text
    assert "prefers-color-scheme" in text


def test_pairs_are_a_description_list() -> None:
    assert pairs({"a<": "b>"}) == '<dl class="pairs"><div><dt>a&lt;</dt><dd>b&gt;</dd></div></dl>'


def test_images_become_part_of_the_page(tmp_path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"abc")
    assert embedded(file, 'an "x"') == (
        '<img src="data:image/png;base64,YWJj" alt="an &quot;x&quot;" class="plot" decoding="async">'
    )
