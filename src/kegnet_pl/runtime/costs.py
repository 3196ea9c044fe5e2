"""What a stage costs: seconds by kind of work, samples made, answers of the teacher."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from kegnet_pl.runtime.atomic_files import write_whole

Work = Literal[
    "teacher_training", "compression", "generator_training", "drawing", "labelling", "student_training", "evaluation"
]
"""Kinds of work; what is none of them (start-up, pictures, writing) is ``other``."""

KINDS: tuple[Work, ...] = get_args(Work)


@dataclass
class StageCosts:
    """The costs of one stage, over all attempts to build it.

    Attributes:
        seconds: Wall-clock seconds by kind of work. Accuracy that is measured while a network trains is
            ``evaluation``, too, never training.
        total: Wall-clock seconds in all.
        samples_made: Samples that generators, or a source of noise, have made: in training, and for students.
        teacher_forwards: Samples that the teacher has answered to.
    """

    seconds: dict[Work, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    total: float = 0.0
    samples_made: int = 0
    teacher_forwards: int = 0
    _bill: Path | None = field(default=None, init=False, repr=False, compare=False)
    _since: float = field(default=0.0, init=False, repr=False, compare=False)

    @contextmanager
    def billed(self, path: Path) -> Iterator[None]:
        """Count the seconds inside the context, and keep all costs in a file that outlives an attempt.

        The file is brought up to date by :meth:`keep` and at the end: an attempt that is killed loses what it has cost
        since the last time.
        """
        self._bill, self._since = path, time.perf_counter()
        try:
            yield
        finally:
            self.keep()
            self._bill = None

    def keep(self) -> None:
        """Bring the file of :meth:`billed` up to date; without one, do nothing."""
        if self._bill is None:
            return
        now = time.perf_counter()
        self.total += now - self._since
        self._since = now
        kept = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        write_whole(self._bill, json.dumps(kept))

    @contextmanager
    def measure(self, work: Work) -> Iterator[None]:
        """Add the seconds inside the context to a kind of work, also where it ends in an exception."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[work] += time.perf_counter() - start

    @classmethod
    def load(cls, path: Path) -> Self:
        """Go on with what an interrupted attempt has cost; a missing file costs nothing."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds: all kinds of work, and ``other``, to the millisecond."""
        seconds: dict[str, float] = {work: round(value, 3) for work, value in self.seconds.items()}
        seconds["other"] = max(0.0, round(self.total - sum(seconds.values()), 3))
        return {"seconds": seconds, "samples_made": self.samples_made, "teacher_forwards": self.teacher_forwards}


def add_up(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the costs of several stages: sums, and the highest peaks of memory, in megabytes."""
    parts = [manifest["costs"] for manifest in manifests]
    peaks = [manifest["peak_memory"] for manifest in manifests]
    return {
        "seconds": {work: round(sum(part["seconds"][work] for part in parts), 3) for work in parts[0]["seconds"]},
        "samples_made": sum(part["samples_made"] for part in parts),
        "teacher_forwards": sum(part["teacher_forwards"] for part in parts),
        "peak_memory": {where: max(peak[where] for peak in peaks) for where in ("host_mb", "device_mb")},
    }
