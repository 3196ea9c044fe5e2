"""Several runs put together: means and spread over seeds."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.runs import FinishedRun, varied

_TOLD_BY_ROWS = (
    "seed", "compression", "compression.target", "compression.rank", "experiment", "data", "recipe", "methods",
)  # fmt: skip
"""Settings that a row tells by itself, or that are averaged over."""

_OF_STUDENTS = ("generator", "student", "compression", "schedule")
"""Groups of settings that a teacher does not depend on; all others, also those a user adds, it may."""


@dataclass(frozen=True)
class Point:
    """One kind of network: what a mark in the picture and a line in the table stand for.

    Attributes:
        dataset: Name of the data.
        teacher: Name of the teacher.
        recipe: Name of the recipe.
        settings: What else was varied, as ``key=value``; empty where nothing was.
        student: Name of the compression or of the network; None for the teacher.
        method: As in a row.
        selection: As in a row.
        compression_ratio: Mean of teacher's parameters by the network's.
        macs: Mean of multiply-accumulates for one sample.
        seconds: Mean of what made the network once its parents were there.
        accuracies: One a seed, in [0, 1]; empty where they were not measured.
        seeds: Their seeds.
        runs: Networks it stands for, also where no accuracy was measured.
    """

    dataset: str
    teacher: str
    recipe: str
    settings: str
    student: str | None
    method: str
    selection: str | None
    compression_ratio: float
    macs: float
    seconds: float
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: int

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
    methods = {row.method for run in runs for row in run.rows}
    keys = {
        method: [
            key
            for key in varied([run for run in runs if any(row.method == method for row in run.rows)])
            if key not in _TOLD_BY_ROWS and _matters(key, method)
        ]
        for method in methods
    }
    groups: dict[tuple[str | None, ...], list[tuple[FinishedRun, Row]]] = {}
    for run in runs:
        for row in run.rows:
            recipe = row.recipe if "+" in row.method else ""
            key = (
                row.dataset,
                row.teacher,
                recipe,
                _told(run, keys[row.method]),
                row.student,
                row.method,
                row.selection,
            )
            groups.setdefault(key, []).append((run, row))
    every = [key for key in varied(runs) if key != "seed"]
    return [
        _point((*key[:3], settings, *key[4:]), rows)
        for key, members in groups.items()
        for settings, rows in _apart(str(key[3]), members, every)
    ]


def _told(run: FinishedRun, keys: Sequence[str]) -> str:
    return " ".join(f"{key}={run.settings[key]}" for key in keys if key in run.settings)


def _apart(
    settings: str, members: Sequence[tuple[FinishedRun, Row]], keys: Sequence[str]
) -> list[tuple[str, list[Row]]]:
    """Return rows that differ by their seed alone, with what tells them from others.

    Two networks of one seed are no two seeds, whatever was set where nobody looked: they are told by all that was set,
    or else by their runs.
    """
    names: list[Callable[[FinishedRun], str]] = [lambda _: settings, lambda run: _told(run, keys), lambda run: run.name]
    parts: dict[str, dict[tuple[int, str], Row]] = {}
    for name in names:
        parts = {}
        for run, row in members:
            parts.setdefault(name(run), {})[row.seed, row.fingerprint] = row
        if all(len({seed for seed, _ in rows}) == len(rows) for rows in parts.values()):
            break
    return [(name, list(rows.values())) for name, rows in parts.items()]


def _matters(key: str, method: str) -> bool:
    """Whether a network of some method may depend on a setting."""
    group = key.split(".", 1)[0]
    if method == "teacher":
        return group not in _OF_STUDENTS
    if "+" not in method:
        return (
            group not in _OF_STUDENTS or group == "compression" or key.startswith("student.network") or key == "student"
        )
    return group != "generator" or method.endswith("KegNet")


def _point(key: tuple[str | None, ...], rows: list[Row]) -> Point:
    dataset, teacher, recipe, settings, student, method, selection = key
    measured = [row for row in rows if row.accuracy is not None]
    return Point(
        str(dataset), str(teacher), str(recipe), str(settings), student, str(method), selection,
        statistics.mean(row.compression_ratio for row in rows),
        statistics.mean(row.macs for row in rows),
        statistics.mean(row.seconds for row in rows),
        tuple(row.accuracy for row in measured if row.accuracy is not None),
        tuple(row.seed for row in measured),
        len(rows),
    )  # fmt: skip
