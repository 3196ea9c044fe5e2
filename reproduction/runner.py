"""Running the product, some runs at a time, so that all of it can be stopped and started again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One run of the product.

    Attributes:
        name: Name of its folder.
        overrides: Arguments of ``python -m kegnet_pl``.
        methods: Rows that it leaves, such as ``T+KegNet``.
        parents: What it shares with others: one of those that share it begins, and the others find it built.
    """

    name: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    parents: tuple[str, ...]

    def done(self, folder: Path) -> bool:
        """Return whether the run has left all its rows in a folder of runs."""
        path = folder / self.name / "results.json"
        return path.exists() and {row["method"] for row in json.loads(path.read_text())} >= set(self.methods)


def run_missing(runs: Sequence[Run], folder: Path, at_once: int) -> list[Run]:
    """Run what is not done, and say so.

    Args:
        runs: What there is to run, in order.
        folder: Folder of the runs.
        at_once: How many at a time; they share the cores unless OMP_NUM_THREADS says otherwise.

    Returns:
        The runs that failed.
    """
    waiting = [run for run in runs if not run.done(folder)]
    say(f"{len(runs) - len(waiting)} of {len(runs)} runs are there; {len(waiting)} to do.")
    built, failed = set[tuple[str, ...]](), list[Run]()
    running: dict[Future[int], Run] = {}
    threads = max((os.cpu_count() or 1) // at_once, 1)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                if waiting and len(running) < at_once:
                    busy = {run.parents for run in running.values()} - built
                    # Where nothing else is left, one whose parents are being built: the store lets it wait for them.
                    run = min(waiting, key=lambda run: run.parents in busy)
                    waiting.remove(run)
                    running[pool.submit(run_one, run, folder, threads)] = run
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(future)
                    built.add(run.parents)
                    if future.result() != 0:
                        failed.append(run)
        except KeyboardInterrupt:
            say("Stopped. The same command goes on from here.")
            sys.exit(130)
    for run in failed:
        say(f"failed: {run.name}; see {shown(folder / run.name / 'log.txt')}")
    return failed


def run_one(run: Run, folder: Path, threads: int) -> int:
    """Run the product once, in a process of its own; return its exit status."""
    mine = folder / run.name
    mine.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    say(f"started   {run.name}")
    with (mine / "log.txt").open("a") as log:
        code = subprocess.run(
            [sys.executable, "-m", "kegnet_pl", *run.overrides, f"hydra.run.dir={shown(mine)}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            check=False,
        ).returncode
    say(f"{'finished ' if code == 0 else 'FAILED   '} {run.name}, {time.perf_counter() - start:.0f} s")
    return code


def shown(path: Path) -> Path:
    """Return a path as seen from the folder the user is in, where it is below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201
