"""Worker processes that take turns, so that whatever else the machine does affects all of them."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT
from benchmarks.worker import Task

_PROGRAM = """
import json, sys
from multiprocessing.connection import Connection
from pathlib import Path

import kegnet_pl
from benchmarks import worker

for module in (kegnet_pl, worker):
    if not Path(module.__file__).is_relative_to(Path.cwd()):
        raise ImportError(f"Expected {module.__name__} from {Path.cwd()}, but got {module.__file__}.")
worker.serve(worker.Task(**json.loads(sys.argv[2])), Connection(int(sys.argv[1])))
"""


class Worker:
    """A process that does one task, one measurement at a time.

    Args:
        task: The work, and how it is done.
        folder: The checkout whose ``benchmarks/worker.py`` and ``src`` run. It gets the fields of the task that differ
            from their defaults, so a checkout with a younger or older ``Task`` runs, too.
    """

    def __init__(self, task: Task, folder: Path = ROOT) -> None:
        self.folder = folder.resolve()
        usual = asdict(Task(task.work, task.network))
        fields = {"work": task.work, "network": task.network}
        fields |= {name: value for name, value in asdict(task).items() if value != usual[name]}
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(fields)],
                cwd=self.folder, pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(self.folder / "src"), str(self.folder)])},
            )  # fmt: skip

    def answer(self) -> Any:
        """Wait for the next answer; the first one is ``ready``.

        Raises:
            RuntimeError: If the task fails, or the process has ended.
        """
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(
                f"Expected an answer of the worker in {self.folder}, but its process ended. Read its error above."
            ) from None
        if isinstance(answer, str) and answer != "ready":
            raise RuntimeError(answer)
        return answer

    def ask(self, what: str) -> Any:
        """Ask for a measurement (``go``), for the peak memory (``peak``), or to ``forget`` it."""
        self.pipe.send(what)
        return self.answer()

    def stop(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):  # it has failed before
            self.pipe.send("stop")
        self.process.wait()
        self.pipe.close()


@contextmanager
def running(*tasks: Task, folders: tuple[Path, ...] = ()) -> Iterator[list[Worker]]:
    """Start a worker for each task, all at once, and end them.

    Args:
        tasks: One for each worker.
        folders: The checkout of each; none: this one.
    """
    with ExitStack() as stack:
        workers = []
        for task, folder in zip(tasks, folders or [ROOT] * len(tasks), strict=True):
            workers.append(Worker(task, folder))
            stack.callback(workers[-1].stop)
        for worker in workers:
            worker.answer()
        yield workers


def take_turns(workers: list[Worker], repeats: int, warm: int = 1) -> list[list[float]]:
    """Return the seconds of every worker's measurements; the order of the turns alternates."""
    for worker in workers:
        for _ in range(warm):
            worker.ask("go")
        worker.ask("forget")
    seconds: list[list[float]] = [[] for _ in workers]
    for turn in range(repeats):
        order = list(range(len(workers)))
        for index in order if turn % 2 == 0 else order[::-1]:
            seconds[index].append(workers[index].ask("go"))
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios of neighbouring measurements."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
