"""Finished stages on disk, seen from several processes."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from kegnet_pl.pipeline.store import Store, fingerprint
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


def test_four_that_start_together(tmp_path: Path) -> None:
    log, gate = tmp_path / "builds", _FORK.Barrier(4)
    processes = [_FORK.Process(target=_need, args=(tmp_path / "store", log, gate)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    builders = log.read_text().split()
    assert len(builders) == 1
    assert [path.read_text() for path in tmp_path.glob("seen.*")] == builders * 4


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
