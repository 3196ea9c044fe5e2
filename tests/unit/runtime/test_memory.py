"""Memory: peaks, and what freed blocks cost."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kegnet_pl.runtime import memory
from kegnet_pl.runtime.memory import peak_memory, reset_peak_memory

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


def test_peak_memory_is_in_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 50 < peak_memory()["host_mb"] < 1_000_000
    assert peak_memory()["device_mb"] >= 0
    # Where there is no /proc; Linux counts in kibibytes.
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere"))
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**20))
    assert peak_memory()["host_mb"] == 3072
    monkeypatch.setattr(sys, "platform", "darwin")  # macOS counts in bytes
    assert peak_memory()["host_mb"] == 3


@LINUX
def test_peaks_are_counted_from_a_moment_on() -> None:
    block = bytearray(200 << 20)
    with_block = peak_memory()["host_mb"]
    del block
    reset_peak_memory()
    assert peak_memory()["host_mb"] < with_block - 150


@LINUX
def test_freed_memory_is_kept() -> None:
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
