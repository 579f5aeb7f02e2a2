"""HTML in which text is escaped unless it was built here: pages, tables, badges and figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from thrifty import __version__
from thrifty.report.tables import Best, columns, is_numeric, text_of

GENERATOR = f"thrifty {__version__}"
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
PICTURES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
# Each status has a sign of its own, so that colour never carries the meaning alone.
STATUSES = {
    "holds": "✓",
    "does not hold": "✕",
    "inconclusive": "≈",
    "stale": "↻",
    "not measured": "○",
    "planned": "·",
}


class Html(str):
    """Markup: text that needs no more escaping."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Any value as markup; what is markup already stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text), quote=True))


def join(*children: object) -> Html:
    """Markup and text side by side; text is escaped."""
    return Html("".join(escape(child) for child in children))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Parameters
    ----------
    name
        Such as ``"td"``.
    children
        Markup or text; text is escaped.
    attributes
        Values are escaped; ``class_`` is ``class``, ``data_x`` is ``data-x``; ``True`` gives a bare attribute,
        ``None`` and ``False`` none.

    Returns
    -------
    Html
        The element as markup.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def asset(name: str) -> str:
    """The text of a style sheet or script of this package."""
    return resources.files("thrifty.report").joinpath("assets", name).read_text(encoding="utf-8")


def page(title: str, *body: object, styles: Sequence[str], script: str = "", head: Iterable[Html] = ()) -> str:
    """A whole document with its styles and script inline, which asks nothing of the network.

    Parameters
    ----------
    title
        What the browser shows in its tab.
    body
        Markup or text.
    styles, script
        Names of :func:`asset` files; no script when empty.
    head
        Further elements of the head.
    """
    parts = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="generator", content=GENERATOR),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            *head,
            tag("style", Html("".join(asset(name) for name in styles))),
        ),
        tag("body", *body, tag("script", Html(asset(script))) if script else ""),
        lang="en",
    )
    return f"<!doctype html>\n{parts}\n"


def table(rows: Sequence[Mapping[str, object]], caption: str = "") -> Html:
    """Rows as a table that scrolls inside itself where the screen is narrow; numbers stand right."""
    names = columns(rows)
    right = {name for name in names if is_numeric(row.get(name) for row in rows)}
    header = tag("tr", *(tag("th", name, scope="col", class_="number" if name in right else None) for name in names))
    body = [tag("tr", *(_cell(row.get(name), name in right) for name in names)) for row in rows]
    title = tag("caption", caption) if caption else ""
    inner = tag("table", title, tag("thead", header), tag("tbody", *body))
    # A region that scrolls must be reachable by keyboard.
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption or "table")


def _cell(value: object, right: bool) -> Html:
    text = text_of(value)
    content = tag("strong", text) if isinstance(value, Best) else text
    return tag("td", content, class_="number" if right else None)


def badge(status: str, text: str = "") -> Html:
    """A coloured label with a sign for a status of :data:`STATUSES`."""
    sign = tag("span", STATUSES[status], aria_hidden="true")
    return tag("span", sign, " ", text or status, class_=f"badge {status.replace(' ', '-')}")


def embedded(path: Path, alt: str) -> Html:
    """An image file as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return tag(
        "img", src=f"data:{PICTURES[path.suffix.lower()]};base64,{data}", alt=alt, class_="plot", decoding="async"
    )


def pairs(values: Mapping[str, object]) -> Html:
    """Names and values as a description list."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()), class_="pairs")


def command(text: str) -> Html:
    """A command to copy."""
    return tag("pre", tag("code", text), class_="command", tabindex="0")
