"""The picture of a sweep: accuracy against how much smaller a network is."""

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kegnet_pl.reporting.style import COLOURS, SERIES, layout_of, percent_axis, width_of
from kegnet_pl.reporting.summary import Point

_MARKS = {"KegNet": "o", "Uniform": "^", "Normal": "v", "compressed": "x"}
_LABEL_WIDTH = 90
_NAMES = {"compressed": "untrained"}


def draw_tradeoff(points: Sequence[Point], narrow: bool = False) -> Figure:
    """Draw accuracy against compression ratio and against MACs; a pair of panels for each data set.

    The teacher is a line; means over seeds are marks, their standard deviation a bar; marks of one method are joined.

    Args:
        points: At least one with an accuracy.
        narrow: Whether panels shall stand below each other, as for a phone.
    """
    drawn = [point for point in points if point.accuracies]
    datasets = list(dict.fromkeys(point.dataset for point in drawn))
    count = max(len(datasets), 1)
    figure = Figure(figsize=(width_of(narrow), (6.6 if narrow else 3.9) * count), layout=layout_of(narrow))
    if narrow:
        panels = figure.subplots(2 * count, 1, squeeze=False).reshape(count, 2)
    else:
        panels = figure.subplots(count, 2, squeeze=False, sharey="row")
    for row, dataset in enumerate(datasets):
        mine = [point for point in drawn if point.dataset == dataset]
        for axis, what in zip(panels[row], ("compression_ratio", "macs"), strict=True):
            _draw_panel(axis, mine, what)
        panels[row][0].set_title(f"{dataset}: accuracy and size")
        panels[row][0].set_xlabel("compression ratio (teacher's parameters / student's)")
        for axis in panels[row] if narrow else panels[row][:1]:
            axis.set_ylabel("test accuracy")
            percent_axis(axis)
        panels[row][1].set_title("accuracy and work")
        panels[row][1].set_xlabel("multiply-accumulates for one sample")
        panels[row][1].invert_xaxis()  # smaller to the right, as on the left
        if row == 0:
            handles, labels = panels[row][0].get_legend_handles_labels()
            labels = [textwrap.fill(label, _LABEL_WIDTH // (2 if narrow else 1)) for label in labels]
            columns = max(1, min(len(labels), 3, (1 if narrow else 3) * 28 // max(map(len, labels))))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return figure


def kind_of(method: str) -> str:
    """Return what a row's method is drawn as: ``KegNet``, ``Uniform``, ``Normal``, ``compressed`` or ``teacher``."""
    return method.split("+", 1)[1] if "+" in method else "teacher" if method == "teacher" else "compressed"


def _draw_panel(axis: Axes, points: Sequence[Point], what: str) -> None:
    alone = len({getattr(point, what) for point in points if point.method != "teacher"}) == 1
    for teacher in (point for point in points if point.method == "teacher"):
        name = " ".join(part for part in ("teacher", teacher.settings) if part)
        axis.axhline(teacher.mean, color=COLOURS["teacher"], linestyle="--", linewidth=1.2, label=name, zorder=1)
        if alone:  # nothing to compare a student's size with but the teacher's
            axis.plot(getattr(teacher, what), teacher.mean, color=COLOURS["teacher"], marker="s", zorder=2)
    students = sorted((point for point in points if point.method != "teacher"), key=_order)
    kinds = [series[0] for series in dict.fromkeys(map(_series, students))]
    for number, (series, group) in enumerate(groupby(students, key=_series)):
        mine = sorted(group, key=lambda point: getattr(point, what))
        kind, recipe, settings = series
        several = kinds.count(kind) > 1
        first = kinds.index(kind) == number
        label = " ".join(part for part in (_NAMES.get(kind, kind), recipe if several else "", settings) if part)
        colour = COLOURS[kind] if first else SERIES[number % len(SERIES)]
        axis.errorbar(
            [getattr(point, what) for point in mine],
            [point.mean for point in mine],
            yerr=[point.sd or 0.0 for point in mine],
            color=colour,
            marker=_MARKS[kind],
            markersize=6,
            linestyle="-" if kind == "KegNet" else ":",
            linewidth=1.8 if kind == "KegNet" else 1.1,
            capsize=2.5,
            label=label,
            zorder=3 if kind == "KegNet" else 2,
        )
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if what == "macs" and points:
        exponent = 3 * int(math.log10(max(max(point.macs for point in points), 1)) // 3)
        unit = {0: "", 3: " k", 6: " M", 9: " G"}.get(exponent, f"e{exponent}")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 10**exponent:g}{unit}")


def _order(point: Point) -> tuple[int, str, str]:
    kind, recipe, settings = _series(point)
    return list(_MARKS).index(kind), recipe, settings


def _series(point: Point) -> tuple[str, str, str]:
    return kind_of(point.method), point.recipe, point.settings
