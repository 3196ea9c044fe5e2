"""How pictures look: the same colours everywhere, on light and on dark ground."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLOURS = {
    "KegNet": "#2468d8",
    "Uniform": "#d9730d",
    "Normal": "#0a8f6a",
    "compressed": "#8a63d2",
    "teacher": "#5b6472",
}
"""Of the kinds of networks; each is told from the others, and from the ground, by people who see fewer colours."""

SERIES = ("#c2356b", "#1295a8", "#7a6a00", "#3b4cc0", "#a0522d", "#2e8b57", "#b8860b", "#6a5acd")
"""For what has no colour of its own: further series of one kind, generators, classes."""

INK, MUTED, GRID = "#1b1f24", "#5b6473", "#d9dde3"
"""Text; less important text; lines behind the data. A page may turn these, see :func:`to_svg`."""

WIDE, NARROW = 9.2, 4.6
"""Widths of pictures, in inches: for a screen, where panels stand side by side, and for a phone."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", COLOURS["teacher"]: "--muted", GRID: "--line"}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of the house."""
    with mpl.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9.5,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.fonttype": "none",
            "figure.dpi": 110,
        }
    ):
        yield


def width_of(narrow: bool) -> float:
    """Return the width of a picture, in inches."""
    return NARROW if narrow else WIDE


def layout_of(narrow: bool) -> ConstrainedLayoutEngine:
    """Return how the panels of a picture are laid out: below each other they need more room for their titles."""
    return ConstrainedLayoutEngine(h_pad=0.12) if narrow else ConstrainedLayoutEngine()


def to_svg(figure: Figure, title: str, salt: str = "") -> str:
    """Return a figure as SVG to stand in a page: transparent, text in the page's font, ink that follows its theme.

    Args:
        figure: Drawn in the style of the house.
        title: What it shows, for those who cannot see it.
        salt: Tells the identifiers of pictures of one page apart, where they show the same.
    """
    out = io.StringIO()
    options: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}, "bbox_inches": "tight", "transparent": True}
    with mpl.rc_context({"svg.hashsalt": f"kegnet_pl{salt}"}):
        figure.savefig(out, format="svg", **options)
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # The page's width rules; the picture keeps its shape.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="width:100%;max-width:\2pt;height:auto"', svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def percent_axis(axis: Axes) -> None:
    """Show accuracies in [0, 1] as percent on a vertical axis."""
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
