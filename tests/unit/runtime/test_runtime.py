"""Devices, seeds, costs and memory of a run."""

import errno
import itertools
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kegnet_pl.runtime import memory
from kegnet_pl.runtime.costs import KINDS, StageCosts, add_up
from kegnet_pl.runtime.devices import find_device
from kegnet_pl.runtime.errors import SettingsMismatchError, explain_full, explain_lost, override
from kegnet_pl.runtime.memory import peak_memory, reset_peak_memory
from kegnet_pl.runtime.seeds import derive_seed, stream


def test_devices_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert find_device("auto").type == kind


def test_devices_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="got 'cuda:2', and torch sees 2 GPUs"):
        find_device("cuda:2")


def test_seeds_seed_never_changes_from_version_to_version() -> None:
    # Published results depend on these numbers.
    assert derive_seed(0, "noise", 1, 2, 3) == 6_885_912_901_873_135_352
    assert derive_seed(7, "split") == 3_743_210_755_246_259_482


def test_seeds_seeds_differ_by_every_argument() -> None:
    arguments = [
        (seed, purpose, *indices)
        for seed in (0, 1, 11)
        for purpose in ("noise", "dropout", "flip")
        for length in range(4)
        for indices in itertools.product(range(3), repeat=length)
    ]
    assert len({derive_seed(*each) for each in arguments}) == len(arguments)
    # Neighbouring arguments do not run into each other.
    assert derive_seed(1, "noise", 1, 12) != derive_seed(1, "noise", 11, 2)
    assert derive_seed(0, "noise") != derive_seed(0, "noise", 0)


def test_seeds_seeds_fit_a_generator() -> None:
    for seed in range(200):
        assert 0 <= derive_seed(seed, "noise") < 2**63


def test_seeds_streams_are_repeatable_and_apart_from_the_global_one() -> None:
    first = torch.rand(8, generator=stream(0, "noise", 1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(torch.rand(8, generator=stream(0, "noise", 1)), first)
    assert torch.equal(torch.get_rng_state(), before), "the global stream was moved"


@pytest.mark.parametrize("other", [(1, "noise", 1), (0, "dropout", 1), (0, "noise", 2), (0, "noise")])
def test_seeds_streams_of_other_purposes_are_independent(other: tuple[int, str, int]) -> None:
    first = torch.randn(10_000, generator=stream(0, "noise", 1))
    second = torch.randn(10_000, generator=stream(*other))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.04


def test_costs_measures_work_that_fails() -> None:
    costs = StageCosts()
    with pytest.raises(KeyboardInterrupt), costs.measure("drawing"):
        time.sleep(0.02)
        raise KeyboardInterrupt
    assert 0.02 <= costs.seconds["drawing"] < 1
    assert all(costs.seconds[work] == 0 for work in KINDS if work != "drawing")


def test_costs_an_interrupted_attempt_leaves_its_costs(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    costs = StageCosts.load(file)
    costs.keep()
    assert not file.exists(), "there is no file yet"
    with pytest.raises(KeyboardInterrupt), costs.recorded(file):
        costs.seconds["labelling"], costs.samples_made, costs.teacher_forwards = 1.5, 10, 20
        time.sleep(0.02)
        costs.keep()
        killed = StageCosts.load(file)
        assert killed == costs
        assert 0.02 <= killed.total < 1
        costs.seconds["drawing"] = 0.5
        time.sleep(0.02)
        raise KeyboardInterrupt
    stopped = StageCosts.load(file)
    assert stopped == costs != killed
    assert killed.total + 0.02 <= stopped.total < 1
    with stopped.recorded(file):
        time.sleep(0.02)
    assert StageCosts.load(file).total >= costs.total + 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


@pytest.mark.parametrize("at_end", [True, False])
def test_costs_files_of_a_finished_fit_are_recorded_even_if_the_last_look_was_a_moment_ago(
    tmp_path: Path, at_end: bool
) -> None:
    said: list[str] = []
    with StageCosts().recorded(tmp_path / "costs.json"):
        costs = StageCosts()
        costs._file, costs._next_look = tmp_path / "costs.json", math.inf
        (tmp_path / "sheets").mkdir()
        (tmp_path / "sheets" / "epoch_0003.png").write_bytes(b"picture")
        costs.keep(files=at_end)
        (tmp_path / "sheets" / "epoch_0003.png").unlink()
        StageCosts.load(tmp_path / "costs.json", said.append)
    assert ["is missing" in line for line in said] == [True] * at_end


@pytest.mark.parametrize("damage", ["flip", "delete", "grow", "torn", "columns"])
@pytest.mark.parametrize("name", ["logs/generators/version_0/metrics.csv", "sheets/generator_0/epoch_0001.png"])
def test_costs_curves_and_pictures_that_were_damaged_since_are_set_aside(
    tmp_path: Path, name: str, damage: str
) -> None:
    """Files grow after the record, and a logger adds columns to all rows of its table."""
    table, picture = tmp_path / "logs/generators/version_0/metrics.csv", tmp_path / "sheets/generator_0/epoch_0001.png"
    for path in (table, picture):
        path.parent.mkdir(parents=True)
    table.write_text("epoch,step\n0,1\n0,2\n")
    picture.write_bytes(bytes(100))
    (tmp_path / "checkpoints").mkdir()
    with StageCosts().recorded(tmp_path / "costs.json"):
        pass
    path = tmp_path / name
    if damage == "columns":
        table.write_text("epoch,loss,step\n0,,1\n0,,2\n1,0.5,3\n")
    else:
        content = path.read_bytes()
        flipped = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
        more = {"grow": b"1,3\n", "torn": b"1,\xe1"}.get(damage, b"")
        path.write_bytes(flipped if damage == "flip" else content + more)
        path.unlink() if damage == "delete" else None
    said: list[str] = []
    costs = StageCosts.load(tmp_path / "costs.json", said.append)
    assert costs.total > 0
    if damage == "columns" or (path == table and damage in ("grow", "torn")):
        assert said == [] and path.exists() and b"\xe1" not in path.read_bytes()
    else:
        (message,) = said
        assert message.startswith(f"Warning: {name} of the interrupted stage") and not path.exists()
        assert (tmp_path / "checkpoints" / "damaged" / name).exists() is (damage != "delete")


def test_files_of_other_processes_are_not_in_the_record(tmp_path: Path) -> None:
    """They may be written at this moment."""
    for index in range(2):
        path = tmp_path / f"sheets/generator_{index}/epoch_0001.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
    costs = StageCosts()
    costs.leave_to_others(["generator_1"])
    with costs.recorded(tmp_path / "costs.json"):
        pass
    for path in tmp_path.glob("sheets/*/*"):
        path.write_bytes(bytes(50))
    said: list[str] = []
    StageCosts.load(tmp_path / "costs.json", said.append)
    assert len(said) == 1 and "sheets/generator_0/epoch_0001.png" in said[0]


def test_costs_that_were_damaged_are_zero(tmp_path: Path) -> None:
    file, said = tmp_path / "costs.json", []
    with StageCosts().recorded(file):
        pass
    whole = file.read_text()
    for content in (whole.replace("0.0", "1.0", 1), whole[:-9], "", "[]", "\x00", "{}", '{"total": 1, "x": 2}'):
        file.write_text(content)
        assert StageCosts.load(file, said.append).total == 0
    assert len(said) == 6 and all("costs of earlier attempts are lost" in message for message in said)


@pytest.mark.parametrize("name", [[], ["/run/report.html"]])
def test_a_full_disk_that_is_not_the_stores_is_explained(name: list[str]) -> None:
    error = explain_full(OSError(errno.ENOSPC, "No space left on device", *name))
    assert error is not None
    assert f"write to {name[0] if name else 'standard output'}" in str(error) and "TMPDIR" in str(error)
    assert explain_full(PermissionError(errno.EACCES, "Permission denied")) is None


def test_a_process_that_is_gone_is_explained_to_the_others() -> None:
    error = explain_lost(RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:31"))
    assert error is not None and "one of them has stopped" in str(error)
    assert explain_lost(RuntimeError("CUDA error")) is None


def test_costs_what_no_kind_of_work_explains_is_other() -> None:
    costs = StageCosts(total=5.0, samples_made=3, teacher_forwards=4)
    costs.seconds["student_training"] = 3.0
    found = costs.to_dict()
    assert set(found["seconds"]) == {*KINDS, "other"}
    assert (found["seconds"]["student_training"], found["seconds"]["other"]) == (3.0, 2.0)
    assert (found["samples_made"], found["teacher_forwards"]) == (3, 4)


def test_costs_stages_add_up_and_the_highest_peak_counts() -> None:
    manifests = []
    for number in (1, 2):
        costs = StageCosts(total=number * 1.0, samples_made=number, teacher_forwards=10 * number)
        costs.seconds["evaluation"] = 0.5 * number
        manifests.append({"costs": costs.to_dict(), "peak_memory": {"host_mb": 100.0 / number, "device_mb": number}})
    found = add_up(manifests)
    assert (found["seconds"]["evaluation"], found["seconds"]["other"], found["samples_made"]) == (1.5, 1.5, 3)
    assert found["teacher_forwards"] == 30
    assert found["peak_memory"] == {"host_mb": 100.0, "device_mb": 2}


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


def test_memory_peak_memory_is_in_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 50 < peak_memory()["host_mb"] < 1_000_000
    assert peak_memory()["device_mb"] >= 0
    # Where there is no /proc; Linux counts in kibibytes.
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere"))
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**20))
    assert peak_memory()["host_mb"] == 3072
    monkeypatch.setattr(sys, "platform", "darwin")  # macOS counts in bytes
    assert peak_memory()["host_mb"] == 3


@LINUX
def test_memory_peaks_are_counted_from_a_moment_on() -> None:
    block = bytearray(200 << 20)
    with_block = peak_memory()["host_mb"]
    del block
    reset_peak_memory()
    assert peak_memory()["host_mb"] < with_block - 150


@LINUX
def test_memory_freed_memory_is_kept() -> None:
    """A loop of large tensors touches new pages in every round without it, and hardly any with it."""
    program = (
        "import resource, sys, torch; from kegnet_pl.runtime.memory import keep_freed_memory\n"
        "torch.set_num_threads(1)\n"
        "if sys.argv[1] == 'kept': keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def work(): return [torch.ones(5_000_000) for _ in range(8)]\n"  # 20 MB each
        "for _ in range(3): work()\n"
        "before = faults()\n"
        "for _ in range(5): work()\n"
        "print(faults() - before)\n"
    )

    def faults(how: str) -> int:
        # With its thresholds set, glibc does not adapt them to what it sees, as it otherwise may or may not.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        command = [sys.executable, "-c", program, how]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("given back") > 100_000
    assert faults("kept") < 10_000


def test_overrides_are_those_of_hydra_and_quoted_for_a_shell() -> None:
    assert override("data.input_shape", torch.Size([3, 32, 32])) == "'data.input_shape=[3,32,32]'"
    assert override("sources", [{"kegnet": 0.5}, "real"]) == "'sources=[{kegnet:0.5},real]'"
    error = SettingsMismatchError("Expected less.", {"layers": None, "norm": "batch", "reconstruct": False})
    assert error.for_command_line("student") == (
        "Expected less. Set student.layers=null student.norm=batch student.reconstruct=false."
    )
