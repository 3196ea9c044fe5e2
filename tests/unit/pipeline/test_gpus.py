"""A GPU for each job of a sweep: the locks, with made-up GPUs."""

import multiprocessing
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kegnet_pl.pipeline import context, gpus, sweep
from kegnet_pl.pipeline.context import find_run_device
from kegnet_pl.settings import RunSettings, TrainerSettings
from tests.integration.conftest import configure

GPU = TrainerSettings(accelerator="gpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"uuid-{index}"))
    monkeypatch.setattr(sweep, "in_sweep", lambda: True)
    monkeypatch.setattr(sweep, "job_number", lambda: 1)
    monkeypatch.setattr(gpus, "_POLL_SECONDS", 0.05)


def test_each_job_has_its_own_and_the_next_waits(two_gpus: None, tmp_path: Path) -> None:
    third: list[int | None] = []

    def wait() -> None:
        with gpus.one_gpu(GPU, tmp_path) as index:
            third.append(index)

    with gpus.one_gpu(GPU, tmp_path) as first:
        with gpus.one_gpu(GPU, tmp_path) as second:
            assert (first, second) == (1, 0), "job 1 tries GPU 1 first"
            waiting = threading.Thread(target=wait)
            waiting.start()
            time.sleep(0.3)
            assert third == []
        waiting.join(timeout=5)
        assert third == [0], "the one that became free"


def test_jobs_in_processes_of_their_own_have_one_each(two_gpus: None, tmp_path: Path) -> None:
    """As the launchers joblib and submitit_local start them."""
    fork = multiprocessing.get_context("fork")
    together, found = fork.Barrier(2), fork.SimpleQueue()

    def run_job() -> None:
        with gpus.one_gpu(GPU, tmp_path) as index:
            together.wait(timeout=10)
            found.put(index)

    jobs = [fork.Process(target=run_job) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=20)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert sorted(found.get() for _ in jobs) == [0, 1]


def test_nothing_is_chosen_without_a_sweep_or_on_a_cpu(
    two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpus.one_gpu(TrainerSettings(), tmp_path) as index:
        assert index is None
    monkeypatch.setattr(sweep, "in_sweep", lambda: False)
    with gpus.one_gpu(GPU, tmp_path) as index:
        assert index is None
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_free_again_after_a_failure(two_gpus: None, tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mine"), gpus.one_gpu(GPU, tmp_path) as index:
            raise RuntimeError("mine")
        assert index == 1


def test_drawing_and_evaluation_use_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_run_device(GPU, 1) == torch.device("cuda", 1)
    assert find_run_device(GPU, None) == torch.device("cuda", 0)


def test_the_gpu_of_a_job_is_the_current_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(context, "find_run_device", lambda _, gpu: torch.device("cuda", gpu))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    config = configure("data=none", "data.input_shape=[4]", "data.classes=2", "teacher=mlp", "teacher.weights=w",
                       "generator=dense", "trainer=gpu", f"store={tmp_path}")  # fmt: skip
    opened = context.open_context(RunSettings.from_config(config), config, tmp_path, gpu=1)
    assert chosen == [opened.device] == [torch.device("cuda", 1)]


def test_locks_are_for_all_users(two_gpus: None, tmp_path: Path) -> None:
    with gpus.one_gpu(GPU, tmp_path / "locks"):
        assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o1777
