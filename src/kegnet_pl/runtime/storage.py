"""Storage of large tensors: in memory within a budget, otherwise in unnamed temporary files."""

import gc
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kegnet_pl.runtime.errors import ConfigError

SHARE = 0.5
"""Share of the free memory that is the default budget."""

Layout = tuple[tuple[int, ...], torch.dtype, bool]
"""Shape of a row, type, and True for channels-last memory."""

Place = torch.device | Path
"""Where a tensor is stored: the device of the memory, or the folder of the file."""

log = logging.getLogger(__name__)


def layout_of(x: Tensor) -> Layout:
    """Return the shape of a row, the type, and True for channels-last memory."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return tuple(x.shape[1:]), x.dtype, last


def allocate(count: int, layout: Layout, place: Place) -> Tensor:
    """Return an uninitialised tensor of ``count`` rows, in memory or in a file.

    The file has no name. The system frees its space with the tensor, or at the end of the process, also if it is
    killed.

    Raises:
        OSError: If the disk is full.
    """
    (shape, dtype, last) = layout
    if isinstance(place, torch.device):
        form = torch.channels_last if last else torch.contiguous_format
        return torch.empty((count, *shape), dtype=dtype, device=place, memory_format=form)
    if last:
        shape = (*shape[1:], shape[0])
    size = count * math.prod(shape)
    with tempfile.TemporaryFile(dir=place) as file:
        # Reserved now: writing to a mapped file on a full disk would kill the process.
        os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        rows = torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=size, dtype=dtype)
    rows = rows.view(count, *shape)
    return rows.movedim(-1, 1) if last else rows


@dataclass(frozen=True)
class StorageLimits:
    """Storage limits of a set of samples: memory within a budget, otherwise a disk.

    Attributes:
        memory: Memory budget, in GB (10^9 bytes); None for half of the free memory.
        folder: Folder of the files; None for the folder of temporary files (the variable TMPDIR).
        processes: Number of processes on this machine. They share its memory and its disk, and each holds the set.
        notify: Called with a message if the set is not stored on the device that uses it.
    """

    memory: float | None = None
    folder: Path | None = None
    processes: int = 1
    notify: Callable[[str], object] = log.warning

    def budget(self, device: torch.device) -> float:
        """Return the memory that the set may take on a device, in bytes."""
        if self.memory is not None:
            return self.memory * 1e9
        return SHARE * free_memory(device) / (self.processes if device.type == "cpu" else 1)

    def find(self, size: int, device: torch.device, what: str) -> Place:
        """Choose where a set is stored: on the device that uses it, in the memory of the host, or on a disk.

        Args:
            size: Bytes of the set.
            device: The device that uses it.
            what: Name of the set in messages.

        Raises:
            ConfigError: If the disk has too little space, or nothing can be written to the folder.
        """
        host = torch.device("cpu")
        if size > self.budget(device):
            gc.collect()  # a finished trainer, which refers to itself, may hold an earlier set
        for place in dict.fromkeys((device, host)):
            if size <= self.budget(place):
                return place
        folder = Path(self.folder or tempfile.gettempdir())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(
                f"Expected a folder of temporary files that exists and can be written, for {what}, but got {folder}. "
                f"Set the variable TMPDIR to another folder, or raise the memory budget (`memory`, student.memory on "
                f"the command line, in GB)."
            )
        free = shutil.disk_usage(folder).free // self.processes
        if size > free:
            of_all = f" for each of {self.processes} processes" if self.processes > 1 else ""
            raise ConfigError(
                f"Expected {_gigabytes(size)} of memory or of disk space{of_all} for {what}, but the memory budget is "
                f"{_gigabytes(self.budget(host))}, and {folder} has {_gigabytes(free)}. Use fewer samples, raise the "
                f"budget (`memory`, student.memory on the command line, in GB), free disk space, or set the variable "
                f"TMPDIR to a folder of a larger disk."
            )
        return folder

    def report(self, place: Place, size: int, device: torch.device, what: str) -> None:
        """Report where a set is stored, its size and the reason; nothing if it is on the device that uses it."""
        if place == device:
            return
        where = "the memory of the host" if isinstance(place, torch.device) else f"a temporary file in {place}"
        self.notify(
            f"{what[:1].upper()}{what[1:]} is in {where}: {_gigabytes(size)}, above the memory budget of "
            f"{_gigabytes(self.budget(device))}. The results are the same."
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device, in bytes; for a CPU, within the limits of the cgroup of the process."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    return min(_free_on_host())


def _free_on_host() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):  # not Linux
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        own = Path("/sys/fs/cgroup") / next(line[4:] for line in groups if line.startswith("0::/"))
        yield from _free_in_groups([own, *own.parents])


def _free_in_groups(folders: Sequence[Path]) -> Iterator[int]:
    """Yield the free memory of each cgroup (version 2) that has a limit; its page cache counts as free."""
    for folder in folders:
        with suppress(OSError, ValueError, StopIteration):
            limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
            lines = (folder / "memory.stat").read_text().splitlines()
            yield limit - used + next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
