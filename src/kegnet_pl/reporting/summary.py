"""Summary of several runs: means and standard deviations over seeds."""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.runs import FinishedRun, varied

_IN_ROWS = (
    "seed", "compression", "compression.target", "compression.rank", "experiment", "data", "recipe", "sources",
)  # fmt: skip
"""Settings that the columns of a row show, or that are averaged over."""

_OF_STUDENTS = ("generator", "student", "compression", "schedule", "source")
"""Groups of settings that a teacher does not depend on. It may depend on all others, also on those a user adds."""


@dataclass(frozen=True)
class Point:
    """The networks of all seeds behind a mark in the plot and a line in the table.

    Attributes:
        dataset: Name of the data.
        teacher: Name of the teacher.
        recipe: Name of the recipe.
        settings: Other settings that were varied, as ``key=value``; empty if there are none.
        student: Name of the compression or of the network; None for the teacher.
        method: As in a row.
        source: As in a row.
        selection: As in a row.
        compression_ratio: Mean of teacher's parameters by the network's.
        macs: Mean of multiply-accumulates for one sample.
        seconds: Mean of the seconds of the stage that made the network.
        accuracies: One for each seed, in [0, 1]; empty if they were not measured.
        seeds: Their seeds.
        runs: Number of networks, also where no accuracy was measured.
    """

    dataset: str
    teacher: str
    recipe: str
    settings: str
    student: str | None
    method: str
    source: dict[str, Any] | None
    selection: str | None
    compression_ratio: float
    macs: float
    seconds: float
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: int

    @property
    def prior(self) -> str:
        """Prior knowledge in the samples the networks were trained on; empty without training on synthetic data."""
        return "" if self.source is None else str(self.source["prior"])

    @property
    def mean(self) -> float:
        """Mean accuracy in [0, 1]."""
        return statistics.mean(self.accuracies)

    @property
    def sd(self) -> float | None:
        """Standard deviation of the accuracy over seeds; None of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def summarize(runs: Sequence[FinishedRun]) -> list[Point]:
    """Average over seeds: a point for each kind of network, in the order of the runs.

    Networks that several runs share (the teacher of a sweep over compressions) count once a seed.
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
            settings = _settings(run, keys[row.method])
            key = (row.dataset, row.teacher, recipe, settings, row.student, row.method, row.selection)
            groups.setdefault(key, []).append((run, row))
    every = [key for key in varied(runs) if key != "seed"]
    return [
        _point(settings, rows)
        for key, members in groups.items()
        for settings, rows in _separate(str(key[3]), members, every)
    ]


def _settings(run: FinishedRun, keys: Sequence[str]) -> str:
    return " ".join(f"{key}={run.settings[key]}" for key in keys if key in run.settings)


def _separate(
    settings: str, members: Sequence[tuple[FinishedRun, Row]], keys: Sequence[str]
) -> list[tuple[str, list[Row]]]:
    """Return groups of rows that differ by their seed alone, each with the settings that distinguish it.

    Two different networks of one seed are never averaged: all settings that were varied distinguish them, or else the
    names of their runs.
    """
    names: list[Callable[[FinishedRun], str]] = [
        lambda _: settings,
        lambda run: _settings(run, keys),
        lambda run: run.name,
    ]
    parts: dict[str, dict[tuple[int, str], Row]] = {}
    for name in names:
        parts = {}
        for run, row in members:
            parts.setdefault(name(run), {})[row.seed, row.fingerprint] = row
        if all(len({seed for seed, _ in rows}) == len(rows) for rows in parts.values()):
            break
    return [(name, list(rows.values())) for name, rows in parts.items()]


def _matters(key: str, row: Row) -> bool:
    """Return True if the network of a row may depend on a setting."""
    group, *names = re.split(r"[./]", key)
    if row.method == "teacher":
        return group not in _OF_STUDENTS
    if row.source is None:
        of_network = group == "compression" or key.startswith("student.network") or key == "student"
        return group not in _OF_STUDENTS or of_network
    if group == "source":
        return not names or names[0] in row.source["shares"]
    return group != "generator" or bool(row.source["needs_generators"])


def _point(settings: str, rows: Sequence[Row]) -> Point:
    first = rows[0]
    measured = [row for row in rows if row.accuracy is not None]
    return Point(
        dataset=first.dataset,
        teacher=first.teacher,
        recipe="" if first.source is None else first.recipe,
        settings=settings,
        student=first.student,
        method=first.method,
        source=first.source,
        selection=first.selection,
        compression_ratio=statistics.mean(row.compression_ratio for row in rows),
        macs=statistics.mean(row.macs for row in rows),
        seconds=statistics.mean(row.seconds for row in rows),
        accuracies=tuple(row.accuracy for row in measured if row.accuracy is not None),
        seeds=tuple(row.seed for row in measured),
        runs=len(rows),
    )
