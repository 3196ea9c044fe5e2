"""Summary of several runs: means and standard deviations over seeds."""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kegnet_pl.reporting.agreement import format_agreement
from kegnet_pl.reporting.names import name_compression
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.runs import FinishedRun, varied
from kegnet_pl.reporting.tables import format_size

_IN_ROWS = (
    "seed", "compression", "compression.target", "compression.rank", "experiment", "data", "recipe", "sources",
)  # fmt: skip
"""Settings that the columns of a row show, or that are averaged over."""

_OF_STUDENTS = ("generator", "student", "compression", "schedule", "source")
"""Groups of settings that a teacher does not depend on. It may depend on all others, also on those a user adds."""

NUMBERS = ("accuracy", "agreement", "seeds", "ratio", "MB", "MACs", "speed-up", "seconds")
"""Columns of numbers in the table of means."""


@dataclass(frozen=True)
class Point:
    """Networks that differ by their seed alone: a marker in the plot and a line in the table.

    Attributes:
        settings: Other settings that were varied, as ``key=value``; empty if there are none.
        rows: The networks, at least one.
    """

    settings: str
    rows: tuple[Row, ...]

    @property
    def row(self) -> Row:
        """The first network, for everything that all of them share."""
        return self.rows[0]

    @property
    def recipe(self) -> str:
        """Name of the recipe; empty without training on synthetic data."""
        return "" if self.row.source is None else self.row.recipe

    def average(self, name: str) -> float:
        """Return the mean of a number over all rows; every row must have it."""
        return float(statistics.mean(getattr(row, name) for row in self.rows))

    @property
    def size(self) -> float | None:
        """Mean bytes of the file of weights; None if a row of an older version lacks them."""
        sizes = [row.size for row in self.rows if row.size is not None]
        return statistics.mean(sizes) if len(sizes) == len(self.rows) else None

    @property
    def accuracies(self) -> tuple[float, ...]:
        """One for each seed, in [0, 1]; empty if they were not measured."""
        return tuple(row.accuracy for row in self.rows if row.accuracy is not None)

    @property
    def mean(self) -> float:
        """Mean accuracy in [0, 1]."""
        return statistics.mean(self.accuracies)

    @property
    def agreement(self) -> float | None:
        """Mean agreement with the teacher; None if it was not measured for every row."""
        found = [row.mean_agreement for row in self.rows if row.mean_agreement is not None]
        return statistics.mean(found) if len(found) == len(self.rows) else None

    @property
    def agreement_samples(self) -> int:
        """Number of samples behind the mean agreement."""
        return sum(row.agreement_samples for row in self.rows)

    @property
    def sd(self) -> float | None:
        """Standard deviation of the accuracy over seeds; None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def summarize(runs: Sequence[FinishedRun]) -> list[Point]:
    """Average over seeds: a point for each kind of network, in the order of the runs.

    Networks that several runs share (the teacher of a sweep over compressions) count once per seed.
    """
    methods = {row.method: row for run in runs for row in run.rows}
    keys = {
        method: [
            key
            for key in varied([run for run in runs if any(row.method == method for row in run.rows)])
            if key not in _IN_ROWS and _matters(key, example)
        ]
        for method, example in methods.items()
    }
    groups: dict[tuple[str | None, ...], list[tuple[FinishedRun, Row]]] = {}
    for run in runs:
        for row in run.rows:
            recipe = "" if row.source is None else row.recipe
            settings = describe_settings(run, keys[row.method])
            key = (row.dataset, row.teacher, recipe, settings, row.student, row.method, row.selection)
            groups.setdefault(key, []).append((run, row))
    every = [key for key in varied(runs) if key != "seed"]
    return [point for key, members in groups.items() for point in _separate(str(key[3]), members, every)]


def describe_settings(run: FinishedRun, keys: Sequence[str]) -> str:
    """Return the settings of a run with these keys, as ``key=value key=value``."""
    return " ".join(f"{key}={run.settings[key]}" for key in keys if key in run.settings)


def _separate(settings: str, members: Sequence[tuple[FinishedRun, Row]], keys: Sequence[str]) -> list[Point]:
    """Return a point for each group of rows that differ by their seed alone.

    Two different networks of one seed are never averaged: all settings that were varied distinguish them, or else the
    names of their runs.
    """
    names: list[Callable[[FinishedRun], str]] = [
        lambda _: settings,
        lambda run: describe_settings(run, keys),
        lambda run: run.name,
    ]
    parts: dict[str, dict[tuple[int, str], Row]] = {}
    for name in names:
        parts = {}
        for run, row in members:
            parts.setdefault(name(run), {})[row.seed, row.fingerprint] = row
        if all(len({seed for seed, _ in rows}) == len(rows) for rows in parts.values()):
            break
    return [Point(name, tuple(rows.values())) for name, rows in parts.items()]


def _matters(key: str, row: Row) -> bool:
    """Return True if the network of a row may depend on a setting."""
    group, *names = re.split(r"[./]", key)
    if group == "quantization":
        return row.quantization is not None
    if row.student is None:
        return group not in _OF_STUDENTS
    if row.source is None:
        of_network = group == "compression" or key.startswith("student.network") or key == "student"
        return group not in _OF_STUDENTS or of_network
    if group == "source":
        return not names or names[0] in row.source["shares"]
    return group != "generator" or bool(row.source["needs_generators"])


def is_measured(points: Sequence[Point]) -> bool:
    """Return True if the accuracy of a student is known."""
    return any(point.accuracies and point.row.method != "teacher" for point in points)


def format_mean(point: Point) -> str:
    """Return a mean accuracy with its standard deviation in percent, as text."""
    if not point.accuracies:
        return "not measured"
    spread = "" if point.sd is None else f" ± {100 * point.sd:.2f}"
    return f"{100 * point.mean:.2f}{spread} %"


def format_speedup(point: Point) -> str:
    """Return the mean speed-up at the largest batch size, as text; empty if it was not measured for every row."""
    found = [row.speedups for row in point.rows]
    if not all(found):
        return ""
    size = max(found[0])
    values = [speedups[size] for speedups in found if size in speedups]
    return f"{statistics.mean(values):.2f}x at {size}"


def name_point(point: Point) -> str:
    """Return the name of a point: its compression, its network and further settings."""
    return " ".join(part for part in (_student(point), point.row.name, point.settings) if part)


def _student(point: Point) -> str:
    return name_compression(point.row.student or "")


def make_columns(points: Sequence[Point]) -> dict[str, list[str]]:
    """Return the table of means: heading -> a cell for each point. Columns in which nothing differs are left out."""
    columns = {
        "data": [f"{point.row.dataset}, {point.row.teacher}" for point in points],
        "student": [_student(point) for point in points],
        "network": [point.row.name for point in points],
        "prior": [point.row.prior for point in points],
        "recipe": [point.recipe for point in points],
        "settings": [point.settings for point in points],
        "accuracy": [format_mean(point) for point in points],
        "agreement": [format_agreement(point.agreement, point.agreement_samples) for point in points],
        "seeds": [str(len(point.rows)) for point in points],
        "ratio": [f"{point.average('compression_ratio'):.2f}x" for point in points],
        "MB": [format_size(point.size) for point in points],
        "MACs": [f"{point.average('macs'):,.0f}" for point in points],
        "speed-up": [format_speedup(point) for point in points],
        "seconds": [f"{point.average('seconds_from_teacher'):.1f}" for point in points],
    }
    wanted = {
        "data": len(set(columns["data"])) > 1,
        "recipe": len(set(columns["recipe"]) - {""}) > 1,
        "settings": any(columns["settings"]),
        "agreement": any(columns["agreement"]),
        "MB": any(columns["MB"]),
        "speed-up": any(columns["speed-up"]),
    }
    return {heading: cells for heading, cells in columns.items() if wanted.get(heading, True)}
