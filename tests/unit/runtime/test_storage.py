"""Storage of large tensors: the place that the budget gives, files without a name, and what is said."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from kegnet_pl.runtime import storage
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.storage import StorageLimits, allocate, free_memory, layout_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("last", [False, True])
def test_a_file_holds_rows_in_the_layout_of_memory_and_has_no_name(tmp_path: Path, last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    given = torch.randn(6, 3, 4, 5).contiguous(memory_format=form)
    stored = allocate(6, layout_of(given), tmp_path)
    stored[:] = given
    assert torch.equal(stored, given) and stored.stride() == given.stride()
    maps = Path("/proc/self/maps").read_text()
    assert any(str(tmp_path) in line and "deleted" in line for line in maps.splitlines())
    assert not list(tmp_path.iterdir())
    del stored
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "its space is not freed"


def test_space_is_reserved_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        allocate(4, ((8,), torch.float32, False), tmp_path)


def test_the_budget_decides_the_place_and_the_message_names_it(tmp_path: Path) -> None:
    said: list[str] = []
    for memory, place in ((1e-6, CPU), (0.999e-6, tmp_path)):
        limits = StorageLimits(memory, tmp_path, notify=said.append)
        found = limits.find(1000, CPU, "the set")
        assert found == place
        limits.report(found, 1000, CPU, "the set")
    assert said == [
        f"The set is in a temporary file in {tmp_path}: 1e-06 GB, above the memory budget of 9.99e-07 GB. The results "
        f"are the same."
    ]


def test_half_of_the_free_memory_is_the_budget_and_processes_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_memory", lambda _: 3000)
    assert StorageLimits().find(1500, CPU, "the set") == CPU
    assert StorageLimits(processes=2).budget(CPU) == 750
    assert StorageLimits(2.0).budget(CPU) == 2e9


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=8 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert StorageLimits(0, tmp_path).find(8 * 10**9, CPU, "the set") == tmp_path
    with pytest.raises(ConfigError) as caught:
        StorageLimits(1.5, tmp_path, processes=2).find(8 * 10**9, CPU, "the set")
    assert str(caught.value) == (
        f"Expected 8 GB of memory or of disk space for each of 2 processes for the set, but the memory budget is "
        f"1.5 GB, and {tmp_path} has 4 GB. Use fewer samples, raise the budget (`memory`, student.memory on the "
        f"command line, in GB), free disk space, or set the variable TMPDIR to a folder of a larger disk."
    )


def test_a_folder_that_cannot_hold_a_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exists and can be written.*but got .*/missing\. Set the variable TMPDIR"):
        StorageLimits(0, tmp_path / "missing").find(1000, CPU, "the set")


def test_free_memory_is_that_of_the_machine_within_the_limit_of_its_group(tmp_path: Path) -> None:
    assert 10**8 < free_memory(CPU) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = {"memory.max": "5000", "memory.current": "3000", "memory.stat": "anon 2000\ninactive_file 700"}
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "memory.max").write_text("max\n")
    assert list(storage._free_in_groups([tmp_path / "own", tmp_path])) == [2700]
