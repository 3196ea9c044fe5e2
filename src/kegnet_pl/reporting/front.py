"""The plot of accuracy against size on disk and against speed, with the Pareto front of all networks."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kegnet_pl.reporting.style import COLOURS, distinct_colors, legend_columns, new_figure, percent_axis, shift
from kegnet_pl.reporting.summary import Point, make_columns, name_point

_LABEL_WIDTH = 90
_LABEL = {"size": "size on disk in MB, smaller to the right", "speed": "speed-up for a batch of {}"}

_STEPS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(step / 10 for step in range(10, 100, 5)))
"""Multiples of a power of ten at which a logarithmic axis has ticks, from few to many."""

_FEWEST_TICKS = 4


def draw_front(points: Sequence[Point], narrow: bool = False) -> Figure:
    """Draw accuracy against size on disk and against speed-up; a pair of panels for each data set.

    Each compression has a colour; if there is only one, each source of samples has. Networks in int8 are squares,
    trained ones in float32 circles, untrained ones crosses. A line joins the networks of the Pareto front: no other
    network is better in both quantities. Ceilings are left out. Speed-ups of int8 networks are in ONNX Runtime, those
    of others in PyTorch. ``narrow`` puts panels below each other, for a phone.
    """
    shown = [point for point in points if point.accuracies and point.size is not None and not point.row.is_ceiling]
    groups = [list(group) for _, group in groupby(sorted(shown, key=_dataset), key=_dataset)]
    count = max(len(groups), 1)
    colors = _choose_colors(shown)
    labels = list(dict.fromkeys(map(name_point, shown)))
    lines = -(-(len(labels) + 1) // legend_columns(labels, narrow)) if labels else 0
    figure = new_figure((6.2 if narrow else 3.4) * count + 0.2 * lines, narrow)
    panels = figure.subplots(*((2 * count, 1) if narrow else (count, 2)), squeeze=False).reshape(count, 2)
    for row, members in enumerate(groups):
        for axis, quantity in zip(panels[row], ("size", "speed"), strict=True):
            _draw(axis, members, quantity, colors)
        panels[row][0].set_title(f"{members[0].row.dataset}: accuracy and size on disk")
        panels[row][1].set_title("accuracy and speed")
        panels[row][0].invert_xaxis()  # better to the right, as for the speed
    handles = {
        textwrap.fill(label, _LABEL_WIDTH // (2 if narrow else 1)): handle
        for axis in panels.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    columns = legend_columns(list(handles), narrow)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
    return figure


def can_draw_front(points: Sequence[Point]) -> bool:
    """Return True if there are networks of two sizes whose accuracy was measured."""
    return len({point.size for point in points if point.accuracies and point.size is not None}) > 1


def find_front(values: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the pairs on the Pareto front, in order: larger numbers are better."""
    front: list[int] = []
    for index in sorted(range(len(values)), key=lambda i: (values[i][0], values[i][1]), reverse=True):
        if not front or values[index][1] > values[front[-1]][1]:
            front.append(index)
    return front[::-1]


def make_front_columns(points: Sequence[Point]) -> dict[str, list[str]]:
    """Return the table of networks on a Pareto front: the columns of :func:`make_columns`, and the fronts of each."""
    shown = [point for point in points if point.accuracies and point.size is not None and not point.row.is_ceiling]
    fronts: dict[int, list[str]] = {}
    for _, group in groupby(sorted(shown, key=_dataset), key=_dataset):
        members = list(group)
        for quantity in ("size", "speed"):
            values = _measure(members, quantity, _largest_batch(members))
            for point, _ in _front_of(values, quantity):
                fronts.setdefault(id(point), []).append(quantity)
    found = [point for point in shown if id(point) in fronts]
    return make_columns(found) | {"front": [", ".join(fronts[id(point)]) for point in found]}


def _largest_batch(points: Sequence[Point]) -> int:
    return max((max(row.speedups, default=0) for point in points for row in point.rows), default=0)


def _measure(points: Sequence[Point], quantity: str, batch: int) -> list[tuple[Point, float]]:
    """Return points with their mean size in MB or speed-up; points without this value are left out."""
    if quantity == "size":
        return [(point, (point.size or 0.0) / 1e6) for point in points]
    found = [(point, [row.speedups[batch] for row in point.rows if batch in row.speedups]) for point in points]
    return [(point, statistics.mean(speedups)) for point, speedups in found if speedups]


def _front_of(values: Sequence[tuple[Point, float]], quantity: str) -> list[tuple[Point, float]]:
    sign = -1 if quantity == "size" else 1
    return [values[index] for index in find_front([(sign * value, point.mean) for point, value in values])]


def _choose_colors(points: Sequence[Point]) -> dict[int, str]:
    """Return the colour of every point, by its ``id``: see :func:`draw_front`."""
    several = len({point.row.student for point in points if point.row.student is not None}) > 1
    groups: dict[str, list[Point]] = {}
    colors = {id(point): COLOURS["teacher"] for point in points}
    for point in (point for point in points if point.row.student is not None):
        source = "" if point.row.source is None else str(point.row.source["name"])
        groups.setdefault(str(point.row.student) if several else source, []).append(point)
    sources = [group[0].row.source for group in groups.values()]
    own = [COLOURS["compressed"] if source is None else str(source["color"]) for source in sources]
    found = distinct_colors([None] * len(own) if several else own)
    for color, group in zip(found, groups.values(), strict=True):
        colors |= {id(point): color for point in group}
    return colors


def _dataset(point: Point) -> str:
    return point.row.dataset


def _draw(axis: Axes, points: Sequence[Point], quantity: str, colors: dict[int, str]) -> None:
    batch = _largest_batch(points)
    values = _measure(points, quantity, batch)
    front = _front_of(values, quantity)
    axis.plot(
        [value for _, value in front],
        [point.mean for point, _ in front],
        color="grey",
        linewidth=1.0,
        label="Pareto front",
        zorder=1,
    )
    several = any(point.sd for point, _ in values)
    for point, value in values:
        members = [other for other, _ in values if other.row.student == point.row.student]
        trained = point.row.source is not None or point.row.student is None
        marker = "s" if point.row.quantization is not None else "o" if trained else "x"
        color = colors[id(point)]
        shifted = shift(axis, [(value, point.mean, point.sd)], members.index(point), len(members))
        axis.errorbar(
            value, point.mean, yerr=point.sd, color=color, marker=marker, markersize=6, linestyle="none",
            capsize=2.5, label=name_point(point), zorder=2 if trained else 3,
            transform=shifted if several else axis.transData,
        )  # fmt: skip
    axis.autoscale_view()
    axis.set_xlabel(_LABEL[quantity].format(batch))
    axis.set_ylabel("test accuracy")
    percent_axis(axis)
    axis.margins(x=0.08, y=0.08)
    if quantity == "size" and values:
        axis.set_xscale("log")
        axis.set_xticks(choose_ticks(*sorted(axis.get_xlim())), minor=False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_locator(NullLocator())


def choose_ticks(low: float, high: float) -> list[float]:
    """Return round numbers within a range of a logarithmic axis: at least four, if the range is not tiny."""
    found: list[float] = []
    for steps in _STEPS:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [float(f"{step * 10.0**power:g}") for power in powers for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) >= _FEWEST_TICKS:
            break
    return found
