"""Run what is missing, resume what was begun, write the tables: ``python -m reproduction``.

It can be stopped at any time (Ctrl-C) and started again. Finished runs are ``results/paper/*/results.json``; what is
half done lies in the store.
"""

import argparse
import sys
from pathlib import Path

from kegnet_pl.schema import PRECISION
from reproduction.commands import positive
from reproduction.jobs import (
    KINDS,
    ROOT,
    SMOKE_JOBS,
    SMOKE_SETTINGS,
    all_jobs,
    at_hand,
    choose,
    read_cells,
    store_of,
)
from reproduction.runner import Run, as_value, run_missing, say, shown
from reproduction.tables import write_tables
from reproduction.teachers import hand_out_teachers, keep_teachers


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("cells", nargs="*", help="such as mnist_lenet or mnist_lenet/option3; all by default")
    parser.add_argument("--recipe", action="append", default=[], help="paper, strict or fast; all by default")
    parser.add_argument("--kind", choices=tuple(KINDS), help="kegnet or noise; both by default")
    parser.add_argument("--seeds", type=positive, help="only the first so many seeds of every row; all by default")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--trainer", default="cpu", choices=("cpu", "gpu"), help="gpu: also what is meant for one")
    parser.add_argument("--precision", choices=PRECISION, help="of every run; needs --out")
    parser.add_argument("--out", type=Path, help="folder of paper.json, PAPER.md and paper/; results by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run; needs --out"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny run of each kind of cell, in outputs/smoke")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and run nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables from what is there, and run nothing")
    options = parser.parse_args()
    try:
        return _run(options)
    except ValueError as error:
        parser.error(str(error))


def _run(options: argparse.Namespace) -> int:
    cells = read_cells()
    out = options.out or (ROOT / "outputs" / "smoke" if options.smoke else ROOT / "results")
    _check(options, out)
    settings = list(options.set)
    if options.trainer == "gpu":
        settings.insert(0, "trainer=gpu")
    if options.precision:
        settings.append(f"trainer.precision={options.precision}")
    chosen = choose(all_jobs(cells), options.cells, options.recipe, options.kind, options.seeds)
    jobs = [job for job in chosen if options.trainer == "gpu" or not job.gpu]
    left_out = sum(job not in jobs and not job.to_run(None).done(out / "paper") for job in chosen)
    if options.smoke:
        jobs, left_out = list(SMOKE_JOBS), 0
        settings = [*SMOKE_SETTINGS, f"store={as_value(out / 'store')}", *settings]
    runs = [job.to_run(at_hand(cells["experiments"][job.experiment]["teacher"]), settings) for job in jobs]
    if options.list:
        for run in runs:
            say(f"{'done   ' if run.done(out / 'paper') else 'missing'}  {run.name}")
    trained = [job for job in jobs if cells["experiments"][job.experiment]["teacher"] is None]
    failed: list[Run] = []
    if not options.list and not options.tables:
        missing = [(job.experiment, job.seed) for job in trained if not job.to_run(None).done(out / "paper")]
        hand_out_teachers(missing, out, store_of(settings))
        failed = run_missing(runs, out / "paper", options.jobs)
    if left_out and not options.tables:
        say(f"{left_out} runs take a GPU and are left out: --trainer gpu runs them, too.")
    if options.list:
        return 0
    keep_teachers(trained, out)
    write_tables(out, cells)
    say(f"Tables: {shown(out / 'PAPER.md')}, {shown(out / 'paper.json')}")
    return 1 if failed else 0


def _check(options: argparse.Namespace, out: Path) -> None:
    """Refuse what would be left unheeded, or would mix other settings into the tables.

    Raises:
        ValueError: Says what to do instead.
    """
    for text in options.set:
        if "=" not in text:
            raise ValueError(f"--set: expected KEY=VALUE, but got {text!r}.")
    if (options.set or options.precision) and not (options.out or options.smoke):
        raise ValueError(
            "--set and --precision change what is run: say where its results shall lie, with --out FOLDER."
        )
    if options.smoke and (options.cells or options.recipe or options.kind or options.seeds):
        raise ValueError("--smoke has cells and recipes of its own: leave yours out.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, but {shown(out)} is a file.")
    if options.tables and not (out / "paper").is_dir():
        raise ValueError(f"There are no runs in {shown(out / 'paper')}: correct --out, or run without --tables first.")


if __name__ == "__main__":
    sys.exit(main())
