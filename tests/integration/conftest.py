"""Running the pipeline in this process and in others."""

import functools
import importlib.resources
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import jsonschema
import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from kegnet_pl.pipeline import cli, outputs
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.run import run
from kegnet_pl.pipeline.stages import pictures
from kegnet_pl.pipeline.trainer import ResumableFit
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.settings import RunSettings
from kegnet_pl.training import GeneratorModule

FAST = "debug=fast"
PLAIN = [
    "sources=[uniform,normal,kegnet]", "compression.fit=weights", "student.oversampling=1", "latency.batch_sizes=[]",
    "agreement.sources=[]",
]  # fmt: skip
"""Settings of a plain run; those of a test come later."""
SCHEMA = json.loads((importlib.resources.files("kegnet_pl.reporting") / "results.schema.json").read_text())

Run = Callable[..., dict[str, Any]]
Command = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "Started"]
Refused = Callable[..., str]


def configure(*overrides: str) -> dict[str, Any]:
    """Compose and check the shipped configuration."""
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        config = to_plain(compose("config", overrides=list(overrides)))
    RunSettings.from_config(config)
    return config


def go(folder: Path, *overrides: str, train: bool = True, draw: bool = False) -> list[dict[str, Any]]:
    """Run the pipeline on next to nothing.

    Args:
        folder: The store and the results are written here.
        overrides: Of the configuration.
        train: Whether modules are trained. If not, networks keep their initial weights, which is enough for a test of
            fingerprints and of files.
        draw: Whether the sample sheet and the report are drawn; matplotlib takes longer than all stages together.

    Returns:
        The rows of ``results.json``.
    """
    config = configure(FAST, *PLAIN, f"store={folder / 'store'}", *overrides)
    out = folder / "run"
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not train:
            stack.enter_context(no_training())
        if not draw:
            stack.enter_context(no_pictures())
        run(config, out)
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    jsonschema.validate(rows, SCHEMA)
    return rows


@contextmanager
def no_pictures() -> Iterator[None]:
    """Write empty files instead of the sample sheet and the report."""

    def write_page(finished: FinishedRun) -> Path:
        page = finished.folder / "report.html"
        page.touch()
        return page

    def draw_sheet(samples: object, path: Path, *_: object) -> None:
        path.touch()

    with (
        mock.patch.object(outputs, "write_run_page", write_page),
        mock.patch.object(pictures, "draw_sample_sheet", draw_sheet),
    ):
        yield


@contextmanager
def no_training() -> Iterator[None]:
    """Let fits return at once, with the metrics of a fit of no steps."""

    def fit(self: ResumableFit, module: Any, data: Any, *, name: str, epochs: int, callbacks: Any = ()) -> Any:
        if isinstance(module, GeneratorModule):
            module.means = [{"train/loss": 0.0}] * module.networks
        return {"epochs": epochs, "epoch": epochs}

    with mock.patch.object(ResumableFit, "__call__", fit):
        yield


def stages(folder: Path) -> dict[str, float]:
    """Return the finished stages of a store, and when each was published."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "store").glob("[!.]*/manifest.json")}


def kinds(names: Sequence[str] | set[str] | dict[str, float]) -> list[str]:
    """Return the names of stages without their fingerprints, sorted."""
    return sorted(name.split("-")[0] for name in names)


def copy_store(source: Path, target: Path) -> Path:
    """Copy the finished stages of a run's folder with hard links; return the target."""
    # A linked lock file would be the same lock.
    shutil.copytree(source / "store", target / "store", ignore=shutil.ignore_patterns(".*"), copy_function=os.link)
    return target


Prepared = Callable[..., Path]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Prepared:
    """Return the folder of a finished run; each configuration is run once, for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if hasattr(request.config, "workerinput") else base

    @functools.cache
    def get(*overrides: str, train: bool = True, draw: bool = False) -> Path:
        name = "prepared-" + "".join(c if c.isalnum() else "_" for c in f"{'-'.join(overrides)}-{train}-{draw}")
        with FileLock(root / f"{name}.lock"):
            if not (root / name / "finished").exists():
                go(root / name, *overrides, train=train, draw=draw)
                (root / name / "finished").touch()
        return root / name

    return get


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [__name__, "kegnet_pl.pipeline.cli", "kegnet_pl.reporting.sweep", "matplotlib.pyplot", "tensorboard"]
)


def _main(arguments: Sequence[str], folder: Path, environment: dict[str, str], output: Path, draw: bool) -> None:
    """Run the command line in a forked process: as ``python -m kegnet_pl``, but with everything imported already."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / stream, os.O_WRONLY | os.O_CREAT), number)
    from joblib.externals.loky.backend import context

    from kegnet_pl.pipeline.cli import main

    context.set_start_method("fork")  # workers of hydra/launcher=joblib
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("kegnet_pl.__main__")  # what DDP starts once more
    sys.argv[:] = ["kegnet_pl", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    with nullcontext() if draw else no_pictures():
        try:
            main()
        finally:
            threading._shutdown()  # an interpreter ends with it, and it stops joblib's workers


class Started:
    """A command in a forked process."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: dict[str, str], draw: bool) -> None:
        self._name = ["kegnet_pl", *arguments]
        self._output = TemporaryDirectory()
        output = Path(self._output.name)
        self._streams = [output / stream for stream in ("out", "err")]
        self.process = FORKS.Process(target=_main, args=(arguments, folder, environment, output, draw))
        self.process.start()

    def finish(self, expect: int | None = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended, with this exit status."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s"
        out, err = (stream.read_text() for stream in self._streams)
        self._output.cleanup()
        assert expect in (None, self.process.exitcode), out + err
        return subprocess.CompletedProcess(self._name, self.process.exitcode, out, err)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a command: no W&B key, and an empty home."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return plain | {"HOME": str(tmp_path), "COLUMNS": "160"}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start the command line in an empty folder, without pictures of runs unless ``draw`` is set; do not wait."""
    running = []
    usual = environment

    def begin(
        *arguments: str, draw: bool = False, folder: Path = tmp_path, environment: Mapping[str, str] = usual
    ) -> Started:
        running.append(Started(arguments, folder, dict(environment), draw))
        return running[-1]

    yield begin
    for command in running:
        command.process.kill()


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str], start: Start) -> Command:
    """Run the command line, see ``start``, and wait for its end.

    ``new`` starts ``python -m kegnet_pl``, which takes the imports' five seconds more, where it imports torch.
    """

    def run(
        *arguments: str, expect: int | None = 0, new: bool = False, draw: bool = False, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        if not new:
            return start(*arguments, draw=draw).finish(expect, timeout)
        name = [sys.executable, "-m", "kegnet_pl", *arguments]
        done = subprocess.run(name, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)
        assert expect in (None, done.returncode), done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Run a command that fails, in this process and in an empty folder; return what it prints."""

    def run(*arguments: str) -> str:
        GlobalHydra.instance().clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["kegnet_pl", *arguments])
        monkeypatch.setattr(cli, "_entered", False)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.out + captured.err

    return run
