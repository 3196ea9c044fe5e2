"""The plot of accuracy against the size of networks."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kegnet_pl.reporting.style import (
    COLOURS,
    MUTED,
    distinct_colors,
    legend_columns,
    marker_of,
    name_of,
    new_figure,
    percent_axis,
    shift,
    short_number,
)
from kegnet_pl.reporting.summary import Point, format_mean, name_point

_LABEL_WIDTH = 90
_MOST_BARS = 40

_ONE_SIZE = 1.02
"""Compression ratios count as equal below this quotient; with another seed, ratios differ slightly."""


class _Series(NamedTuple):
    """Points that are joined by a line: students of one source, recipe and further settings."""

    source: str
    recipe: str
    settings: str


def draw_accuracy(points: Sequence[Point], narrow: bool = False) -> Figure:
    """Draw accuracy against size; where all students of a data set have one compression ratio, draw bars instead."""
    measured = [point for point in points if point.accuracies and point.row.quantization is None]
    ratios: dict[str, list[float]] = {}
    for point in (point for point in measured if point.row.method != "teacher"):
        ratios.setdefault(point.row.dataset, []).append(point.average("compression_ratio"))
    one_size = all(max(found) < _ONE_SIZE * min(found) for found in ratios.values())
    draw = draw_bars if one_size and len(measured) <= _MOST_BARS else draw_tradeoff
    return draw(measured, narrow)


def draw_bars(points: Sequence[Point], narrow: bool = False) -> Figure:
    """Draw a bar for the mean accuracy of each network, and its standard deviation; a panel for each data set.

    A dashed line is the teacher. Bars of ceilings are outlined. Without any accuracy, bars are agreements.
    """
    accuracy = any(point.accuracies for point in points)
    shown = [point for point in points if (point.accuracies if accuracy else point.agreement is not None)]
    colors = _series_colors(shown)
    datasets = [[*group] for _, group in groupby(shown, key=lambda point: point.row.dataset)]
    heights = [0.9 + (0.44 if narrow else 0.3) * len(members) for members in datasets]
    figure = new_figure(sum(heights), narrow)
    panels = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, members in zip(panels, datasets, strict=True):
        end = max(point.mean + (point.sd or 0.0) if accuracy else point.agreement or 0.0 for point in members)
        for index, point in enumerate(members):
            teacher = point.row.method == "teacher"
            color = COLOURS["teacher"] if teacher else colors[_series(point)]
            value = point.mean if accuracy else point.agreement or 0.0
            axis.barh(
                index, value, height=0.62, xerr=point.sd if accuracy else None, capsize=2.5, ecolor=MUTED,
                facecolor="none" if point.row.is_ceiling else color, edgecolor=color,
            )  # fmt: skip
            text = format_mean(point) if accuracy else f"{100 * value:.1f} %"
            axis.annotate(text, (end, index), (6, 0), textcoords="offset points", va="center", color=MUTED)
            if teacher and accuracy:
                axis.axvline(point.mean, color=color, linestyle="--", linewidth=1.2)
        names = [name_of(point.row, name_point(point)) for point in members]
        axis.set_yticks(range(len(members)), [textwrap.fill(name, 24 if narrow else 64) for name in names])
        axis.invert_yaxis()
        axis.set_xlim(0, 1.3 if narrow else 1.12)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axis.grid(axis="y", visible=False)
        dataset = "" if members[0].row.dataset == "none" else f"{members[0].row.dataset}: "
        measure = "test accuracy" if accuracy else "agreement with the teacher on synthetic samples (not accuracy)"
        axis.set_title(f"{dataset}{measure}")
    return figure


def draw_tradeoff(points: Sequence[Point], narrow: bool = False) -> Figure:
    """Draw accuracy against compression ratio and against MACs, in float32; a pair of panels for each data set.

    The teacher is a line; means over seeds are markers, their standard deviation a bar; markers of one source are
    joined, those of a ceiling are outlined and its line is dashed. ``narrow`` puts panels below each other, for a
    phone.
    """
    measured = [point for point in points if point.accuracies and point.row.quantization is None]
    datasets = list(dict.fromkeys(point.row.dataset for point in measured))
    colors = _series_colors(measured)
    count = max(len(datasets), 1)
    figure = new_figure((6.6 if narrow else 3.9) * count, narrow)
    if narrow:
        panels = figure.subplots(2 * count, 1, squeeze=False).reshape(count, 2)
    else:
        panels = figure.subplots(count, 2, squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for row, dataset in enumerate(datasets):
        of_dataset = [point for point in measured if point.row.dataset == dataset]
        for axis, size in zip(panels[row], ("compression_ratio", "macs"), strict=True):
            _draw_panel(axis, of_dataset, size, colors)
        panels[row][0].set_title(f"{dataset}: accuracy and size")
        panels[row][0].set_xlabel("compression ratio (teacher's parameters / student's)")
        for axis in panels[row] if narrow else panels[row][:1]:
            axis.set_ylabel("test accuracy")
            percent_axis(axis)
        panels[row][1].set_title("accuracy and work")
        panels[row][1].set_xlabel("multiply-accumulates for one sample")
        panels[row][1].invert_xaxis()  # smaller to the right, as on the left
        for handle, label in zip(*panels[row][0].get_legend_handles_labels(), strict=True):
            handles.setdefault(textwrap.fill(label, _LABEL_WIDTH // (2 if narrow else 1)), handle)
    columns = legend_columns(list(handles), narrow)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
    return figure


def _draw_panel(axis: Axes, points: Sequence[Point], size: str, colors: Mapping[_Series, str]) -> None:
    one_size = len({point.average(size) for point in points if point.row.method != "teacher"}) == 1
    for teacher in (point for point in points if point.row.method == "teacher"):
        name = " ".join(part for part in ("teacher", teacher.settings) if part)
        axis.axhline(teacher.mean, color=COLOURS["teacher"], linestyle="--", linewidth=1.2, label=name, zorder=1)
        if one_size:  # only the teacher's size can be compared with the student's
            axis.plot(teacher.average(size), teacher.mean, color=COLOURS["teacher"], marker="s", zorder=2)
    students = sorted((point for point in points if point.row.method != "teacher"), key=_order)
    every = list(dict.fromkeys(map(_series, students)))
    sources = [series.source for series in every]
    several = any(point.sd for point in students)
    for series, group in groupby(students, key=_series):
        line = sorted(group, key=lambda point: point.average(size))
        source = line[0].row.source
        recipe = series.recipe if sources.count(series.source) > 1 else ""
        ceiling, informed = line[0].row.is_ceiling, line[0].row.source_prior not in ("", "none")
        places = [(point.average(size), point.mean, point.sd) for point in line]
        place = shift(axis, places, every.index(series), len(every)) if several else axis.transData
        axis.errorbar(
            [point.average(size) for point in line],
            [point.mean for point in line],
            yerr=[point.sd or 0.0 for point in line] if several else None,
            transform=place,
            color=colors[series],
            marker=marker_of(source),
            markersize=6,
            linestyle="--" if ceiling else "-" if informed else ":",
            linewidth=1.8 if informed else 1.1,
            fillstyle="none" if ceiling else "full",
            capsize=2.5,
            label=name_of(line[0].row, " ".join(part for part in (line[0].row.name, recipe, series.settings) if part)),
            zorder=3 if informed else 2,
        )
    axis.autoscale_view()
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if size == "macs":
        axis.xaxis.set_major_formatter(lambda value, _: short_number(value))


def _series(point: Point) -> _Series:
    return _Series("" if point.row.source is None else point.row.source["name"], point.recipe, point.settings)


def _order(point: Point) -> tuple[bool, bool, bool, _Series]:
    """Sort students: informed sources first, then noise, untrained networks and ceilings."""
    return point.row.is_ceiling, point.row.source is None, point.row.source_prior == "none", _series(point)


def _series_colors(points: Sequence[Point]) -> dict[_Series, str]:
    """Return the colour of every series: the first of a source has the colour of that source."""
    students = [point for point in points if point.row.method != "teacher"]
    firsts = {_series(point): point.row.source for point in students}
    preferred: list[str | None] = []
    seen = set()
    for series, source in firsts.items():
        color = COLOURS["compressed"] if source is None else source["color"]
        preferred.append(None if series.source in seen else color)
        seen.add(series.source)
    return dict(zip(firsts, distinct_colors(preferred), strict=True))
