"""Names beside the points of a plot, kept clear of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.report.canvas import INK, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Above, below, right, left and the corners, near and further out: points off, horizontal and vertical alignment.
_SIDES = tuple(
    (far * x, far * y, {1: "left", 0: "center", -1: "right"}[x], {1: "bottom", 0: "center", -1: "top"}[y])
    for far in (6, 20, 34)
    for x, y in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
)


def name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes each point's name where it covers no other name and no point, as far as there is such a place.

    Parameters
    ----------
    axes
        Where the points are drawn already; scales, margins and axis labels are set.
    points
        Places and names.
    """
    plot = axes.get_figure(root=True)
    assert plot is not None
    plot.draw_without_rendering()  # what is measured below depends on the layout
    marks = axes.transData.transform([(x, y) for x, y, _ in points])
    taken: list[Bbox] = []
    for place, (x, y, name) in enumerate(points):
        best, least = None, float("inf")
        for dx, dy, across, along in _SIDES:
            text = axes.annotate(
                plain(name), (x, y), (dx, dy), textcoords="offset points", ha=across, va=along, fontsize=8.5, color=INK
            )
            box = text.get_window_extent().padded(2)
            others = [mark for number, mark in enumerate(marks) if number != place]
            cost = sum(box.overlaps(other) for other in taken) + 0.5 * sum(box.contains(*mark) for mark in others)
            # Half out of the figure is as bad as over another name.
            cost += not (plot.bbox.contains(box.x0, box.y0) and plot.bbox.contains(box.x1, box.y1))
            if cost < least:
                if best is not None:
                    best.remove()
                best, least = text, cost
            else:
                text.remove()
            if least == 0:
                break
        assert best is not None
        taken.append(best.get_window_extent().padded(2))
