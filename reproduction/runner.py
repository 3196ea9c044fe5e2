"""Running the product, some runs at a time, so that all of it can be stopped and started again."""

import json
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
from typing import IO, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


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
        return path.exists() and {row["method"] for row in read_rows(path)} >= set(self.methods)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's ``results.json``.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{shown(path)} is damaged ({error}): remove it, and run the same command again.") from error
    return rows


class Processes:
    """Processes that stop when this one does: by Ctrl-C, by a request to end, by the end of a terminal.

    Each has a session of its own, so that Ctrl-C in a terminal reaches it once: from here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self.stopped = False

    def run(self, command: Sequence[str], log: IO[str], environment: Mapping[str, str]) -> int:
        """Run a command, which writes into a log; return its exit status."""
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
        """Raise KeyboardInterrupt where this process is told to end, after telling those that run."""
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        heeded = [number for number in numbers if before[number] is not signal.SIG_IGN]
        for number in heeded:
            signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number in heeded:
                signal.signal(number, before[number])

    def _stop(self, number: int, _: FrameType | None) -> None:
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.send_signal(number)  # which does nothing to one that has ended
        raise KeyboardInterrupt


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
    processes = Processes()
    with processes.stopping_on_signals(), ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                if waiting and len(running) < at_once:
                    busy = {run.parents for run in running.values()} - built
                    # Where nothing else is left, one whose parents are being built: the store lets it wait for them.
                    run = min(waiting, key=lambda run: run.parents in busy)
                    waiting.remove(run)
                    running[pool.submit(run_one, run, folder, threads, processes)] = run
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
        log = folder / run.name / "log.txt"
        say(f"failed: {run.name}; see {shown(log)}, which ends:")
        told = [line for line in log.read_text().splitlines() if line.strip()]
        for line in told[-3:]:
            say(f"    {line}")
    return failed


def run_one(run: Run, folder: Path, threads: int, processes: Processes) -> int:
    """Run the product once, in a process of its own; return its exit status."""
    mine = folder / run.name
    mine.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    say(f"started   {run.name}")
    with (mine / "log.txt").open("a") as log:
        code = processes.run(
            [sys.executable, "-m", "kegnet_pl", *run.overrides, f"hydra.run.dir={as_value(mine)}"],
            log,
            {"OMP_NUM_THREADS": str(threads), **os.environ},
        )
    end = "finished " if code == 0 else "stopped  " if processes.stopped else "FAILED   "
    say(f"{end} {run.name}, {time.perf_counter() - start:.0f} s")
    return code


def shown(path: Path) -> Path:
    """Return a path as seen from the folder the user is in, where it is below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def as_value(path: Path) -> str:
    """Return a path as the value of a Hydra override: in quotes where Hydra could not read it without."""
    text = str(shown(path))
    try:
        if OverridesParser.create().parse_override(f"path={text}").value() == text:
            return text
    except HydraException:
        pass
    return QuotedString(text, Quote.single).with_quotes()


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201
