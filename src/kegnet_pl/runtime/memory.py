"""Freed memory stays with the process; peaks are counted from a moment on."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``, from malloc.h."""
_LARGEST_KEPT = 32 << 20
"""The most that glibc accepts for the second one."""


def keep_freed_memory() -> None:
    """Keep freed tensors' memory for the next ones, where the C library is glibc; else do nothing.

    By default glibc gives large blocks back to the system at every ``free`` and takes new ones, zeroed page by page,
    a moment later: every activation of every step. ``benchmarks/bench.py`` measures what that costs. Call it before
    training on a CPU; it holds for the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def forget_peak_memory() -> None:
    """Count peaks from now on, on the host where the system can (Linux), and on the GPU of this process."""
    with contextlib.suppress(OSError):  # then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process, and of its GPU (0 where it uses none), in megabytes."""
    # In bytes on macOS, in kilobytes elsewhere.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        host = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    return {"host_mb": round(host, 1), "device_mb": round(device, 1)}
