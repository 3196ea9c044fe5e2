"""Results of a sweep, or of any set of finished runs: table, plot, page, and files of all rows."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from os.path import relpath
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from kegnet_pl.reporting.agreement import format_agreement
from kegnet_pl.reporting.front import can_draw_front, draw_front, make_front_columns
from kegnet_pl.reporting.html import draw, link_to, write_page
from kegnet_pl.reporting.results import TRIAL, explain_ceilings, explain_trial, explain_validity, find_last
from kegnet_pl.reporting.run_page import PAGE
from kegnet_pl.reporting.runs import FinishedRun, find_runs, varied
from kegnet_pl.reporting.style import house_style
from kegnet_pl.reporting.summary import (
    NUMBERS,
    Point,
    describe_settings,
    format_mean,
    is_measured,
    make_columns,
    name_point,
    summarize,
)
from kegnet_pl.reporting.tables import explain_names, format_accuracy, number_columns
from kegnet_pl.reporting.tradeoff import draw_accuracy
from kegnet_pl.reporting.wandb import print_sync_command
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.safe_files import exists, printable
from kegnet_pl.runtime.timing import explain_noise
from kegnet_pl.training.progress import make_console

_MOST_POINTS = 1_000
_MOST_DATASETS = 20
_MOST_WARNINGS = 30
_MOST_NETWORKS = 12


def finish_sweep(folder: Path) -> bool:
    """Write and print the results of all jobs of a sweep; return True if a job failed or was stopped."""
    console = make_console()
    if not folder.is_dir() or not any(folder.glob("*/.hydra")):
        return False  # no job was started, and the error has been printed
    try:
        runs = find_runs([folder])
    except UserError as error:
        console.print(f"\n{error}", soft_wrap=True)
        return True
    if any(run.rows for run in runs):
        report(runs, folder, console)
    else:
        console.print(f"\n0 of {len(runs)} runs finished. The same command starts the sweep again.", soft_wrap=True)
        print_failures(runs, console)
    print_sync_command(folder, "*/wandb/offline-run-*", console)
    return any(not run.rows for run in runs)


def print_failures(runs: Sequence[FinishedRun], console: Console) -> None:
    """Name the jobs that failed or were stopped."""
    keys = varied(runs)
    for run in runs:
        if not run.rows:
            settings = describe_settings(run, keys)
            name = f"Job {run.name} ({settings})" if settings else f"Run {run.name}"
            console.print(f"{name}: {run.failure or 'stopped'}", soft_wrap=True)


def report(runs: Sequence[FinishedRun], out: Path, console: Console) -> None:
    """Write rows, plot and page of several runs to a folder, and print the table and the failures.

    At least one run is finished.
    """
    points = summarize(runs)
    files = write_tables(runs, out)
    if is_measured(points) and can_be_drawn(points):
        files.append(out / "tradeoff.png")
        _save(draw_accuracy, points, files[-1])
    if can_draw_front(points) and can_be_drawn(points):
        files.append(out / "front.png")
        _save(draw_front, points, files[-1])
    files.append(write_sweep_page(runs, points, out))
    finished = [run for run in runs if run.rows]
    console.print()
    console.print(f"{len(finished)} of {len(runs)} runs finished, {describe(runs)}", soft_wrap=True)
    console.print(make_summary_table(points))
    rows = [point.row for point in points]
    for line in [*explain_validity(rows), *explain_names(rows), *explain_warnings(runs), *explain_noisy_runs(runs)]:
        console.print(line, soft_wrap=True)
    print_failures(runs, console)
    for path in files:
        console.print(f"{path.name:<14}{printable(display_path(path))}", soft_wrap=True)


def _save(make: Callable[[Sequence[Point]], Figure], points: Sequence[Point], path: Path) -> None:
    """Draw a figure and write it as PNG; a link of that name is replaced, not followed."""
    content = io.BytesIO()
    with house_style():
        make(points).savefig(content, format="png", dpi=150, metadata={"Software": "kegnet_pl"})
    atomic_write(path, content.getvalue())


def write_tables(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Write all rows of all runs, with the name of the run and its settings: ``results.json`` and ``results.csv``."""
    keys = varied(runs)
    records: list[dict[str, Any]] = [
        {"run": run.name, "settings": {key: run.settings.get(key) for key in keys}, **asdict(row)}
        for run in runs
        for row in run.rows
    ]
    out.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = out / "results.json", out / "results.csv"
    atomic_write(as_json, json.dumps(records, indent=2) + "\n")
    flat = [dict(_flat(record | {"source": record["source"] or {}})) for record in records]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(dict.fromkeys(key for record in flat for key in record)))
    writer.writeheader()
    writer.writerows({key: _as_cell(value) for key, value in record.items()} for record in flat)
    atomic_write(as_csv, file.getvalue())
    return [as_csv, as_json]


def _as_cell(value: Any) -> Any:
    """Return a value for a spreadsheet, which must not run text as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "@", "+")) else value


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in record.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def make_summary_table(points: Sequence[Point]) -> Table:
    """Lay out means over seeds; a line separates students."""
    columns = make_columns(points)
    numbers = [heading for heading in NUMBERS if heading in columns]
    table = Table(*(heading for heading in columns if heading not in NUMBERS), *number_columns(*numbers))
    students = [point.row.student for point in points]
    changes = [before != after for before, after in pairwise(students)]
    for cells, last in zip(zip(*columns.values(), strict=True), [*changes, False], strict=True):
        table.add_row(*cells, end_section=last)
    return table


def write_sweep_page(runs: Sequence[FinishedRun], points: Sequence[Point], out: Path) -> Path:
    """Write the page of several runs, at least one of which is finished; links in it are relative to its folder."""
    rows = [row for run in runs for row in run.rows]
    jobs = [
        (run, link_to(relpath(run.folder / PAGE, out)) if not run.summary and exists(run.folder / PAGE) else None)
        for run in runs
    ]
    datasets = ", ".join(list(dict.fromkeys(point.row.dataset for point in points))[:20])
    drawn = points if can_be_drawn(points) else []
    return write_page(
        "sweep.html",
        out / PAGE,
        f"{len([run for run in runs if run.rows])} runs on {datasets}",
        [("results", "Results"), ("jobs", "Runs"), ("settings", "Settings")],
        story=describe_sweep(runs, points),
        tradeoff=draw("accuracy against size, and against work", draw_accuracy, drawn if is_measured(drawn) else []),
        front=draw(
            "accuracy against size on disk, and against speed", draw_front, drawn if can_draw_front(drawn) else []
        ),
        has_int8=any(row.quantization is not None for row in rows),
        warnings=[*explain_warnings(runs), *explain_noisy_runs(runs)],
        names=explain_names(rows),
        columns=make_columns(points),
        front_columns=make_front_columns(points) if can_draw_front(points) else {},
        numbers=NUMBERS,
        keys=varied(runs),
        job_columns=_make_job_columns(runs),
        jobs=jobs,
        commands=dict.fromkeys(row.command for row in rows),
        versions=rows[0].versions,
    )


def _make_job_columns(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Return the results of runs: heading -> a cell for each run. Columns without a number are left out.

    Accuracies are of the first networks; the other numbers are of the last network in float32.
    """
    names = list(dict.fromkeys(row.name for run in runs for row in run.rows))[:_MOST_NETWORKS]
    columns: dict[str, list[str]] = {f"accuracy: {name}": [] for name in names}
    more = ("agreement", "ratio", "MB", "MACs", "speed-up", "seconds")
    columns |= {heading: [] for heading in more}
    for run in runs:
        accuracies = {row.name: format_accuracy(row) for row in run.rows if row.accuracy is not None}
        for name in names:
            columns[f"accuracy: {name}"].append(accuracies.get(name, ""))
        cells = make_columns([Point("", (find_last(run.rows),))]) if run.rows else {}
        for heading in more:
            columns[heading].append(cells.get(heading, [""])[0])
    return {heading: cells for heading, cells in columns.items() if any(cells)}


def describe(runs: Sequence[FinishedRun]) -> str:
    """Return the varied settings, the test sets, and the selection of epochs, as one line."""
    rows = [row for run in runs for row in run.rows]
    sets = sorted({row.test_set for row in rows if row.test_set is not None}) or ["no test data, accuracy not measured"]
    kept = sorted({row.selection for row in rows if row.selection is not None}) or ["nothing was trained"]
    swept = ", ".join(varied([run for run in runs if run.rows])) or "nothing"
    return f"varied: {swept}; {'; '.join(sets)}; epoch kept: {', '.join(kept)}"


def describe_sweep(runs: Sequence[FinishedRun], points: Sequence[Point]) -> list[str]:
    """Return the sentences above the table: the runs, the best student of every data set, the smallest one."""
    finished = [run for run in runs if run.rows]
    failed = len(runs) - len(finished)
    text = [
        f"{len(finished)} of {len(runs)} runs finished{f', {failed} failed or were stopped' if failed else ''}. "
        f"{describe(runs)[0].upper()}{describe(runs)[1:]}."
    ]
    for dataset in dict.fromkeys(point.row.dataset for point in points):
        plain = [point for point in points if point.row.quantization is None and not point.row.is_ceiling]
        of_dataset = [point for point in plain if point.row.dataset == dataset]
        measured = [point for point in of_dataset if point.accuracies]
        students = [point for point in measured if point.row.prior not in ("", "none")]
        teachers = [point for point in measured if point.row.method == "teacher"]
        if not students or not teachers:
            text += _describe_agreement(dataset, of_dataset)
            continue
        best = max(students, key=lambda point: (point.mean, point.average("compression_ratio")))
        smallest = max(students, key=lambda point: point.average("compression_ratio"))
        sentence = (
            f"On {dataset}, the teacher has an accuracy of {format_mean(teachers[0])}. The best network is "
            f"{name_point(best)}: {format_mean(best)} with {best.average('compression_ratio'):.2f} times fewer "
            f"parameters"
        )
        if smallest.average("compression_ratio") > best.average("compression_ratio"):
            ratio = f"{smallest.average('compression_ratio'):.2f} times fewer"
            sentence += f"; the smallest, {name_point(smallest)} ({ratio}), {format_mean(smallest)}"
        text.append(f"{sentence}.")
        same = [point for point in measured if _network(point) == _network(best)]
        better = [f"{point.row.name} {format_mean(point)}" for point in same if point.mean > best.mean]
        if better:
            text.append(f"Without prior knowledge in the samples the same network is better: {', '.join(better)}.")
    if not can_be_drawn(points):
        text.append(
            f"The page has no plots: a plot has at most {_MOST_POINTS:,} networks and {_MOST_DATASETS} data sets."
        )
    rows = [point.row for point in points]
    return [*explain_trial(rows), *text, *explain_ceilings(rows)]


def explain_warnings(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the warnings of all runs, each with its networks and the number of runs.

    Texts that differ only in numbers are one warning; the first text is shown.
    """
    found: dict[str, tuple[str, dict[str, None], set[int]]] = {}
    for index, run in enumerate(runs):
        for name, text in ((row.name, text) for row in run.rows for text in row.warnings or [] if text != TRIAL):
            _, names, members = found.setdefault(re.sub(r"\d+(?:[.,]\d+)*", "#", text), (text, {}, set()))
            names[name] = None
            members.add(index)
    total = sum(bool(run.rows) for run in runs)
    lines = [
        f"Warning about {'; '.join(names)} ({len(members)} of {total} runs): {text}"
        for text, names, members in found.values()
    ]
    more = [f"{len(lines) - _MOST_WARNINGS:,} more warnings are in the pages of the runs."]
    return lines[:_MOST_WARNINGS] + (more if len(lines) > _MOST_WARNINGS else [])


def explain_noisy_runs(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence on runs whose speed-ups are not reliable; none if there are none."""
    finished = [run for run in runs if run.rows]
    noisy = [run for run in finished if any(row.noisy_sizes for row in run.rows)]
    sizes = sorted({size for run in noisy for row in run.rows for size in row.noisy_sizes})
    if not noisy:
        return []
    return [f"{explain_noise(sizes)} This holds for {len(noisy)} of {len(finished)} runs."]


def can_be_drawn(points: Sequence[Point]) -> bool:
    """Return True unless there are too many networks, or data sets, for a plot."""
    return len(points) <= _MOST_POINTS and len({point.row.dataset for point in points}) <= _MOST_DATASETS


def _describe_agreement(dataset: str, points: Sequence[Point]) -> list[str]:
    """Return a sentence on the student that agrees most with its teacher, where no accuracy was measured."""
    measured = [point for point in points if point.agreement is not None]
    if not measured or any(point.accuracies for point in points):
        return []
    best = max(measured, key=lambda point: (point.agreement, point.average("compression_ratio")))
    where = "" if dataset == "none" else f" on {dataset}"
    return [
        f"Accuracy was not measured{where}. The student with the highest agreement with its teacher is "
        f"{name_point(best)}: "
        f"{format_agreement(best.agreement, best.agreement_samples)} of synthetic samples. This is not accuracy."
    ]


def _network(point: Point) -> tuple[str, str | None]:
    return point.row.teacher, point.row.student
