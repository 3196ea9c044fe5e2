"""Progress of stages: one live bar on a terminal, occasional lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TextIO, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.progress import listen_to_progress

_LINE_SECONDS = 10.0
"""Seconds between two lines without a terminal."""

_LINE_WIDTH = 79
"""Longest line of progress without a terminal."""

_BAR_SECONDS = 0.1
"""Seconds between two updates of a bar, which cost as much as a step of a small network."""


_LONG_SECONDS = 1.0
"""A part of a stage that takes more seconds gets a line with its time."""


class _File:
    """A file that is open only while text is added to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> int:
        with self._path.open("a") as file:
            return file.write(text)

    def flush(self) -> None:
        pass


class _Labelled:
    """A stream whose lines begin with a label."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._at_start = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(f"{self._label}{line}" if self._at_start and line.strip() else line)
            self._at_start = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def make_file_console(path: Path) -> Console:
    """Return a console that overwrites a file; it is silent on ranks other than 0."""
    if rank() == 0:
        path.write_text("")
    stream = cast(TextIO, _File(path))
    return Console(file=stream, quiet=rank() != 0, highlight=False, markup=False, force_terminal=False, width=140)


def make_console(job: int | None = None, quiet: bool = False) -> Console:
    """Return the console of a process; it is silent on ranks other than 0.

    Args:
        job: Number of a job of a parallel sweep, whose jobs share a terminal: its lines begin with the number, and it
            has no live bars.
        quiet: True to print nothing.
    """
    quiet = quiet or rank() != 0
    if job is not None:
        stream = cast(TextIO, _Labelled(sys.stdout, f"[{job}] "))
        return Console(file=stream, quiet=quiet, highlight=False, markup=False, width=140)
    # No markup: paths and settings may hold brackets. A notebook claims to be a terminal, and gets plain lines.
    plain: dict[str, Any] = {"quiet": quiet, "highlight": False, "markup": False, "force_jupyter": False}
    console = Console(**plain, force_terminal=False if Console().is_jupyter else None)
    return console if console.is_terminal else Console(**plain, force_terminal=False, width=140)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StageProgress(Callback):
    """Reports the progress of a stage, its losses, and the time left.

    It is a context around the stage and a callback of each of its fits.

    Args:
        title: Title of the stage.
        console: Shows the bar. If it is not a terminal, it gets lines.
        terminal: Shows the bar if lines go to a file; the bar disappears at the end. None: ``console`` shows it.
        started: Time (``time.monotonic()``) at which the work has started; None: when the context is entered.
    """

    def __init__(
        self, title: str, console: Console, terminal: Console | None = None, *, started: float | None = None
    ) -> None:
        self.title = title
        self.console = console
        self.terminal = terminal
        self.started = started
        self.fits = 1
        self.fit = 0
        self._bar: Progress | None = None
        self._start = 0.0
        self._training_start = 0.0
        self._first: float | None = None
        self._last_update = 0.0
        self._done = 0.0
        self._losses = ""

    def __enter__(self) -> Self:
        self._last_update = time.monotonic()
        self._start = self._training_start = self._last_update if self.started is None else self.started
        if not self.console.is_terminal:
            self.console.print(f"{self.title}: started")
        shown = self.terminal or self.console
        if not shown.is_terminal or shown.quiet:
            return self
        losses = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            TextColumn("[bold]{task.description:<17}"),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("[dim]{task.fields[losses]}", table_column=losses),
            TextColumn("[dim]left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=shown,
            transient=self.terminal is not None,
            expand=True,  # losses give way on a narrow terminal, time left does not
        )
        self._bar.start()
        self._bar.add_task(self.title, total=1.0, losses="")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._done = 1.0
            self._move_bar()
        if self._bar is not None:
            self._bar.stop()
        if kind is None and not self.console.is_terminal:
            seconds = time.monotonic() - self._start
            self._print_line(f"{self.title}: finished in {_clock(seconds)}")

    def _move_bar(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, losses=self._losses)

    def move_to(self, share: float) -> None:
        """Show the finished share, in [0, 1], of a stage without a trainer.

        The time left is estimated from the second call on: work before the first call is not part of the rate.
        """
        if self._first is None:
            self._training_start, self._first = time.monotonic(), share
        self._show(lambda: share)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Name a part of the stage without a trainer, and print its time if it took longer than a second.

        The finished share of work that reports it (:func:`report_progress`) stands beside the name.
        """
        start, losses = time.monotonic(), self._losses
        self._losses = name
        self._move_bar()

        def show(share: float) -> None:
            left = f", about {_clock((time.monotonic() - start) * (1 - share) / share)} left" if share else ""
            self._losses = f"{name}: {share:.0%}{left}"
            self._show(lambda: self._done)

        with listen_to_progress(show):
            yield
        self._losses = losses
        seconds = time.monotonic() - start
        if seconds > _LONG_SECONDS:
            self.console.print(f"{self.title}: {name}: {_clock(seconds)}")

    def _show(self, share: Callable[[], float]) -> None:
        """Show the finished share, unless it was shown a moment ago."""
        seconds = _LINE_SECONDS if self._bar is None else _BAR_SECONDS
        if time.monotonic() - self._last_update <= seconds:
            return
        self._last_update = time.monotonic()
        self._done = share()
        self._move_bar()
        if self._bar is None:
            self._line()

    def next_fit(self, index: int, fits: int) -> None:
        """Set which fit of the stage comes next, from 0, and how many there are."""
        self.fit, self.fits = index, fits

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting at the epoch where the first fit of the stage starts or resumes."""
        if self._first is None:
            if trainer.current_epoch:
                self.console.print(f"{self.title}: resumed after epoch {trainer.current_epoch}")
            self._training_start = time.monotonic()
            self._first = (self.fit + trainer.current_epoch / max(trainer.max_epochs or 1, 1)) / self.fits

    def _share(self, trainer: Trainer) -> float:
        """Share of the whole stage that is done, in [0, 1]."""
        epochs = max(trainer.max_epochs or 1, 1)
        steps = max(trainer.num_training_batches, 1)  # infinite for data without a length
        within = (trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.current.ready / steps) / epochs
        return (self.fit + min(within, 1.0)) / self.fits

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._show(lambda: self._share(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the losses of the epoch."""
        parts = [f"{self.fit + 1}/{self.fits}"] if self.fits > 1 else []
        total = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        parts.append(f"epoch {trainer.current_epoch + 1}{total}")
        # The loss first: on a narrow terminal the rest is cut.
        for name, value in sorted(trainer.callback_metrics.items(), key=lambda item: ("loss" not in item[0], item[0])):
            short = name.removeprefix("train/").removeprefix("loss_")
            if short == "grad_norm":
                continue  # of use in a curve
            parts.append(f"{short} {float(value):.3f}")
        self._losses = "  ".join(parts)
        self._done = self._share(trainer)
        self._move_bar()

    def _line(self) -> None:
        gained = self._done - (self._first or 0.0)
        text = f"{self.title}: {self._done:4.0%}"
        if gained > 0:
            left = (time.monotonic() - self._training_start) * (1 - self._done) / gained
            text += f"  about {_clock(left)} left"
        self._print_line(text)

    def _print_line(self, text: str) -> None:
        """Print a line of a log file, with as many losses as fit into the line."""
        for part in filter(None, self._losses.split("  ")):
            if len(text) + 2 + len(part) > _LINE_WIDTH:
                break
            text += f"  {part}"
        self.console.print(text, soft_wrap=True)


@contextmanager
def show_long_work(title: str, console: Console) -> Iterator[None]:
    """Show the progress of work that reports it (:func:`report_progress`), if the work takes more than a second."""
    start = time.monotonic()
    bar: StageProgress | None = None

    def show(share: float) -> None:
        nonlocal bar
        if bar is None and share < 1 and time.monotonic() - start > _LONG_SECONDS:
            bar = stack.enter_context(StageProgress(title, console, started=start))
        if bar is not None:
            bar.move_to(share)

    with ExitStack() as stack, listen_to_progress(show):
        yield
