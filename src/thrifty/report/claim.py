"""A measured claim as part of a page: sentence, setting, verdict, tables and plot."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.report.along import along_plot, curves
from thrifty.report.html import Html, badge, embedded, join, table, tag
from thrifty.report.plots import arms_plot
from thrifty.report.tables import claim_table, condition_table, number
from thrifty.report.tradeoff import tradeoff_plot


def claim_section(result: Mapping[str, Any], plot: Html | None = None) -> Html:
    """Everything there is to a measured claim.

    Parameters
    ----------
    result
        A claim's result (see :mod:`thrifty.claims.harness`), with ``status`` where it is stored; or a comparison's,
        which has no verdict.
    plot
        The image of :func:`thrifty.report.plots.arms_plot`; drawn and embedded when ``None``.

    Returns
    -------
    Html
        A ``div``.
    """
    parts: list[object] = [tag("blockquote", result["says"]), _verdict(result)]
    if result.get("setting"):
        parts.append(tag("p", tag("strong", "Setting. "), result["setting"]))
    parts += [table(claim_table(result), "Arms"), tag("p", _reading(result), class_="note")]
    parts.append(tag("figure", _embedded(result) if plot is None else plot))
    if result.get("axes"):
        parts.append(tag("figure", _tradeoff(result)))
    parts += [tag("figure", _along(result, name)) for name in curves(result)]
    if result.get("conditions"):
        rows = [row | {"verdict": badge(str(row["verdict"]))} for row in condition_table(result)]
        parts.append(table(rows, "Conditions"))
    if result.get("tried"):
        parts.append(tag("p", tag("strong", "Tried before. "), result["tried"]))
    return tag("div", *parts, class_="claim")


def _verdict(result: Mapping[str, Any]) -> Html:
    facts = [f"measured {result['date']}"] if "date" in result else []
    facts.append(_seeds(result))
    if "seconds" in result:
        facts.append(f"{number(float(result['seconds']), 3)} s")
    text = ", ".join(facts)
    if result["quick"]:
        text += "; a quick run at small sizes, which decides nothing"
    status = str(result.get("status", result.get("verdict", "")))
    if status == "stale":
        text += f"; the code has changed since the verdict “{result['verdict']}”: measure again"
    label = join(badge(status), " ") if status else ""
    return tag("p", label, tag("span", text, class_="note"), class_="verdict")


def _seeds(result: Mapping[str, Any]) -> str:
    count = len(result["seeds"])
    return f"{count} seed{'' if count == 1 else 's'}"


def _reading(result: Mapping[str, Any]) -> str:
    spread = "Mean and its 95% interval" if len(result["seeds"]) > 1 else "One seed, so there is no interval"
    return f"{spread}; small dots in the plot are single seeds. ↑ more is better, ↓ less is better; best in bold."


def plot_alt(result: Mapping[str, Any]) -> str:
    """What the plot of a claim shows, in words."""
    names = ", ".join(name.lstrip("-") for name in result["metrics"])
    return f"{names} of {', '.join(result['arms'])}, with 95% intervals; the numbers are in the table of arms."


def _embedded(result: Mapping[str, Any]) -> Html:
    with tempfile.TemporaryDirectory() as temporary:
        return embedded(arms_plot(result, Path(temporary) / "arms.svg"), plot_alt(result))


def _tradeoff(result: Mapping[str, Any]) -> Html:
    x, y = (name.lstrip("-") for name in result["axes"])
    alt = f"{y} against {x}: a point for each of {', '.join(result['arms'])}; the numbers are in the table of arms."
    with tempfile.TemporaryDirectory() as temporary:
        return embedded(tradeoff_plot(result, Path(temporary) / "tradeoff.svg"), alt)


def _along(result: Mapping[str, Any], name: str) -> Html:
    alt = f"{name} of {', '.join(curves(result)[name])} after each session, with 95% intervals."
    with tempfile.TemporaryDirectory() as temporary:
        return embedded(along_plot(result, name, Path(temporary) / "along.svg"), alt)
