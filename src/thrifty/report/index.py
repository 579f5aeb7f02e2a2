"""The index of papers as a static page that works from a file: search, filters, claims and a feed."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from thrifty.core.atomic import room_on_disk
from thrifty.core.errors import ExistsError
from thrifty.core.progress import track
from thrifty.report.catalogue import Catalogue, Entry, packaged
from thrifty.report.claim import claim_section, plot_alt
from thrifty.report.feed import atom
from thrifty.report.html import STATUSES, Html, badge, command, join, page, tag
from thrifty.report.plots import arms_plot

_PAGE, _FEED, _PLOTS = "index.html", "feed.atom", "plots"
_MARK = '<meta name="generator" content="thrifty '


def write_index(directory: Path, overwrite: bool = False, *, catalogue: Catalogue | None = None, url: str = "") -> Path:
    """Writes the index page, its plots and its feed.

    Parameters
    ----------
    directory
        Where to; made if missing. An earlier index page there is replaced, file by file, each of them whole.
    overwrite
        Write into a directory that holds something else, too. Other files stay in any case.
    catalogue
        What to show; this package's papers and stored claims when ``None``.
    url
        Where the page will be published, for the links of the feed; relative links when empty.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    ExistsError
        When the directory holds something else than an index page, or is a file.
    DiskFullError
        When there is no room; what was there is untouched.
    """
    directory = Path(directory).resolve()
    if directory.is_file() or (directory.is_dir() and not overwrite and not _may_write(directory)):
        raise ExistsError(f"{directory} exists and is no index page: give another directory, or --overwrite")
    catalogue = packaged() if catalogue is None else catalogue
    built = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        with room_on_disk(directory):
            built.mkdir(parents=True)
            _build(built, catalogue, url if not url or url.endswith("/") else f"{url}/")
            _put(built, directory)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return directory / _PAGE


def _may_write(directory: Path) -> bool:
    """Whether a directory is empty or holds a page of this module."""
    file = directory / _PAGE
    if file.is_file():
        return _MARK in file.read_text(encoding="utf-8", errors="replace")[:2000]
    return not any(directory.iterdir())


def _put(built: Path, directory: Path) -> None:
    if not directory.exists():
        built.rename(directory)
        return
    (directory / _PLOTS).mkdir(exist_ok=True)
    # The page comes last: until then the former one stands, and every plot it shows is there.
    for file in (*(built / _PLOTS).iterdir(), built / _FEED, built / _PAGE):
        file.replace(directory / file.relative_to(built))


def _build(directory: Path, catalogue: Catalogue, url: str) -> None:
    (directory / _PLOTS).mkdir()
    measured = [entry.result for entry in catalogue.entries if entry.result is not None]
    for result in track(measured, "draw the claims"):
        arms_plot(result, directory / _PLOTS / f"{result['paper']}.svg")
    (directory / _FEED).write_text(atom(catalogue.entries, url), encoding="utf-8")
    (directory / _PAGE).write_text(render(catalogue), encoding="utf-8")


def render(catalogue: Catalogue) -> str:
    """The page as HTML; the plots are files beside it."""
    feed = tag("link", rel="alternate", type="application/atom+xml", title="Papers added", href=_FEED)
    cards = tag("main", *_rooms(catalogue), tag("p", "No paper fits.", id="nothing", hidden=True), id="papers")
    layout = tag("div", _filters(catalogue), cards, class_="layout")
    return page(
        "thrifty · papers",
        _header(catalogue),
        layout,
        _footer(),
        styles=("base.css", "index.css"),
        script="index.js",
        head=[feed],
    )


def _header(catalogue: Catalogue) -> Html:
    counts = Counter(entry.status for entry in catalogue.entries)
    there = sum(entry.implemented for entry in catalogue.entries)
    facts = [f"{there} of {len(catalogue.entries)} implemented", _count(counts["holds"], "claim holds", "claims hold")]
    for status, one, many in (
        ("does not hold", "does not", "do not"),
        ("inconclusive", "inconclusive", "inconclusive"),
        ("stale", "stale", "stale"),
    ):
        if counts[status]:
            facts.append(_count(counts[status], one, many))
    return tag(
        "header",
        tag("h1", "thrifty"),
        tag("p", "More out of models with less: papers as one library and one command.", class_="lead"),
        tag("p", " · ".join(facts), class_="counts"),
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _filters(catalogue: Catalogue) -> Html:
    rooms = Counter(entry.paper.room for entry in catalogue.entries)
    statuses = Counter(entry.status for entry in catalogue.entries)
    needed = {word for entry in catalogue.entries for word in entry.paper.needs}
    # Who has a word that includes a needed one can use those papers too, so it is worth a box.
    useful = [w for w in catalogue.vocabulary if w in needed or needed & set(catalogue.includes.get(w, ()))]
    search = tag(
        "input", id="search", type="search", placeholder="Search papers", aria_label="Search papers", autocomplete="off"
    )
    groups = tag(
        "details",
        tag("summary", "Filters ", tag("span", id="active")),
        _choices("room", "Room", [(room, room, rooms[room], catalogue.rooms[room]) for room in rooms]),
        _choices("status", "Claim", [(s, badge(s), statuses[s], "") for s in STATUSES if statuses[s]]),
        _choices("have", "What do you have?", [(w, w, None, catalogue.vocabulary[w]) for w in useful]),
        tag("button", "Clear", id="clear", type="button"),
        id="filters",
    )
    shown = tag("p", f"{len(catalogue.entries)} papers", id="shown", role="status")
    includes = json.dumps(catalogue.includes)
    return tag("search", tag("div", search, shown, groups, class_="sticky"), class_="side", data_includes=includes)


def _choices(name: str, legend: str, choices: Iterable[tuple[str, object, int | None, str]]) -> Html:
    boxes = [
        tag(
            "label",
            tag("input", type="checkbox", name=name, value=value),
            tag("span", text, class_="choice"),
            tag("span", count, class_="count") if count is not None else "",
            title=hint or None,
        )
        for value, text, count, hint in choices
    ]
    return tag("fieldset", tag("legend", legend), tag("div", *boxes, class_="choices"))


def _rooms(catalogue: Catalogue) -> Iterable[Html]:
    for room in dict.fromkeys(entry.paper.room for entry in catalogue.entries):
        cards = [_card(entry, catalogue) for entry in catalogue.entries if entry.paper.room == room]
        heading = tag("h2", room, " ", tag("small", catalogue.rooms[room]))
        yield tag("section", heading, *cards, class_="room")


def _card(entry: Entry, catalogue: Catalogue) -> Html:
    paper = entry.paper
    search = " ".join((paper.id, paper.name, paper.title, paper.summary, paper.room, paper.arxiv, str(paper.year)))
    summary = tag(
        "summary",
        tag("span", tag("span", paper.name, class_="name"), badge(entry.status), class_="line"),
        tag("span", paper.summary, class_="what"),
    )
    body = tag(
        "div",
        tag("p", paper.title, tag("span", f" {paper.year}", class_="year"), class_="title"),
        tag("pre", paper.equation.strip("\n"), class_="equation", tabindex="0", aria_label="equation"),
        tag("dl", _words("Needs", paper.needs, catalogue), _words("Gives", paper.gives, catalogue), class_="words"),
        _claim(entry),
        _use(entry),
        _links(entry),
        class_="body",
    )
    return tag(
        "details",
        summary,
        body,
        id=paper.id,
        class_="card",
        data_room=paper.room,
        data_status=entry.status,
        data_needs=" ".join(paper.needs),
        data_search=search,
    )


def _words(label: str, words: Iterable[str], catalogue: Catalogue) -> Html:
    chips = [tag("span", word, class_="chip", title=catalogue.vocabulary.get(word)) for word in words]
    return tag("div", tag("dt", label), tag("dd", *chips))


def _claim(entry: Entry) -> Html:
    if entry.result is None:
        return Html("")
    plot = tag(
        "img",
        src=f"{_PLOTS}/{entry.paper.id}.svg",
        alt=plot_alt(entry.result),
        class_="plot",
        loading="lazy",
        decoding="async",
    )
    return join(tag("h3", "Claim"), claim_section(entry.result, plot))


def _use(entry: Entry) -> Html:
    if not entry.implemented:
        return tag("p", "Planned: in the index, not implemented yet.", class_="note")
    commands = command(f"thrifty run {entry.paper.id}\nthrifty reproduce {entry.paper.id}")
    return join(tag("h3", "Use"), commands)


def _links(entry: Entry) -> Html:
    paper = entry.paper
    links: list[object] = [tag("a", f"arXiv:{paper.arxiv}", href=f"https://arxiv.org/abs/{paper.arxiv}")]
    if paper.code:
        licence = f" ({'no licence' if paper.licence == 'none' else paper.licence})"
        links.append(join(tag("a", "authors' code", href=f"https://github.com/{paper.code}"), licence))
    links.append(tag("a", "link to this card", href=f"#{paper.id}"))
    return tag("ul", *(tag("li", link) for link in links), class_="links")


def _footer() -> Html:
    keys = join(tag("kbd", "/"), " searches · ", tag("a", "feed", href=_FEED), " of papers added")
    text = "Every verdict is computed from stored measurements; ", "stale: the code has changed since."
    return tag("footer", tag("p", *text), tag("p", keys))
