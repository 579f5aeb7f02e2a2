"""Rows as tables: for the terminal, for Markdown, and the table of a measured claim."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, object]
NOTHING = "\N{EN DASH}"


class Best(str):
    """A cell that is the best of its column; every kind of table emphasises it."""

    __slots__ = ()


def number(value: float, digits: int = 4) -> str:
    """A number with as many digits as a reader wants.

    Parameters
    ----------
    value
        Any number; whole ones of type ``int`` keep all their digits.
    digits
        Significant digits of others; the digits before the point are never rounded away.

    Returns
    -------
    str
        Such as ``"0.8333"``, ``"12346"`` or ``"3.1e-07"``.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    if size >= 9 or size < -digits:
        return f"{value:.{digits - 2}e}"
    return _trimmed(f"{value:.{max(0, digits - 1 - size)}f}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """``mean [low, high]`` with digits as fine as the interval warrants; the mean alone when it has no ends.

    Two digits of the half width stay: 0.83333 with the ends 0.81021 and 0.85645 is ``0.833 [0.810, 0.856]``.
    """
    if mean is None:
        return NOTHING
    if low is None or high is None:
        return number(mean)
    half = (high - low) / 2
    if half <= 0 or not math.isfinite(half):
        return f"{number(mean)} [{number(low)}, {number(high)}]"
    places = 1 - math.floor(math.log10(half))
    if places > 6:
        return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
    places = max(0, places)
    return f"{mean:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def text_of(value: object) -> str:
    """One cell as text."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def columns(rows: Iterable[Row]) -> list[str]:
    """The names of all columns in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def is_numeric(values: Iterable[object]) -> bool:
    """Whether a column holds numbers only, empty cells aside."""
    there = [value for value in values if value is not None]
    return bool(there) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there)


def claim_table(result: Mapping[str, Any]) -> list[dict[str, object]]:
    """The measured arms of a claim, one row each, the best of every metric marked as :class:`Best`.

    Parameters
    ----------
    result
        A claim's result (see :mod:`thrifty.claims.harness`).

    Returns
    -------
    list of dict
        ``arm``, each metric as ``mean [low, high]`` over seeds, and ``seconds``.
    """
    rows: list[dict[str, object]] = []
    best = {signed: _best(result["arms"], signed) for signed in result["metrics"]}
    for arm, measured in result["arms"].items():
        row: dict[str, object] = {"arm": arm}
        for signed in result["metrics"]:
            name = signed.lstrip("-")
            values = measured["metrics"].get(name, {})
            mean = values.get("mean")
            text = interval(mean, values.get("low"), values.get("high"))
            row[heading(signed)] = Best(text) if mean is not None and mean == best[signed] else text
        rows.append(row | {"seconds": round(float(measured["seconds"]), 1)})
    return rows


def _best(arms: Mapping[str, Any], signed: str) -> float | None:
    means = [arm["metrics"].get(signed.lstrip("-"), {}).get("mean") for arm in arms.values()]
    there = [mean for mean in means if mean is not None]
    # A lone or all-equal column has no best.
    if len(set(there)) < 2:
        return None
    return min(there) if signed.startswith("-") else max(there)


def heading(signed: str) -> str:
    """A metric's name with an arrow to its better side; a leading ``-`` marks less as better."""
    return f"{signed[1:]} ↓" if signed.startswith("-") else f"{signed} ↑"


def condition_table(result: Mapping[str, Any]) -> list[dict[str, object]]:
    """What had to hold between the arms of a claim, and whether it did."""
    return [
        {
            "condition": row["condition"],
            "verdict": row["verdict"],
            "difference [95% interval]": interval(row["mean"], row["low"], row["high"]),
            "must exceed": number(row["margin"]),
        }
        for row in result["conditions"]
    ]


def to_markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; empty without rows."""
    names = columns(rows)
    if not names:
        return ""
    right = [is_numeric(row.get(name) for row in rows) for name in names]
    lines = [
        "| " + " | ".join(_markdown(name) for name in names) + " |",
        "|" + "|".join("---:" if numeric else "---" for numeric in right) + "|",
    ]
    for row in rows:
        cells = [_markdown(text_of(row.get(name))) for name in names]
        marked = [f"**{cell}**" if isinstance(row.get(n), Best) else cell for n, cell in zip(names, cells, strict=True)]
        lines.append("| " + " | ".join(marked) + " |")
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def print_table(rows: Sequence[Row], title: str = "", console: Console | None = None) -> None:
    """Prints rows as a table; nothing but a line saying so without rows.

    Parameters
    ----------
    rows
        One mapping a row; columns stand in the order of first appearance.
    title
        Shown above.
    console
        Where to; standard output when ``None``.
    """
    console = console or Console()
    if not rows:
        console.print(f"{title}: nothing to show" if title else "nothing to show", markup=False)
        return
    # Text, not str: a cell such as "[bold]" is the user's data and no markup.
    table = Table(title=Text(title, style="bold") if title else None, title_justify="left", header_style="bold")
    for name in columns(rows):
        numeric = is_numeric(row.get(name) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = [row.get(name) for name in columns(rows)]
        table.add_row(*(Text(text_of(cell), style="bold green" if isinstance(cell, Best) else "") for cell in cells))
    console.print(table)
