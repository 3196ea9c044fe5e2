"""The command line of the paper's tables: ``python -m reproduction`` runs what is missing and writes the tables.

It can be interrupted at any time (Ctrl-C) and started again. Each finished run is a line of ``results/paper.jsonl``.
The working folders of the runs are ``outputs/reproduction/paper/*``; unfinished stages are in the store.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from kegnet_pl.runtime.environment import display_path
from kegnet_pl.settings import Precision
from reproduction.best import write_best
from reproduction.commands import positive
from reproduction.jobs import (
    KINDS,
    SMOKE_JOBS,
    SMOKE_SETTINGS,
    all_jobs,
    choose,
    read_cells,
    released_teacher,
    store_of,
)
from reproduction.paths import ROOT, hydra_value
from reproduction.records import read_runs
from reproduction.runner import Run, run_missing, say
from reproduction.tables import write_tables
from reproduction.teachers import copy_to_store, keep_teachers


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("cells", nargs="*", help="such as mnist_lenet or mnist_lenet/option3; all by default")
    parser.add_argument("--recipe", action="append", default=[], help="paper, strict, fast or best; all by default")
    parser.add_argument("--kind", choices=tuple(KINDS), help="kegnet, noise or preset; all by default")
    parser.add_argument("--seeds", type=positive, help="only the first N seeds of every row; all by default")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--trainer", default="cpu", choices=("cpu", "gpu"), help="gpu: also the runs that need one")
    parser.add_argument("--precision", choices=get_args(Precision), help="precision of every run; needs --out")
    parser.add_argument("--out", type=Path, help="folder of paper.jsonl and of the tables; results by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run; needs --out"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny run of each kind of cell, in outputs/smoke")
    parser.add_argument("--list", action="store_true", help="list what is done and what is missing, and run nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables of the finished runs, and run nothing")
    options = parser.parse_args()
    try:
        return _run(options)
    except ValueError as error:
        parser.error(str(error))


def _run(options: argparse.Namespace) -> int:
    cells = read_cells()
    out = options.out or (ROOT / "outputs" / "smoke" if options.smoke else ROOT / "results")
    records = out / "paper.jsonl"
    folder = (ROOT / "outputs" / "reproduction" if out.resolve() == ROOT / "results" else out) / "paper"
    _check(options, out, records)
    settings = list(options.set)
    if options.trainer == "gpu":
        settings.insert(0, "trainer=gpu")
    if options.precision:
        settings.append(f"trainer.precision={options.precision}")
    chosen = choose(all_jobs(cells), options.cells, options.recipe, options.kind, options.seeds)
    jobs = [job for job in chosen if options.trainer == "gpu" or not job.gpu]
    finished = read_runs(records)
    left_out = sum(job not in jobs and not job.to_run(None).done(finished) for job in chosen)
    if options.smoke:
        jobs, left_out = list(SMOKE_JOBS), 0
        settings = [*SMOKE_SETTINGS, f"store={hydra_value(out / 'store')}", *settings]
    runs = [job.to_run(released_teacher(cells["experiments"][job.experiment]["teacher"]), settings) for job in jobs]
    if options.list:
        for run in runs:
            say(f"{'done   ' if run.done(finished) else 'missing'}  {run.name}")
    trained = [job for job in jobs if cells["experiments"][job.experiment]["teacher"] is None]
    failed: list[Run] = []
    if not options.list and not options.tables:
        missing = [(job.experiment, job.seed) for job in trained if not job.to_run(None).done(finished)]
        copy_to_store(missing, out / "teachers", store_of(settings))
        failed = run_missing(runs, records, folder, options.jobs)
    if left_out and not options.tables:
        say(f"{left_out} runs need a GPU and are left out: --trainer gpu runs them, too.")
    if options.list:
        return 0
    keep_teachers(trained, folder, out / "teachers")
    write_tables(out, cells)
    write_best(out, cells)
    say(f"Tables: {', '.join(str(display_path(out / name)) for name in ('PAPER.md', 'BEST.md', 'paper.json'))}")
    return 1 if failed else 0


def _check(options: argparse.Namespace, out: Path, records: Path) -> None:
    """Check the arguments: none may be ignored, and no other settings may get into the tables.

    Raises:
        ValueError: If they do not fit together.
    """
    for text in options.set:
        if "=" not in text:
            raise ValueError(f"--set: expected KEY=VALUE, but got {text!r}.")
    if (options.set or options.precision) and not (options.out or options.smoke):
        raise ValueError(
            "--set and --precision change the runs. Name another folder for their results with --out FOLDER."
        )
    if options.smoke and (options.cells or options.recipe or options.kind or options.seeds):
        raise ValueError("--smoke has its own cells and recipes. Remove the others from the command.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, but got the file {display_path(out)}.")
    if options.tables and not records.exists():
        raise ValueError(
            f"Expected finished runs in {display_path(records)}, but it does not exist. "
            "Correct --out, or run without --tables first."
        )


if __name__ == "__main__":
    sys.exit(main())
