"""Plots of one run: curves, layers, classes, costs. ``narrow`` is True for the shape that fits a phone."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kegnet_pl.compression import CompressionReport
from kegnet_pl.reporting.classes import ClassCounts
from kegnet_pl.reporting.style import (
    COLOURS,
    MUTED,
    SERIES,
    Look,
    legend_columns,
    new_figure,
    percent_axis,
    short_number,
)
from kegnet_pl.runtime.attempts import find_tables
from kegnet_pl.runtime.safe_files import LARGEST, exists, printable, read_bytes

_MOST_CURVES = 1_000
_MOST_EPOCHS = 20_000

Curve = list[tuple[float, float]]
"""Number of optimizer steps, and value."""

_COST_NAMES = {
    "teacher_training": "training the teacher",
    "compression": "compressing",
    "generator_training": "training generators",
    "drawing": "drawing samples",
    "labelling": "labelling them",
    "student_training": "training students",
    "evaluation": "evaluating",
    "other": "start-up, pictures, writing",
}


def read_curves(logs: Path, left_out: list[str] | None = None) -> dict[str, Curve]:
    """Read the metrics of a fit from the folder of a CSV logger; a resumed fit has several versions.

    Values that are not numbers from -1e100 to 1e100 are left out; their names are added to ``left_out``.
    """
    curves: dict[str, dict[float, float]] = {}
    for file in find_tables(logs):
        lines = read_bytes(file, logs).decode().splitlines() if exists(file) else []
        for line in csv.DictReader(lines):
            for name, value in line.items():
                if value and line.get("epoch") and name not in ("epoch", "step"):  # without an epoch: an evaluation
                    point = _number(line.get("step", "")), _number(value)
                    if point[0] is not None and point[1] is not None:
                        curves.setdefault(printable(name, 60), {})[point[0] + 1] = point[1]
                    elif left_out is not None:
                        left_out.append(printable(name, 60))
    return {name: sorted(values.items())[:_MOST_EPOCHS] for name, values in list(curves.items())[:_MOST_CURVES]}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) <= LARGEST else None


def split_curves(curves: Mapping[str, Curve], name: str) -> dict[str, dict[str, Curve]]:
    """Return curves by network: ``generator_0/train/loss`` is ``train/loss`` of ``generator_0``.

    Curves without a name in front are of the network ``name``.
    """
    networks: dict[str, dict[str, Curve]] = {}
    for key, curve in curves.items():
        network, _, rest = key.partition("/") if key.count("/") > 1 else (name, "/", key)
        networks.setdefault(network, {})[rest] = curve
    return networks


def join_curves(curves: dict[str, Curve], more: Mapping[str, Curve]) -> None:
    """Add the epochs of further curves: several processes, or attempts, may have trained one network."""
    for name, curve in more.items():
        curves[name] = sorted({**dict(curves.get(name, [])), **dict(curve)}.items())


def draw_generator_curves(curves: Mapping[str, Mapping[str, Curve]], narrow: bool = False) -> Figure:
    """Draw the losses of generators (name -> :func:`read_curves`), and the teacher's confidence in their samples."""
    curves = {name.replace("_", " "): of_one for name, of_one in curves.items()}
    known = {name for of_one in curves.values() for name in of_one}
    terms = sorted(name for name in known if name.startswith("train/loss_"))
    titles = {"train/loss": "objective"}
    titles |= {term: term.removeprefix("train/loss_").replace("_", " ") for term in terms}
    titles |= {"samples/confidence": "teacher's confidence"}
    panels = {name: title for name, title in titles.items() if name in known}
    colors = {name: SERIES[index % len(SERIES)] for index, name in enumerate(curves)}
    columns = 2 if narrow else 3
    lines = -(-len(panels) // columns)
    figure = new_figure((2.0 if narrow else 2.5) * lines, narrow)
    _draw_panels(figure.subplots(lines, columns, squeeze=False), panels, curves, colors)
    if len(curves) > 1:
        columns = min(len(curves), 3 if narrow else 6)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def draw_student_curves(
    curves: Mapping[str, Mapping[str, Curve]], looks: Mapping[str, Look], narrow: bool = False
) -> Figure:
    """Draw the training of students (method -> :func:`read_curves`): the loss, and the agreement with the teacher."""
    panels = {"train/loss": "distillation loss in nats", "train/agreement": "agreement with the teacher, in training"}
    if any("val/accuracy" in of_one for of_one in curves.values()):
        panels["val/accuracy"] = "validation accuracy"
    figure = new_figure(2.4 * len(panels) if narrow else 2.9, narrow)
    shape = (len(panels), 1) if narrow else (1, len(panels))
    named = {looks[method].name: of_one for method, of_one in curves.items()}
    of_curves = [looks[method] for method in curves]
    colors = {look.name: look.color for look in of_curves}
    dashed = {look.name for look in of_curves if look.ceiling}
    _draw_panels(figure.subplots(*shape, squeeze=False), panels, named, colors, dashed)
    columns = legend_columns(list(named), narrow)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def _draw_panels(
    axes: np.ndarray,
    panels: Mapping[str, str],
    curves: Mapping[str, Mapping[str, Curve]],
    colors: Mapping[str, str],
    dashed: Collection[str] = (),
) -> None:
    """Draw a panel for each metric (name -> title), with a line for each network; remove the other axes."""
    free = list(axes.flatten())
    for name, title in panels.items():
        axis = free.pop(0)
        for network, of_one in curves.items():
            if curve := of_one.get(name):
                marker = "o" if len(curve) < 8 else None
                axis.plot(
                    *zip(*curve, strict=True), color=colors[network], label=network, marker=marker, markersize=4,
                    linestyle="--" if network in dashed else "-",
                )  # fmt: skip
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(lambda value, _: short_number(value))
        if name.endswith(("accuracy", "agreement", "confidence")):
            percent_axis(axis)
    for axis in free:
        axis.remove()


def draw_compression(report: CompressionReport, narrow: bool = False) -> Figure:
    """Draw the parameters and multiply-accumulates of every layer before and after compression."""
    rows = [row for row in report.rows if row.parameters_before or row.macs_before]
    height = 0.9 + 0.34 * len(rows)
    figure = new_figure(2 * height if narrow else height, narrow)
    axes = figure.subplots(2, 1, sharey=True) if narrow else figure.subplots(1, 2, sharey=True)
    positions = np.arange(len(rows))
    for axis, size, title in zip(axes, ("parameters", "macs"), ("parameters", "MACs of one sample"), strict=True):
        before = [getattr(row, f"{size}_before") for row in rows]
        after = [getattr(row, f"{size}_after") for row in rows]
        axis.barh(positions, before, height=0.72, color=COLOURS["teacher"], alpha=0.35, label="teacher")
        axis.barh(positions, after, height=0.4, color=COLOURS["bars"], label="student")
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(lambda value, _: short_number(value))
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(positions, [row.layer for row in rows])
    axes[0].invert_yaxis()
    axes[1].legend(loc="lower right")
    return figure


def draw_classes(counts: Mapping[str, ClassCounts], looks: Mapping[str, Look], narrow: bool = False) -> Figure:
    """Draw the accuracy of every class that is shown: method -> its counts."""
    labels = next(iter(counts.values())).labels
    figure = new_figure(3.6 if narrow else 3.1, narrow)
    axis = figure.subplots()
    students = [method for method in counts if method != "teacher"]
    spacing = min(0.13, 0.8 / max(len(students), 1))
    for method, one in counts.items():
        is_teacher, look = method == "teacher", looks[method]
        # Side by side: near 100 % they would hide each other.
        offset = 0.0 if is_teacher else spacing * (students.index(method) - (len(students) - 1) / 2)
        shares = np.asarray(one.right) / np.maximum(one.samples, 1)
        size, edge = (12 if narrow else 20, 2.2) if is_teacher else (4.5 if narrow else 6.5, 1.2)
        axis.plot(
            np.arange(len(shares)) + offset, shares, linestyle="none", marker=look.marker, color=look.color,
            label=look.name, markersize=size, markeredgewidth=edge, fillstyle="none" if look.ceiling else "full",
        )  # fmt: skip
    axis.set_xticks(range(len(labels)), map(str, labels), rotation=90 if max(labels) > 49 else 0)
    axis.set_xlabel("class")
    axis.set_ylabel("accuracy")
    percent_axis(axis)
    longest = max(len(looks[method].name) for method in counts)
    figure.legend(loc="outside lower center", ncols=max(1, (42 if narrow else 100) // (longest + 4)))
    return figure


def draw_walk(walks: Sequence[Mapping[str, Any]], narrow: bool = False) -> Figure:
    """Draw the teacher's probability of the class that each walk ends in."""
    figure = new_figure(3.0 if narrow else 2.6, narrow)
    axis = figure.subplots()
    for index, walk in enumerate(walks):
        shares = np.linspace(0, 1, len(walk["p_to"]))
        name = f"{walk['from']} → {walk['to']}"
        axis.plot(shares, walk["p_to"], color=SERIES[index % len(SERIES)], label=name)
    axis.set_xlabel("share of the second class in the label")
    axis.set_ylabel("teacher's probability of it")
    percent_axis(axis)
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    figure.legend(loc="outside lower center" if narrow else "outside right center", ncols=3 if narrow else 1)
    return figure


def draw_costs(seconds: Mapping[str, float], narrow: bool = False) -> Figure:
    """Draw the seconds of every kind of work (:mod:`kegnet_pl.runtime.costs`)."""
    spent = [(_COST_NAMES.get(work, work), value) for work, value in seconds.items() if value > 0]
    figure = new_figure(0.7 + 0.32 * max(len(spent), 1), narrow)
    axis = figure.subplots()
    bars = axis.barh([name for name, _ in spent], [value for _, value in spent], color=COLOURS["bars"], height=0.6)
    axis.bar_label(bars, [clock(value) for _, value in spent], padding=4, color=MUTED)
    axis.invert_yaxis()
    axis.margins(x=0.35 if narrow else 0.12)
    axis.xaxis.set_visible(False)
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)
    return figure


def clock(seconds: float) -> str:
    """Return seconds as text: ``0.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
