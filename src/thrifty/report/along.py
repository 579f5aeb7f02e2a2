"""Metrics along sessions: the values of each arm that belong to one curve, and their plot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.core.errors import InputError
from thrifty.report.canvas import MUTED, PALETTE, clean, figure, plain, write

_POINT = re.compile(r"(?P<curve>.+)@(?P<place>\d+)")
_DASHES = ("-", "--", ":", "-.")
_ROW = 0.19  # inches for a line of the legend
Curve = list[tuple[int, float, float | None, float | None]]


def curves(result: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """The curves that a measurement's metrics make: those called ``NAME@1``, ``NAME@2`` and so on.

    Parameters
    ----------
    result
        A claim's or a comparison's result (see :mod:`thrifty.claims.harness`).

    Returns
    -------
    dict
        Name of the curve to arm to its places, means and the ends of their intervals, in order; points without a mean
        are left out.
    """
    found: dict[str, dict[str, Curve]] = {}
    for arm, measured in result["arms"].items():
        for name, values in measured["metrics"].items():
            point = _POINT.fullmatch(name)
            if point and values["mean"] is not None:
                curve = found.setdefault(point["curve"], {}).setdefault(arm, [])
                curve.append((int(point["place"]), values["mean"], values["low"], values["high"]))
    return {name: {arm: sorted(curve) for arm, curve in arms.items()} for name, arms in found.items()}


def along_plot(result: Mapping[str, Any], name: str, path: Path) -> Path:
    """One line an arm over the sessions, with the 95% interval as a band; methods in colour, baselines in grey.

    Parameters
    ----------
    result
        A measurement whose arms have metrics ``NAME@1``, ``NAME@2`` and so on.
    name
        Which curve.
    path
        Where to: ``.svg`` or ``.png``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        When no arm has such a curve.
    """
    arms = curves(result).get(name)
    if not arms:
        raise InputError(f"no arm has a curve {name!r}: metrics called {name}@1, {name}@2 and so on make one")
    baselines = set(result.get("baselines", ()))
    with figure(2.6 + _ROW * ((len(arms) + 1) // 2)) as plot:
        axes = plot.add_subplot()
        methods = rest = 0
        for arm, curve in arms.items():
            if arm in baselines or methods >= len(PALETTE):
                colour, dash, rest = MUTED, _DASHES[rest % len(_DASHES)], rest + 1
            else:
                colour, dash, methods = PALETTE[methods], "-", methods + 1
            places = [place for place, *_ in curve]
            axes.plot(
                places,
                [mean for _, mean, _, _ in curve],
                dash,
                color=colour,
                linewidth=1.6,
                marker="o",
                markersize=3,
                label=plain(arm),
            )
            spread = [(place, low, high) for place, _, low, high in curve if low is not None and high is not None]
            if spread:
                axes.fill_between(
                    [place for place, _, _ in spread],
                    [low for _, low, _ in spread],
                    [high for _, _, high in spread],
                    color=colour,
                    alpha=0.12,
                    linewidth=0,
                )
        axes.set_xlabel("session")
        axes.set_ylabel(plain(name))
        axes.locator_params(axis="x", integer=True, nbins=10)
        clean(axes, "y")
        plot.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5)
        return write(plot, path)
