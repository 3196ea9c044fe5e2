"""Finished stages on disk, seen from several processes."""

import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from kegnet_pl.pipeline import store as store_module
from kegnet_pl.pipeline.store import Build, Store, fingerprint
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.costs import StageCosts

_FORK = multiprocessing.get_context("fork")
"""No import of torch in each process."""


def _build(root: Path, signals: Path, seconds: float) -> None:
    """Need the stage; write what was said, and what came of it."""

    def build(folder: Path, costs: StageCosts) -> dict[str, Any]:
        (folder / "half.txt").write_text("begun")
        (signals / f"building.{os.getpid()}").touch()
        time.sleep(seconds)
        return {"pid": os.getpid()}

    with redirect_stdout(StringIO()) as said:
        stage = Store(root).get("teacher", {"lr": 0.1}, [], build)
    result = {"found": stage.found, "metrics": stage.metrics, "said": said.getvalue()}
    (signals / f"result.{os.getpid()}").write_text(json.dumps(result))


class _Process:
    """A process that needs the stage."""

    def __init__(self, root: Path, signals: Path, seconds: float) -> None:
        signals.mkdir(exist_ok=True)
        self.signals = signals
        self.process = _FORK.Process(target=_build, args=(root, signals, seconds))
        self.process.start()

    def wait_until_it_builds(self) -> None:
        deadline = time.monotonic() + 60
        while not (self.signals / f"building.{self.process.pid}").exists():
            assert self.process.is_alive(), "the builder has ended"
            assert time.monotonic() < deadline, "the builder does not start"
            time.sleep(0.02)

    def finish(self) -> dict[str, Any]:
        self.process.join(60)
        assert self.process.exitcode == 0
        result: dict[str, Any] = json.loads((self.signals / f"result.{self.process.pid}").read_text())
        return result


def _visible(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.startswith(".")]


def test_two_need_a_stage_and_one_builds_it(tmp_path: Path) -> None:
    root, signals = tmp_path / "store", tmp_path / "signals"
    first = _Process(root, signals, seconds=2)
    first.wait_until_it_builds()
    said: list[str] = []
    stage = Store(root, notify=said.append).get(
        "teacher", {"lr": 0.1}, [], lambda folder, costs: pytest.fail("built twice")
    )
    result = first.finish()
    assert result["said"] == ""
    assert result["found"] is False
    assert stage.found is True
    assert stage.metrics == result["metrics"] == {"pid": first.process.pid}
    assert len(said) == 1
    assert said[0].startswith("Waiting for ")
    assert f"process {first.process.pid} on " in said[0]
    assert f"teacher-{stage.fingerprint}" in said[0]


def _need(root: Path, log: Path, gate: Barrier) -> None:
    """Need the stage at the same moment as the others do."""

    def build(folder: Path, costs: StageCosts) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(0.3)
        return {"pid": os.getpid()}

    gate.wait(30)
    stage = Store(root, notify=lambda message: None).get("teacher", {"lr": 0.1}, [], build)
    log.with_name(f"seen.{os.getpid()}").write_text(str(stage.metrics["pid"]))


@pytest.mark.parametrize("killed", [False, True])
def test_twenty_that_start_together(tmp_path: Path, killed: bool) -> None:
    """If the builder is killed, another one builds; no other process is disturbed."""
    log, gate = tmp_path / "builds", _FORK.Barrier(20)
    processes = [_FORK.Process(target=_need, args=(tmp_path / "store", log, gate)) for _ in range(20)]
    for process in processes:
        process.start()
    if killed:
        deadline = time.monotonic() + 60
        while not log.exists() or not log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(int(log.read_text().split()[0]), signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in processes) == ([-signal.SIGKILL] if killed else [0]) + [0] * 19
    builders = log.read_text().split()
    assert len(builders) == (2 if killed else 1)
    assert [path.read_text() for path in tmp_path.glob("seen.*")] == builders[-1:] * (19 if killed else 20)
    assert list((tmp_path / "store" / ".locks").iterdir()) == []


_CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.chmod"}


def _killed_before(change: int, root: Path, resume: Any, log: Path, value: int) -> int:
    """Need the stage in a process that ends before the given change of the store; return its exit status."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _CHANGES:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path = Path(str(arguments[0]))
        if path.is_absolute() and not path.is_relative_to(root):
            return
        count += 1
        if count == change:
            os._exit(9)

    def need() -> None:
        sys.addaudithook(watch)
        Store(root, resume, notify=lambda message: None).get("teacher", {"lr": 0.1}, [], _trains(log, value))
        os._exit(0)

    process = _FORK.Process(target=need)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def _trains(log: Path, value: int) -> Build:
    """Return a build that trains if it finds no checkpoint; it logs that it does."""

    def build(folder: Path, costs: StageCosts) -> dict[str, Any]:
        checkpoint = folder / "checkpoints" / "fit" / "resume.ckpt"
        if not checkpoint.exists():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(checkpoint, f"{value}")
            with log.open("a") as file:
                file.write("trained\n")
        atomic_write(folder / "network.bin", checkpoint.read_text())
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "logs" / "metrics.csv").write_text("epoch\n")
        return {"value": int(checkpoint.read_text())}

    return build


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_kill_before_any_change_of_the_store_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: Any
) -> None:
    """Under ``never`` the old stage stays until the new one is in its place."""
    for name in ("git_state", "versions"):  # they take longer than all the rest
        monkeypatch.setattr(store_module, name, dict)
    change, status = 0, 9
    while status == 9:
        change += 1
        root, log = tmp_path / str(change), tmp_path / f"log{change}"
        if resume == "never":
            Store(root, notify=print).get("teacher", {"lr": 0.1}, [], _trains(log, 1))
            log.unlink()
        status = _killed_before(change, root, resume, log, value=2)
        stage = Store(root, notify=pytest.fail).get("teacher", {"lr": 0.1}, [], _trains(log, 2))
        assert stage.found or resume == "auto", "neither the old stage nor the new one was there"
        assert not log.exists() or log.read_text() == "trained\n", "it was trained twice"
        assert (stage.folder / "network.bin").read_text() == f"{stage.metrics['value']}"
        assert sorted(stage.manifest["files"]) == ["logs/metrics.csv", "network.bin"]
        assert not list(root.glob(".*.old")) and not (stage.folder / "checkpoints").exists()
        assert Store(root, "require").get("teacher", {"lr": 0.1}, [], _trains(log, 3)).metrics == stage.metrics
    assert status == 0 and change > 15


def test_killed_builder_leaves_nothing_published_and_no_lock(tmp_path: Path) -> None:
    root, signals = tmp_path / "store", tmp_path / "signals"
    process = _Process(root, signals, seconds=60)
    process.wait_until_it_builds()
    said: list[str] = []
    Store(root, notify=said.append).get("other", {}, [], lambda folder, costs: {})
    assert said == [], "another stage was waited for"
    assert process.process.is_alive()
    process.process.kill()
    process.process.join(30)
    assert process.process.exitcode == -signal.SIGKILL
    assert _visible(root) == ["other-" + fingerprint("other", {}, [])]

    found: list[str] = []

    def build(folder: Path, costs: StageCosts) -> dict[str, Any]:
        found.extend(path.name for path in folder.iterdir())
        return {}

    start = time.monotonic()
    stage = Store(root, notify=said.append).get("teacher", {"lr": 0.1}, [], build)
    assert time.monotonic() - start < 5
    assert said == [], "a dead process was waited for"
    assert found == ["half.txt"], "the interrupted build was not found"
    assert stage.found is False
    assert stage.folder.name in _visible(root)
