"""Plots of measured claims, of training curves and of trade-offs, with 95% intervals and labelled axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import InputError
from thrifty.report.canvas import INK, LINE, MUTED, PALETTE, WIDTH, clean, figure, plain, write
from thrifty.report.labels import name_points
from thrifty.report.smoothing import extremes, is_noisy, smoothed
from thrifty.report.tables import Row, columns, heading, is_numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CURVES = 12
_POINTS = 400  # more than a plot of this width can show
_ROW = 0.3  # inches for one arm or bar


def arms_plot(result: Mapping[str, Any], path: Path) -> Path:
    """The arms of a measured claim: the decisive metric large, the others below it.

    Each arm shows every seed as a small dot, the mean as a large one and the mean's 95% interval as a line. The method
    comes first and in colour.

    Parameters
    ----------
    result
        A claim's result (see :mod:`thrifty.claims.harness`).
    path
        Where to: ``.svg`` or ``.png``.

    Returns
    -------
    Path
        ``path``.
    """
    decisive, *others = [name for name in result["metrics"] if _measured(result, name)] or result["metrics"][:1]
    rows = math.ceil(len(others) / 2)
    tall, small = 0.75 + _ROW * len(result["arms"]), 0.7 + 0.24 * len(result["arms"])
    with figure(tall + rows * small) as plot:
        grid = plot.add_gridspec(1 + rows, 2, height_ratios=[tall] + [small] * rows)
        _arms(plot.add_subplot(grid[0, :]), result, decisive, names=True)
        for position, name in enumerate(others):
            row, column = 1 + position // 2, position % 2
            _arms(plot.add_subplot(grid[row, column]), result, name, names=column == 0)
        return write(plot, path)


def _measured(result: Mapping[str, Any], signed: str) -> bool:
    return any(signed.lstrip("-") in arm["metrics"] for arm in result["arms"].values())


def _arms(axes: Axes, result: Mapping[str, Any], signed: str, *, names: bool) -> None:
    for place, (_, arm) in enumerate(result["arms"].items()):
        values = arm["metrics"].get(signed.lstrip("-"))
        if values is None or values["mean"] is None:
            continue
        colour = PALETTE[0] if place == 0 else MUTED
        seeds = [value for value in values["values"] if math.isfinite(value)]
        axes.scatter(seeds, [place] * len(seeds), s=9, color=colour, alpha=0.45, linewidths=0, zorder=3)
        if values["low"] is not None and values["high"] is not None:
            axes.plot([values["low"], values["high"]], [place, place], color=colour, linewidth=2.2, zorder=2)
        axes.scatter([values["mean"]], [place], s=44, color=colour, zorder=4, linewidths=0)
    axes.set_yticks(range(len(result["arms"])), [plain(arm) if names else "" for arm in result["arms"]])
    axes.set_ylim(len(result["arms"]) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=6 if names else 4)
    if names:
        axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_xlabel(plain(heading(signed)))
    axes.margins(x=0.08)
    clean(axes, "x")


def curves_plot(rows: Sequence[Row], path: Path) -> Path:
    """The training curves of a run: one panel a metric, what was logged in pale and its smoothing in full colour.

    Parameters
    ----------
    rows
        The lines of ``metrics.jsonl``: ``step`` and numbers; missing and ``None`` values leave gaps.
    path
        Where to: ``.svg`` or ``.png``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        When nothing finite was logged.
    """
    names = curve_names(rows)
    if not names:
        raise InputError("no metric holds a finite number: there is no curve to plot")
    high = math.ceil(len(names) / 2) if len(names) > 1 else 1
    with figure(1.75 * high + 0.2, WIDTH * 1.25 if len(names) > 1 else WIDTH) as plot:
        for position, name in enumerate(names):
            axes = plot.add_subplot(high, 2 if len(names) > 1 else 1, position + 1)
            _curve(axes, *_series(rows, name))
            axes.set_title(plain(name))
            axes.set_xlabel("step")
        return write(plot, path)


def curve_names(rows: Sequence[Row]) -> list[str]:
    """The metrics that :func:`curves_plot` shows: the first twelve that hold two different steps or more."""
    names = [name for name in columns(rows) if name != "step" and is_numeric(row.get(name) for row in rows)]
    return [name for name in names if len(np.unique(_series(rows, name)[0])) > 1][:_MOST_CURVES]


def _series(rows: Sequence[Row], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(_finite(row.get("step")), _finite(row.get(name))) for row in rows]
    there = [(step, value) for step, value in points if step is not None and value is not None]
    array = np.array(there, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _curve(axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    noisy = is_noisy(values)
    axes.plot(*extremes(steps, values, _POINTS), color=PALETTE[0], alpha=0.3 if noisy else 1.0, linewidth=1.0)
    if noisy:
        axes.plot(
            *extremes(steps, smoothed(values, max(2.0, len(values) / 30)), _POINTS), color=PALETTE[0], linewidth=1.8
        )
    elif len(values) <= 30:
        axes.plot(steps, values, "o", markersize=3.5, color=PALETTE[0])
    if values.min() > 0 and values.max() / values.min() > 1000:
        axes.set_yscale("log")
    axes.locator_params(axis="x", nbins=5)
    clean(axes, "y")


def scatter_plot(rows: Sequence[Row], x: str, y: str, label: str, path: Path) -> Path:
    """A trade-off: one labelled point a row; an axis whose values span a hundredfold is logarithmic.

    Parameters
    ----------
    rows
        What to show.
    x, y
        Columns of numbers; their names, units included, label the axes.
    label
        The column that names a point.
    path
        Where to: ``.svg`` or ``.png``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        When no row has a finite number in both columns.
    """
    points = [(_finite(row.get(x)), _finite(row.get(y)), str(row.get(label, ""))) for row in rows]
    there = [(a, b, text) for a, b, text in points if a is not None and b is not None]
    if not there:
        raise InputError(f"no row has finite numbers in both {x!r} and {y!r}")
    with figure(3.4) as plot:
        axes = plot.add_subplot()
        axes.scatter([a for a, _, _ in there], [b for _, b, _ in there], s=36, color=PALETTE[0], linewidths=0, zorder=3)
        axes.set_xscale(_scale([a for a, _, _ in there]))
        axes.set_yscale(_scale([b for _, b, _ in there]))
        axes.margins(0.14)
        axes.set_xlabel(plain(x))
        axes.set_ylabel(plain(y))
        name_points(axes, there)
        return write(plot, path)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _scale(values: Sequence[float]) -> str:
    return "log" if min(values) > 0 and max(values) / min(values) > 100 else "linear"


def bars_plot(
    rows: Sequence[Row],
    label: str,
    value: str,
    path: Path,
    *,
    low: str = "",
    high: str = "",
    reference: float | None = None,
) -> Path:
    """One bar a row, with the interval's ends where the rows hold them.

    Parameters
    ----------
    rows
        What to show, from the top.
    label, value
        The columns of the bars' names and lengths; the latter's name, unit included, labels the axis.
    path
        Where to: ``.svg`` or ``.png``.
    low, high
        The columns of the interval's ends; none when empty.
    reference
        Where to draw a line to compare with, such as 1 for ratios.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        When no row has a finite value.
    """
    there = [(row, length) for row in rows if (length := _finite(row.get(value))) is not None]
    if not there:
        raise InputError(f"no row has a finite number in {value!r}")
    with figure(0.6 + _ROW * len(there)) as plot:
        axes = plot.add_subplot()
        for place, (row, length) in enumerate(there):
            axes.barh(place, length, height=0.62, color=PALETTE[0], zorder=2)
            start, end = _finite(row.get(low)), _finite(row.get(high))
            if start is not None and end is not None:
                axes.plot([start, end], [place, place], color=INK, linewidth=1.4, zorder=3)
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=1, linestyle="--", zorder=4)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_yticks(range(len(there)), [plain(str(row.get(label, ""))) for row, _ in there])
        axes.set_ylim(len(there) - 0.4, -0.6)
        axes.set_xlabel(plain(value))
        clean(axes, "x")
        return write(plot, path)
