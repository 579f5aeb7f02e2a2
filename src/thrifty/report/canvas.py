"""The look of all plots, and how one is written: SVG that follows a page's light or dark theme, or PNG."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from thrifty.core.atomic import replacing
from thrifty.core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart; their yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, MUTED, LINE, PAPER = "#1b2126", "#6e7781", "#dfe3e8", "#ffffff"
_DARK = {INK: "#e6e9ec", MUTED: "#9aa4ae", LINE: "#343b43", PAPER: "#171b1f", PALETTE[0]: "#4aa8e0"}
WIDTH = 4.8  # inches: text keeps a readable size when a phone shrinks the plot to its width
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.useoffset": False,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "thrifty",
}


@contextmanager
def figure(height: float, width: float = WIDTH) -> Iterator[Figure]:
    """A figure of its own, in no registry of open figures, in the look of all plots.

    Parameters
    ----------
    height, width
        Inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        plot = Figure(figsize=(width, height))
        FigureCanvasAgg(plot)
        yield plot


def write(plot: Figure, path: Path) -> Path:
    """Writes a figure as SVG or PNG, by the ending of ``path``, atomically and with the same bytes each time.

    Raises
    ------
    InputError
        When the ending is neither.
    """
    if path.suffix.lower() not in {".svg", ".png"}:
        raise InputError(f"{path} should end in .svg or .png")
    with replacing(path) as temporary:
        if path.suffix.lower() == ".png":
            plot.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        else:
            text = io.StringIO()
            plot.savefig(text, format="svg", metadata={"Date": None})
            temporary.write_text(_themed(text.getvalue()), encoding="utf-8")
    return path


def _themed(svg: str) -> str:
    """An SVG whose neutral colours turn with the reader's theme; drawn in the reader's own font."""
    names = {colour: f"--c{position}" for position, colour in enumerate(_DARK)}
    for colour, name in names.items():
        svg = re.sub(colour, f"var({name})", svg, flags=re.IGNORECASE)
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{name}:{_DARK[colour]};" for colour, name in names.items())
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    # Narrower than the font that placed the text, so that nothing runs over.
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    return re.sub(r"(<svg[^>]*>)", lambda found: found.group(1) + style, svg, count=1)


def clean(axes: Axes, grid: str) -> None:
    """Grid lines along one direction only, across the values that are read."""
    axes.grid(False)
    axes.grid(True, axis=grid)  # type: ignore[arg-type]


def plain(text: str) -> str:
    """A user's text as a label: dollars are no mathematics, and long names break."""
    return textwrap.fill(text.replace("$", r"\$"), 26, break_long_words=True)
