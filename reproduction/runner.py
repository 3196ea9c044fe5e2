"""The runner of ``python -m kegnet_pl``: several runs at a time, which can be interrupted and resumed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from kegnet_pl.runtime.environment import display_path
from reproduction.paths import hydra_value
from reproduction.records import Rows, add_run, read_runs


@dataclass(frozen=True)
class Run:
    """One run of the product.

    Attributes:
        name: Its name in the file of finished runs, and the name of its folder.
        overrides: Arguments of ``python -m kegnet_pl``.
        methods: Rows that it must have, such as ``T+KegNet``.
        parents: Key of the stages that it shares with other runs. One of these runs builds them first.
    """

    name: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    parents: tuple[str, ...]

    def done(self, finished: Mapping[str, Rows]) -> bool:
        """Return True if the finished runs contain this one with all its rows."""
        return {row["method"] for row in finished.get(self.name, [])} >= set(self.methods)


class Processes:
    """Child processes that stop with this process: on Ctrl-C, SIGTERM or SIGHUP.

    Each child has its own session, so that Ctrl-C in a terminal reaches it once, from this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self.stopped = False

    def run(self, command: Sequence[str], log: IO[str], environment: Mapping[str, str]) -> int:
        """Run a command with its output in a log, and return its exit status."""
        with self._lock:
            if self.stopped:
                return 1
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self._running.append(process)
        return process.wait()

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Forward signals that end this process to its children, then raise KeyboardInterrupt."""
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        handled = [number for number in numbers if before[number] is not signal.SIG_IGN]
        for number in handled:
            signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number in handled:
                signal.signal(number, before[number])

    def _stop(self, number: int, _: FrameType | None) -> None:
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.send_signal(number)  # no effect on a process that has ended
        raise KeyboardInterrupt


def run_missing(runs: Sequence[Run], records: Path, folder: Path, at_once: int) -> list[Run]:
    """Run what is not done, and report progress.

    Args:
        runs: All runs, in order.
        records: File of finished runs. Each run is added when it finishes.
        folder: Working folder with one folder for each run.
        at_once: Number of runs at a time. They share the cores unless OMP_NUM_THREADS is set.

    Returns:
        The runs that failed.
    """
    finished = read_runs(records)
    waiting = [run for run in runs if not run.done(finished)]
    say(f"{len(runs) - len(waiting)} of {len(runs)} runs are there; {len(waiting)} to do.")
    built, failed = set[tuple[str, ...]](), list[Run]()
    running: dict[Future[int], Run] = {}
    threads = max((os.cpu_count() or 1) // at_once, 1)
    processes = Processes()
    with processes.stopping_on_signals(), ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                if waiting and len(running) < at_once:
                    busy = {run.parents for run in running.values()} - built
                    # A run whose parents are being built comes last: the store makes it wait for them.
                    run = min(waiting, key=lambda run: run.parents in busy)
                    waiting.remove(run)
                    running[pool.submit(run_one, run, records, folder, threads, processes)] = run
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(future)
                    built.add(run.parents)
                    if future.result() != 0:
                        failed.append(run)
        except KeyboardInterrupt:
            say("Stopped. The same command continues from here.")
            sys.exit(130)
    for run in failed:
        log = folder / run.name / "log.txt"
        say(f"failed: {run.name}; see {display_path(log)}, which ends:")
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        for line in lines[-3:]:
            say(f"    {line}")
    return failed


def run_one(run: Run, records: Path, folder: Path, threads: int, processes: Processes) -> int:
    """Run once in a new process, add the results to the records, and return the exit status."""
    run_folder = folder / run.name
    run_folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    say(f"started   {run.name}")
    with (run_folder / "log.txt").open("a") as log:
        code = processes.run(
            [sys.executable, "-m", "kegnet_pl", *run.overrides, f"hydra.run.dir={hydra_value(run_folder)}"],
            log,
            {"OMP_NUM_THREADS": str(threads), **os.environ},
        )
    if code == 0:
        add_run(records, run.name, run_folder / "results.json")
    end = "finished " if code == 0 else "stopped  " if processes.stopped else "FAILED   "
    say(f"{end} {run.name}, {time.perf_counter() - start:.0f} s")
    return code


def say(line: str) -> None:
    """Print a line immediately."""
    print(line, flush=True)  # noqa: T201
