"""Draws the pipeline for README and documentation: ``python -m reproduction.pipeline_figure FILE.svg``.

Boxes have their own background and lines are grey, so the picture is readable on light and on dark pages.
"""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

_GREY = "#7d8590"

_BOXES = {
    "teacher": (0.0, 1.0, "Teacher", "your network,\nno data", "#cfe2ff"),
    "generators": (3.1, 1.9, "Generators", "trained against\nthe teacher", "#ffe3c2"),
    "sources": (3.1, 0.1, "Other sources", "procedural samples,\nnoise", "#ffe3c2"),
    "samples": (6.2, 1.0, "Samples", "labels: outputs\nof the teacher", "#d9f2d9"),
    "student": (9.3, 1.0, "Student", "compressed teacher,\ntrained on samples", "#e6d9ff"),
}
"""Name -> left and lower edge, title, text and colour."""

_WIDTH, _HEIGHT = 2.3, 1.3

_ARROWS = [("teacher", "generators"), ("generators", "samples"), ("sources", "samples"), ("samples", "student")]


def draw() -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(9.6, 3.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.1, 11.8)
    axes.set_ylim(-0.75, 3.35)
    for x, y, title, text, color in _BOXES.values():
        box = FancyBboxPatch(
            (x, y), _WIDTH, _HEIGHT, "round,pad=0,rounding_size=0.15", facecolor=color, edgecolor=_GREY
        )
        axes.add_patch(box)
        axes.text(x + _WIDTH / 2, y + 1.0, title, ha="center", va="center", weight="bold", size=12, color="#1f2328")
        axes.text(x + _WIDTH / 2, y + 0.45, text, ha="center", va="center", size=9.5, color="#1f2328")
    for start, end in _ARROWS:
        _connect(axes, _side(start, right=True), _side(end, right=False))
    left, right = (_side(name, right=False)[0] + _WIDTH / 2 for name in ("teacher", "student"))
    bottom, top = -0.3, _side("student", right=False)[1] - _HEIGHT / 2
    axes.plot([left, left, right], [top, bottom, bottom], color=_GREY, linewidth=1.5)
    _connect(axes, (right, bottom), (right, top))
    axes.text(
        (left + right) / 2, -0.55, "compression: Tucker decomposition or pruning", ha="center", va="center", size=9.5,
        color=_GREY,
    )  # fmt: skip
    return figure


def _side(name: str, right: bool) -> tuple[float, float]:
    x, y, *_ = _BOXES[name]
    return x + _WIDTH * right, y + _HEIGHT / 2


def _connect(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=_GREY, linewidth=1.5, shrinkA=0)
    axes.add_patch(arrow)


def main(path: Path) -> None:
    """Write the picture; equal content gives equal bytes."""
    with mpl.rc_context({"svg.hashsalt": "kegnet_pl"}):
        draw().savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
