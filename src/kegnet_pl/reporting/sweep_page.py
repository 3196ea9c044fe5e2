"""The page ``report.html`` of a sweep, or of any set of finished runs."""

from collections.abc import Sequence
from os.path import relpath
from pathlib import Path

from kegnet_pl.reporting.html import draw, write_page
from kegnet_pl.reporting.run_page import PAGE
from kegnet_pl.reporting.runs import FinishedRun, varied
from kegnet_pl.reporting.summary import NUMBERS, Point, format_mean, is_measured, make_columns
from kegnet_pl.reporting.tradeoff import draw_tradeoff


def write_sweep_page(runs: Sequence[FinishedRun], points: Sequence[Point], out: Path) -> Path:
    """Write the page of several runs, at least one of which is finished; links in it are relative to its folder."""
    rows = [row for run in runs for row in run.rows]
    picture = draw("accuracy against size, and against work", draw_tradeoff, points) if is_measured(points) else None
    jobs = [(run, relpath(run.folder / PAGE, out) if (run.folder / PAGE).exists() else None) for run in runs]
    datasets = ", ".join(dict.fromkeys(point.row.dataset for point in points))
    return write_page(
        "sweep.html",
        out / PAGE,
        f"{len([run for run in runs if run.rows])} runs on {datasets}",
        [("results", "Results"), ("jobs", "Runs"), ("settings", "Settings")],
        story=write_story(runs, points),
        tradeoff=picture,
        columns=make_columns(points),
        numbers=NUMBERS,
        keys=varied(runs),
        jobs=jobs,
        commands=dict.fromkeys(row.command for row in rows),
        versions=rows[0].versions,
    )


def describe(runs: Sequence[FinishedRun]) -> str:
    """Return the varied settings, the test sets, and the selection of epochs, as one line."""
    rows = [row for run in runs for row in run.rows]
    sets = sorted({row.test_set for row in rows if row.test_set is not None}) or ["no test data, accuracy not measured"]
    kept = sorted({row.selection for row in rows if row.selection is not None}) or ["nothing was trained"]
    swept = ", ".join(varied([run for run in runs if run.rows])) or "nothing"
    return f"varied: {swept}; {'; '.join(sets)}; epoch kept: {', '.join(kept)}"


def write_story(runs: Sequence[FinishedRun], points: Sequence[Point]) -> list[str]:
    """Return the sentences above the table: the runs, the best student of every data set, the smallest one."""
    finished = [run for run in runs if run.rows]
    failed = len(runs) - len(finished)
    text = [
        f"{len(finished)} of {len(runs)} runs finished{f', {failed} failed or were stopped' if failed else ''}. "
        f"{describe(runs)[0].upper()}{describe(runs)[1:]}."
    ]
    for dataset in dict.fromkeys(point.row.dataset for point in points):
        measured = [point for point in points if point.row.dataset == dataset and point.accuracies]
        students = [point for point in measured if point.row.prior not in ("", "none")]
        teachers = [point for point in measured if point.row.method == "teacher"]
        if not students or not teachers:
            continue
        best = max(students, key=lambda point: point.mean)
        smallest = max(students, key=lambda point: point.average("compression_ratio"))
        sentence = (
            f"On {dataset} the teacher is right on {format_mean(teachers[0])}. The best student is {_name(best)}: "
            f"{format_mean(best)} with {best.average('compression_ratio'):.2f} times fewer parameters"
        )
        if smallest is not best:
            ratio = f"{smallest.average('compression_ratio'):.2f} times fewer"
            sentence += f"; the smallest, {_name(smallest)} ({ratio}), {format_mean(smallest)}"
        text.append(f"{sentence}.")
        same = [point for point in measured if _network(point) == _network(best)]
        better = [f"{point.row.method} {format_mean(point)}" for point in same if point.mean > best.mean]
        if better:
            text.append(f"Without prior knowledge in the samples the same network is better: {', '.join(better)}.")
    return text


def _network(point: Point) -> tuple[str, str | None]:
    return point.row.teacher, point.row.student


def _name(point: Point) -> str:
    return " ".join(part for part in (point.row.student, point.row.method, point.settings) if part)
