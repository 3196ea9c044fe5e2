"""Run what is missing, resume what was begun, write the tables: ``python -m reproduction``.

It can be stopped at any time (Ctrl-C) and started again. Finished runs are ``results/paper/*/results.json``; what is
half done lies in the store.
"""

import argparse
import sys
from pathlib import Path

from reproduction.commands import positive
from reproduction.jobs import KINDS, ROOT, SMOKE_JOBS, SMOKE_SETTINGS, all_jobs, at_hand, choose, read_cells
from reproduction.runner import run_missing, say, shown
from reproduction.tables import write_tables


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("cells", nargs="*", help="such as mnist_lenet or mnist_lenet/option3; all by default")
    parser.add_argument("--recipe", action="append", default=[], help="paper, strict or fast; all by default")
    parser.add_argument("--kind", choices=tuple(KINDS), help="kegnet or noise; both by default")
    parser.add_argument("--seeds", type=positive, help="only the first so many seeds of every row; all by default")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--trainer", default="cpu", choices=("cpu", "gpu"), help="gpu: also what is meant for one")
    parser.add_argument("--precision", help="32-true (default) or bf16-mixed")
    parser.add_argument("--out", type=Path, help="folder of paper.json, PAPER.md and paper/; results by default")
    parser.add_argument("--set", action="append", default=[], help="a further setting of every run, key=value")
    parser.add_argument("--smoke", action="store_true", help="a tiny run of each kind of cell, in outputs/smoke")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and run nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables from what is there, and run nothing")
    options = parser.parse_args()
    cells = read_cells()
    out = options.out or (ROOT / "outputs" / "smoke" if options.smoke else ROOT / "results")
    settings = list(options.set)
    if options.trainer == "gpu":
        settings.insert(0, "trainer=gpu")
    if options.precision:
        settings.append(f"trainer.precision={options.precision}")
    try:
        jobs = choose(
            all_jobs(cells), options.cells, options.recipe, options.trainer == "gpu", options.kind, options.seeds
        )
    except ValueError as error:
        parser.error(str(error))
    if options.smoke:
        jobs = list(SMOKE_JOBS)
        settings = [*SMOKE_SETTINGS, f"store={shown(out / 'store')}", *settings]
    runs = [job.to_run(at_hand(cells["experiments"][job.experiment]["teacher"]), settings) for job in jobs]
    if options.list:
        for run in runs:
            say(f"{'done   ' if run.done(out / 'paper') else 'missing'}  {run.name}")
        return 0
    failed = [] if options.tables else run_missing(runs, out / "paper", options.jobs)
    write_tables(out, cells)
    say(f"Tables: {shown(out / 'PAPER.md')}, {shown(out / 'paper.json')}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
