"""Run what is missing, resume what was begun, write the tables: ``python -m reproduction``.

It can be stopped at any time (Ctrl-C) and started again. Finished runs are ``results/paper/*/results.json``; what is
half done lies in the store.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from reproduction.jobs import ROOT, SMOKE_JOBS, SMOKE_SETTINGS, Job, all_jobs, choose, read_cells, teacher_file
from reproduction.tables import write_tables


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("cells", nargs="*", help="such as mnist_lenet or mnist_lenet/option3; all by default")
    parser.add_argument("--recipe", action="append", default=[], help="paper, strict or fast; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--trainer", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--precision", default=None, help="32-true (default) or bf16-mixed")
    parser.add_argument("--out", type=Path, help="folder of paper.json, PAPER.md and paper/; results by default")
    parser.add_argument("--set", action="append", default=[], help="a further setting of every run, key=value")
    parser.add_argument("--smoke", action="store_true", help="a tiny run of each kind of cell, in outputs/smoke")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and run nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables from what is there, and run nothing")
    options = parser.parse_args()
    cells = read_cells()
    try:
        jobs = choose(all_jobs(cells), options.cells, options.recipe, options.trainer == "gpu")
    except ValueError as error:
        parser.error(str(error))
    options.out = options.out or (ROOT / "outputs" / "smoke" if options.smoke else ROOT / "results")
    if options.smoke:
        jobs = list(SMOKE_JOBS)
        options.set += [*SMOKE_SETTINGS, f"store={_shown(options.out / 'store')}"]
    runs = options.out / "paper"
    missing = [job for job in jobs if not job.done(runs)]
    if options.list:
        for job in jobs:
            _say(f"{'missing' if job in missing else 'done   '}  {job.name}")
        return 0
    if options.tables:
        write_tables(options.out, cells)
        return 0
    _say(f"{len(jobs) - len(missing)} of {len(jobs)} runs are there; {len(missing)} to do.")
    extra = [f"trainer={options.trainer}", *([f"trainer.precision={options.precision}"] if options.precision else [])]
    extra = [setting for setting in extra if setting != "trainer=cpu"] + options.set
    failed = run_all(
        missing, runs, options.jobs, lambda job: [*job.overrides(teacher_file(cells, job.experiment)), *extra]
    )
    write_tables(options.out, cells)
    _say(f"Tables: {_shown(options.out / 'PAPER.md')}, {_shown(options.out / 'paper.json')}")
    for job in failed:
        _say(f"failed: {job.name}; see {_shown(runs / job.name / 'log.txt')}")
    return 1 if failed else 0


def run_all(jobs: list[Job], runs: Path, at_once: int, overrides: Callable[[Job], list[str]]) -> list[Job]:
    """Run jobs, some at a time; jobs that need the same missing parents wait for the first of them.

    Args:
        jobs: What to run.
        runs: Folder of the runs.
        at_once: How many at a time.
        overrides: Returns a job's arguments.

    Returns:
        The jobs that failed.
    """
    waiting, built, failed = list(jobs), set[tuple[str, ...]](), []
    running: dict[Future[int], Job] = {}
    threads = max((os.cpu_count() or 1) // at_once, 1)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                busy = {job.parents for job in running.values()} - built
                ready = [job for job in waiting if job.parents not in busy]
                if ready and len(running) < at_once:
                    job = ready[0]
                    waiting.remove(job)
                    running[pool.submit(run_one, job, runs, threads, overrides(job))] = job
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    built.add(job.parents)
                    if future.result() != 0:
                        failed.append(job)
        except KeyboardInterrupt:
            _say("Stopped. The same command goes on from here.")
            sys.exit(130)
    return failed


def run_one(job: Job, runs: Path, threads: int, overrides: list[str]) -> int:
    """Run one job in a process of its own; return its exit status."""
    folder = runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    _say(f"started   {job.name}")
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(
            [sys.executable, "-m", "kegnet_pl", *overrides, f"hydra.run.dir={_shown(folder)}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            check=False,
        ).returncode
    _say(f"{'finished ' if code == 0 else 'FAILED   '} {job.name}, {time.perf_counter() - start:.0f} s")
    return code


def _shown(path: Path) -> Path:
    """Return a path as seen from the folder the user is in, where it is below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
