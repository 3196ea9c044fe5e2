"""The costs of a stage: seconds by kind of work, generated samples, forward passes of the teacher."""

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.attempts import Record, check_attempt, describe_attempt, drop_parts
from kegnet_pl.runtime.manifests import SEAL, seal

Work = Literal[
    "teacher_training", "compression", "generator_training", "drawing", "labelling", "student_training", "evaluation"
]
"""Kinds of work; the rest (start-up, pictures, writing) counts as ``other``."""

KINDS: tuple[Work, ...] = get_args(Work)


@dataclass
class StageCosts:
    """The costs of one stage, over all attempts to build it.

    Attributes:
        seconds: Wall-clock seconds by kind of work. Accuracy measured during training counts as ``evaluation``.
        total: Wall-clock seconds in total.
        samples_made: Samples from generators or from a noise source, in training and for students.
        teacher_forwards: Samples in all forward passes of the teacher.
    """

    seconds: dict[Work, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    total: float = 0.0
    samples_made: int = 0
    teacher_forwards: int = 0
    _file: Path | None = field(default=None, init=False, repr=False, compare=False)
    _since: float = field(default=0.0, init=False, repr=False, compare=False)
    _files: Record = field(default_factory=dict, init=False, repr=False, compare=False)
    _next_look: float = field(default=0.0, init=False, repr=False, compare=False)
    _others: Collection[str] = field(default=(), init=False, repr=False, compare=False)

    @contextmanager
    def recorded(self, path: Path) -> Iterator[None]:
        """Count the seconds inside the context, and record all costs in a file.

        :meth:`keep` and the end of the context update the file. A killed attempt loses its costs since the last update.
        """
        self._file, self._since = path, time.perf_counter()
        try:
            yield
        finally:
            self.keep(files=True)
            self._file = None

    def leave_to_others(self, names: Collection[str]) -> None:
        """Do not record the files of networks that other processes train; see :func:`describe_attempt`."""
        self._others = names

    def keep(self, files: bool = False) -> None:
        """Update the file of :meth:`recorded`; outside that context, do nothing.

        Args:
            files: True to record all files that were written so far. Otherwise they are recorded from time to time, as
                reading them takes at most 2 % of the time.
        """
        if self._file is None:
            return
        now = time.perf_counter()
        self.total += now - self._since
        self._since = now
        if files or now >= self._next_look:
            self._files = describe_attempt(self._file.parent, self._others)
            self._next_look = now + 50 * (time.perf_counter() - now)
        content = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        content["files"] = self._files
        atomic_write(self._file, json.dumps(seal(content)))

    @contextmanager
    def measure(self, work: Work) -> Iterator[None]:
        """Add the seconds inside the context to a kind of work, even if it ends in an exception."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[work] += time.perf_counter() - start

    @classmethod
    def load(cls, path: Path, notify: Callable[[str], object] = print) -> Self:
        """Return the costs that an interrupted attempt recorded; zero if there is no file, or it is damaged.

        Files of that attempt that were damaged since are set aside (see :func:`check_attempt`).
        """
        drop_parts(path.parent)
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_text())
            if content.pop(SEAL, None) not in (None, seal(content)[SEAL]):
                raise ValueError("it was changed")
            check_attempt(path.parent, content.pop("files", {}), notify)
            return cls(**content)
        except (ValueError, TypeError, AttributeError) as error:
            notify(f"Warning: the costs of earlier attempts are lost, since {path} is damaged ({error}).")
            return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the costs for a manifest: all kinds of work, and ``other``, to the millisecond."""
        seconds: dict[str, float] = {work: round(value, 3) for work, value in self.seconds.items()}
        seconds["other"] = max(0.0, round(self.total - sum(seconds.values()), 3))
        return {"seconds": seconds, "samples_made": self.samples_made, "teacher_forwards": self.teacher_forwards}


def add_up(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of the costs of several stages, and the highest peaks of memory, in megabytes."""
    parts = [manifest["costs"] for manifest in manifests]
    peaks = [manifest["peak_memory"] for manifest in manifests]
    return {
        "seconds": {work: round(sum(part["seconds"][work] for part in parts), 3) for work in parts[0]["seconds"]},
        "samples_made": sum(part["samples_made"] for part in parts),
        "teacher_forwards": sum(part["teacher_forwards"] for part in parts),
        "peak_memory": {where: max(peak[where] for peak in peaks) for where in ("host_mb", "device_mb")},
    }
