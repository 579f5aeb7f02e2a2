"""The trade-off between two metrics of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.core.errors import InputError
from thrifty.report.canvas import MUTED, PALETTE, clean, figure, plain, write
from thrifty.report.labels import name_points
from thrifty.report.tables import heading


def tradeoff_plot(result: Mapping[str, Any], path: Path) -> Path:
    """One named point an arm, with the 95% intervals of both means; methods in colour, baselines in grey.

    Parameters
    ----------
    result
        A comparison (see :func:`thrifty.claims.compare.compare`) with ``axes``; arms without a finite mean in both
        metrics are left out.
    path
        Where to: ``.svg`` or ``.png``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        When no arm has both metrics.
    """
    x, y = result["axes"]
    points = []
    with figure(3.8) as plot:
        axes = plot.add_subplot()
        for arm, measured in result["arms"].items():
            across, along = (measured["metrics"].get(name.lstrip("-"), {}) for name in (x, y))
            if across.get("mean") is None or along.get("mean") is None:
                continue
            points.append((across["mean"], along["mean"], arm))
            colour = MUTED if arm in result.get("baselines", ()) else PALETTE[0]
            for values, xs, ys in (
                (across, (across["low"], across["high"]), (along["mean"],) * 2),
                (along, (across["mean"],) * 2, (along["low"], along["high"])),
            ):
                if values["low"] is not None and values["high"] is not None:
                    axes.plot(xs, ys, color=colour, linewidth=1.0, alpha=0.5, zorder=2)
            axes.scatter(*points[-1][:2], s=36, color=colour, linewidths=0, zorder=3)
        if not points:
            raise InputError(f"no arm has finite means of both {x.lstrip('-')!r} and {y.lstrip('-')!r}")
        axes.margins(0.14)
        axes.set_xlabel(plain(heading(x)))
        axes.set_ylabel(plain(heading(y)))
        clean(axes, "both")
        name_points(axes, points)
        return write(plot, path)
