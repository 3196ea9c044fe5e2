"""Memory of the process: reuse of freed blocks, and peak memory."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``, from malloc.h."""
_LARGEST_KEPT = 32 << 20
"""The largest value that glibc accepts for ``M_MMAP_THRESHOLD``, in bytes."""


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for new ones if the C library is glibc; otherwise do nothing.

    By default glibc returns large blocks to the system at every ``free``, and the next allocation gets new, zeroed
    pages. This affects every activation of every step; ``benchmarks/bench.py`` measures the cost. Call the function
    before training on a CPU; it affects the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def reset_peak_memory() -> None:
    """Reset the peak memory of this process (on Linux) and of its GPU."""
    with contextlib.suppress(OSError):  # without a reset, the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process and of its GPU (0 if it uses none), in megabytes."""
    # ru_maxrss is in bytes on macOS, in kilobytes elsewhere.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        host = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    return {"host_mb": round(host, 1), "device_mb": round(device, 1)}
