"""How far a stage is: a bar on a terminal, plain lines elsewhere."""

import io
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor, nn

from kegnet_pl.runtime.progress import listen_to_progress, progress_within, report_progress
from kegnet_pl.training import progress as progress_module
from kegnet_pl.training.progress import StageProgress, make_console, make_file_console, show_long_work
from tests.unit.training.tiny import QUIET, make_checkpoint, make_trainer

pytestmark = QUIET


class _Module(LightningModule):
    """Four steps an epoch, two metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(2, 1)

    def train_dataloader(self) -> range:
        return range(4)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        self.log_dict({"train/loss": 0.25, "train/loss_decoder": 1.5}, on_step=False, on_epoch=True, batch_size=1)
        return self.network(torch.ones(1, 2)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.01)


def _console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=140, highlight=False), file


def _fit(
    progress: StageProgress, folder: Path, epochs: int = 3, *callbacks: Callback, resume: str | None = None
) -> None:
    make_trainer(epochs, folder, [progress, *callbacks]).fit(_Module(), ckpt_path=resume)


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print a line at every batch instead of now and then."""
    monkeypatch.setattr(progress_module, "_LINE_SECONDS", -1.0)


def _shares(text: str) -> list[int]:
    return [int(share) for share in re.findall(r"(\d+)%", text)]


@pytest.mark.usefixtures("every_batch")
def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    console, file = _console()
    with StageProgress("teacher", console) as progress:
        _fit(progress, tmp_path)
    text = file.getvalue()
    assert {char for char in text if unicodedata.category(char)[0] == "C"} == {"\n"}, "control characters"
    assert text.isascii(), "a bar was drawn"
    lines = text.splitlines()
    assert lines[0] == "teacher: started"
    # A busy machine may take some seconds.
    assert re.fullmatch(r"teacher: finished in 0:\d\d  epoch 3/3  loss 0\.250  decoder 1\.500", lines[-1]), lines[-1]
    assert len(lines) == 2 + 12
    assert _shares(text) == [round(100 * step / 12) for step in range(1, 13)]
    assert all(re.fullmatch(r"teacher: +\d+%  about \d:\d\d left(  .*)?", line) for line in lines[1:-1]), lines
    assert "epoch 1/3  loss 0.250  decoder 1.500" in lines[6]


def test_few_lines_in_a_log_file(tmp_path: Path) -> None:
    console, file = _console()
    with StageProgress("teacher", console) as progress:
        _fit(progress, tmp_path, epochs=5)
    assert len(file.getvalue().splitlines()) == 2


@pytest.mark.usefixtures("every_batch")
def test_a_stage_of_several_fits(tmp_path: Path) -> None:
    console, file = _console()
    with StageProgress("generators", console) as progress:
        for index in range(2):
            progress.next_fit(index, 2)
            _fit(progress, tmp_path, epochs=1)
    shares = _shares(file.getvalue())
    assert shares == [12, 25, 38, 50, 62, 75, 88, 100]
    assert "1/2  epoch 1/1" in file.getvalue()
    assert re.match(r"generators: finished in 0:\d\d  2/2  epoch 1/1", file.getvalue().splitlines()[-1])


def test_a_stage_without_a_trainer_prints_its_share_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = _console()
    with StageProgress("compression", console) as stage:
        stage.move_to(0.25)
        assert "25%" not in file.getvalue(), "a moment after the start"
        monkeypatch.setattr(progress_module, "_LINE_SECONDS", -1)
        stage.move_to(0.5)
    assert _shares(file.getvalue()) == [50]


@pytest.mark.usefixtures("every_batch")
def test_a_resumed_fit_goes_on_from_where_it_was(tmp_path: Path) -> None:
    _fit(StageProgress("teacher", _console()[0]), tmp_path, 2, make_checkpoint(tmp_path))
    console, file = _console()
    with StageProgress("teacher", console) as progress:
        _fit(progress, tmp_path, 4, resume=str(tmp_path / "resume.ckpt"))
    assert _shares(file.getvalue()) == [56, 62, 69, 75, 81, 88, 94, 100]
    assert progress._first == 0.5, "the time left must count from where this run began"
    lines = file.getvalue().splitlines()
    assert lines[1] == "teacher: resumed after epoch 2"
    assert all(" left" in line for line in lines[2:-1])


def test_time_left_counts_what_this_run_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = _console()
    progress = StageProgress("teacher", console)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: 100.0)
    with progress:
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: 160.0)
        progress._first, progress._done = 0.5, 0.75  # a quarter in a minute
        progress._line()
        progress._first = 0.75  # nothing yet
        progress._line()
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: 3765.0)
    lines = file.getvalue().splitlines()
    assert lines[1].endswith("about 1:00 left")
    assert "left" not in lines[2]
    assert lines[3].startswith("teacher: finished in 1:01:05")


def test_time_left_counts_the_whole_stage_not_the_fit(tmp_path: Path) -> None:
    console, _ = _console()
    with StageProgress("generators", console) as progress:
        for index in range(2):
            progress.next_fit(index, 2)
            _fit(progress, tmp_path, epochs=1)
    assert progress._first == 0.0


@pytest.mark.usefixtures("every_batch")
def test_failed_stage_is_not_called_finished(tmp_path: Path) -> None:
    console, file = _console()

    def fail() -> None:
        with StageProgress("teacher", console) as progress:
            _fit(progress, tmp_path, epochs=1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert "100%" in file.getvalue()
    assert "finished" not in file.getvalue()


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    console, file = _console(terminal=True)
    with StageProgress("teacher", console) as progress:
        _fit(progress, tmp_path)
    text = file.getvalue()
    assert "\x1b[" in text
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").strip().splitlines()[-1]
    assert "teacher" in last
    assert "100%" in last
    assert "epoch 3/3  loss 0.250  decoder 1.500" in last
    assert "started" not in text
    assert text.rstrip("\n").endswith("\x1b[?25h"), "the cursor is not shown again"


def test_an_interrupted_bar_gives_the_cursor_back(tmp_path: Path) -> None:
    console, file = _console(terminal=True)

    def interrupt() -> None:
        with StageProgress("teacher", console):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert file.getvalue().rstrip("\n").endswith("\x1b[?25h")
    assert "100%" not in file.getvalue()


def test_console_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    console = make_console()
    assert (console.is_terminal, console.width, console.quiet) == (False, 140, False)
    console.print("[bold]x[/bold] 12 " + "y" * 90)
    # Brackets are no markup: folders and settings may hold them.
    assert capsys.readouterr().out == "[bold]x[/bold] 12 " + "y" * 90 + "\n"


def test_lines_of_jobs_that_write_at_the_same_time_say_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console(3)
    console.print("teacher: started")
    console.print("\ntwo\nlines")
    assert capsys.readouterr().out == "[3] teacher: started\n\n[3] two\n[3] lines\n"
    assert not console.is_terminal, "several live bars would garble each other"


def test_a_job_has_lines_in_a_file_and_a_bar_that_disappears(tmp_path: Path) -> None:
    (tmp_path / "output.txt").write_text("of an earlier job")
    terminal, file = _console(terminal=True)
    with StageProgress("teacher", make_file_console(tmp_path / "output.txt"), terminal) as progress:
        _fit(progress, tmp_path)
    lines = (tmp_path / "output.txt").read_text().splitlines()
    assert lines[0] == "teacher: started" and lines[-1].startswith("teacher: finished in 0:0")
    assert "teacher" in file.getvalue() and file.getvalue().endswith("\x1b[2K"), "the line of the bar is erased"


def test_a_long_part_of_a_stage_is_a_line_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = _console()
    with StageProgress("student", console) as progress:
        with progress.part("drawing samples"):
            assert progress._losses == "drawing samples", "shown next to the bar"
        monkeypatch.setattr(progress_module, "_LONG_SECONDS", -1.0)
        with progress.part("labelling samples"):
            pass
    assert file.getvalue().splitlines()[1] == "student: labelling samples: 0:00"
    assert "drawing" not in file.getvalue()


def test_a_part_shows_the_progress_that_its_work_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_LINE_SECONDS", -1.0)
    console, file = _console()
    with StageProgress("student", console) as progress, progress.part("drawing samples"):
        report_progress(0.25)
    report_progress(0.5)  # nobody listens
    line = file.getvalue().splitlines()[1]
    assert line.startswith("student:   0%  drawing samples: 25%, about 0:0") and line.endswith(" left")


def test_work_within_other_work_is_a_share_of_it() -> None:
    shares: list[float] = []
    with listen_to_progress(shares.append):
        report_progress(0.1)
        with progress_within(0.5, 0.25):
            report_progress(0.5)
            with progress_within(0.5, 0.5):
                report_progress(1.0)
        report_progress(0.9)
    with progress_within(0.5, 0.25):
        report_progress(0.7)  # nobody listens
    assert shares == [0.1, 0.625, 0.75, 0.9]


def test_short_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = _console()
    with show_long_work("samples", console):
        report_progress(0.5)
    assert not file.getvalue()
    monkeypatch.setattr(progress_module, "_LONG_SECONDS", -1.0)
    monkeypatch.setattr(progress_module, "_LINE_SECONDS", -1.0)
    with show_long_work("samples", console):
        report_progress(1.0)  # work that reports only its end
    assert not file.getvalue()
    with show_long_work("samples", console):
        report_progress(0.5)
    started, line, finished = file.getvalue().splitlines()
    assert (started, line[:13], finished[:19]) == ("samples: started", "samples:  50%", "samples: finished i"), file


def test_the_time_left_counts_from_the_start_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = _console()
    clock = [0.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with show_long_work("samples", console):
        for clock[0], share in ((20.0, 0.25), (40.0, 0.5), (80.0, 1.0)):
            report_progress(share)
    assert file.getvalue().splitlines()[1] == "samples:  50%  about 0:40 left"
    assert file.getvalue().splitlines()[-1] == "samples: finished in 1:20"


def test_other_ranks_are_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    with StageProgress("teacher", make_console()):
        pass
    assert capsys.readouterr().out == ""


def test_trainer_shows_no_bar_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console, _ = _console()
    with StageProgress("teacher", console) as progress:
        trainer: Trainer = make_trainer(1, tmp_path, [progress])
        trainer.fit(_Module())
    assert trainer.progress_bar_callback is None
    assert capsys.readouterr().out == ""


def test_a_line_of_a_log_file_is_short() -> None:
    console, file = _console()
    with StageProgress("student (kegnet50_procedural50)", console) as progress:
        progress._losses = "  ".join(f"loss_{index} 0.123" for index in range(20))
        progress._done = 0.5
        progress._line()
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and all(len(line) < 80 for line in lines), lines
    assert lines[1].endswith("left  loss_0 0.123") and lines[2].endswith("loss_1 0.123"), "whole losses, while they fit"
