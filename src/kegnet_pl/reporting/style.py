"""Style of all plots: colours and markers, on light and on dark ground."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from kegnet_pl.reporting.results import Row

COLOURS = {"compressed": "#8a63d2", "teacher": "#5b6472", "bars": "#2468d8"}
"""Colours of untrained students, of teachers, and of bars; trained students have the colour of their source."""

SERIES = (
    "#c2356b", "#1295a8", "#7a6a00", "#3b4cc0", "#a0522d", "#2e8b57", "#b8860b", "#6a5acd", "#e377c2",
    "#3f9b0b",
)  # fmt: skip
"""Colours of everything else: further series of one source, generators, classes."""

_MARKERS = {marker for marker in Line2D.markers if isinstance(marker, str)}

_NEAR = 0.26
"""Colours at a smaller distance in RGB, each in [0, 1], are hard to distinguish."""

_STEP = 5.0
"""Distance in points between error bars at the same place."""

INK, MUTED, GRID = "#1b1f24", "#5b6473", "#d9dde3"
"""Text; less important text; lines behind the data. A dark page inverts these, see :func:`to_svg`."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", COLOURS["teacher"]: "--muted", GRID: "--line"}


def house_style() -> AbstractContextManager[None]:
    """Return a context that draws in the style of this project."""
    return mpl.rc_context(
        {
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
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.fonttype": "none",
            "text.parse_math": False,  # names from files may hold dollars
            "figure.dpi": 110,
        }
    )


@dataclass(frozen=True)
class Look:
    """Colour and marker of a network in plots, and its name there; a ceiling is outlined or dashed."""

    color: str
    marker: str
    name: str
    ceiling: bool = False


def looks_of(rows: Sequence[Row]) -> dict[str, Look]:
    """Return the look of every row of a run, by method: trained students have that of their source."""
    students = {row.method: row for row in rows if row.method != "teacher"}
    preferred = [COLOURS["compressed"] if row.source is None else row.source["color"] for row in students.values()]
    colors = distinct_colors(preferred)
    looks = {
        method: Look(color, marker_of(row.source), name_of(row, row.name), row.is_ceiling)
        for (method, row), color in zip(students.items(), colors, strict=True)
    }
    return {"teacher": Look(COLOURS["teacher"], "_", "teacher")} | looks


def marker_of(source: Mapping[str, Any] | None) -> str:
    """Return the marker of a source in plots; a cross without one, a circle where matplotlib has no such marker."""
    if source is None:
        return "x"
    return str(source["marker"]) if source["marker"] in _MARKERS else "o"


def name_of(row: Row, name: str) -> str:
    """Return the name of a row in a legend; that of a ceiling states that it is not a data-free result."""
    return f"{name}: ceiling, not data-free" if row.is_ceiling else name


def distinct_colors(preferred: Sequence[str | None]) -> list[str]:
    """Return a colour for every series: the preferred one, or another where it is not given or already taken.

    Args:
        preferred: ``#rrggbb`` of every series, None for any; a series has precedence over those that follow it.
    """
    found: list[str | None] = []
    for color in preferred:
        found.append(None if color is None or _is_near(color, [COLOURS["teacher"], *found]) else color)
    spare = list(SERIES)
    for index, color in enumerate(found):
        if color is None:
            free = [choice for choice in spare if not _is_near(choice, found)] or spare or list(SERIES)
            found[index] = free[0]
            spare = [choice for choice in spare if choice != free[0]]
    return [str(color) for color in found]


def _is_near(color: str, others: Sequence[str | None]) -> bool:
    distances = (math.dist(to_rgb(color), to_rgb(other)) for other in others if other is not None)
    return any(distance < _NEAR for distance in distances)


def legend_columns(labels: Sequence[str], narrow: bool) -> int:
    """Return how many columns of a legend fit below a picture."""
    return max(1, min(len(labels), 3, (1 if narrow else 3) * 28 // max(map(len, labels), default=1)))


def new_figure(height: float, narrow: bool) -> Figure:
    """Return an empty figure of a height in inches: for a screen, or a narrow one for a phone."""
    # Panels below each other need more space for titles.
    layout = ConstrainedLayoutEngine(h_pad=0.12) if narrow else ConstrainedLayoutEngine()
    return Figure(figsize=(4.6 if narrow else 12.4, height), layout=layout)


def to_svg(figure: Figure, title: str, salt: str = "") -> str:
    """Return a figure as SVG for a page: transparent, with the font of the page and the colours of its theme.

    Args:
        figure: Drawn with :func:`house_style`.
        title: Description for screen readers.
        salt: Makes the identifiers of equal pictures of one page different.
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


def shift(axis: Axes, points: Sequence[tuple[float, float, float | None]], index: int, count: int) -> Transform:
    """Return the transform that moves series ``index`` of ``count`` sideways, so that all error bars are visible.

    ``points`` (x, mean, standard deviation) get space on the axis, which matplotlib computes without the shift alone.
    """
    spread = [(x, mean + sign * (sd or 0.0)) for x, mean, sd in points for sign in (-1, 1)]
    axis.update_datalim(spread)
    points_beside = _STEP * (index - (count - 1) / 2)
    return axis.transData + ScaledTranslation(points_beside / 72, 0, axis.figure.dpi_scale_trans)


def percent_axis(axis: Axes) -> None:
    """Show accuracies in [0, 1] as percent on a vertical axis; ticks of its margin above 100 % have no label."""
    axis.yaxis.set_major_formatter(lambda value, _: "" if value > 1 + 1e-9 else f"{100 * value:g} %")


def short_number(value: float) -> str:
    """Return a number with the letters of thousands, millions and billions: ``417 k``."""
    for exponent, unit in ((9, " G"), (6, " M"), (3, " k")):
        if abs(value) >= 10**exponent:
            return f"{value / 10**exponent:.3g}{unit}"
    return f"{value:g}"
