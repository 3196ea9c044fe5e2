"""The page ``report.html`` of a sweep, or of any set of finished runs."""

from collections.abc import Sequence
from functools import partial
from os.path import relpath
from pathlib import Path

from kegnet_pl.reporting.html import draw, write_page
from kegnet_pl.reporting.run_page import PAGE
from kegnet_pl.reporting.runs import FinishedRun, varied
from kegnet_pl.reporting.style import house_style
from kegnet_pl.reporting.summary import Point, summarize
from kegnet_pl.reporting.tradeoff import draw_tradeoff


def write_sweep_page(runs: Sequence[FinishedRun], out: Path) -> Path:
    """Write the page of several runs.

    Args:
        runs: At least one that is finished.
        out: The folder to write it into; links to pages of single runs are seen from there.
    """
    points = summarize(runs)
    rows = [row for run in runs for row in run.rows]
    picture = None
    if any(point.accuracies and point.method != "teacher" for point in points):
        with house_style():
            picture = draw(partial(draw_tradeoff, points), "accuracy against size, and against work")
    jobs = [(run, relpath(run.folder / PAGE, out) if (run.folder / PAGE).exists() else None) for run in runs]
    datasets = ", ".join(dict.fromkeys(point.dataset for point in points))
    return write_page(
        "sweep.html",
        out / PAGE,
        f"{len([run for run in runs if run.rows])} runs on {datasets}",
        [("results", "Results"), ("jobs", "Runs"), ("settings", "Settings")],
        story=write_story(runs, points),
        tradeoff=picture,
        points=points,
        format_mean=format_mean,
        several=len({(point.dataset, point.teacher) for point in points}) > 1,
        recipes=len({point.recipe for point in points if point.recipe}) > 1,
        settings=any(point.settings for point in points),
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
    for dataset in dict.fromkeys(point.dataset for point in points):
        measured = [point for point in points if point.dataset == dataset and point.accuracies]
        students = [point for point in measured if point.prior not in ("", "none")]
        teachers = [point for point in measured if point.method == "teacher"]
        if not students or not teachers:
            continue
        best = max(students, key=lambda point: point.mean)
        smallest = max(students, key=lambda point: point.compression_ratio)
        text.append(
            f"On {dataset} the teacher is right on {format_mean(teachers[0])}. The best student is {_name(best)}: "
            f"{format_mean(best)} with {best.compression_ratio:.2f} times fewer parameters"
            + (
                f"; the smallest, {_name(smallest)} ({smallest.compression_ratio:.2f} times fewer), "
                f"{format_mean(smallest)}."
                if smallest is not best
                else "."
            )
        )
        better = [point for point in measured if _same_network(point, best) and point.mean > best.mean]
        if better:
            others = ", ".join(f"{point.method} {format_mean(point)}" for point in better)
            text.append(f"Without prior knowledge in the samples the same network is better: {others}.")
    return text


def _same_network(point: Point, other: Point) -> bool:
    names = ("dataset", "teacher", "student")
    return all(getattr(point, name) == getattr(other, name) for name in names)


def _name(point: Point) -> str:
    return " ".join(part for part in (point.student, point.method, point.settings) if part)


def format_mean(point: Point) -> str:
    """Return a mean accuracy with its standard deviation in percent, as text."""
    if not point.accuracies:
        return "not measured"
    spread = "" if point.sd is None else f" ± {100 * point.sd:.2f}"
    return f"{100 * point.mean:.2f}{spread} %"
