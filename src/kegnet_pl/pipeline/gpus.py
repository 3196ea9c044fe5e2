"""One GPU for each job of a sweep: Hydra's launchers start jobs side by side, and know nothing of GPUs."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from kegnet_pl.pipeline import sweep

_POLL_SECONDS = 1.0


@contextmanager
def one_gpu(config: Mapping[str, Any], locks: Path | None = None) -> Iterator[int | None]:
    """Keep a GPU to oneself for as long as the context lasts; wait for one where all are taken.

    Only jobs of a sweep do, on machines with several GPUs: everybody else takes what Lightning gives.

    Args:
        config: A resolved and checked configuration.
        locks: Folder of the lock files; None for one that all jobs on this machine share.

    Yields:
        Number of the GPU, None where there is nothing to choose.
    """
    count = torch.cuda.device_count() if config["trainer"]["accelerator"] in ("gpu", "cuda") else 0
    if count < 2 or not sweep.in_sweep():
        yield None
        return
    folder = locks or Path(tempfile.gettempdir()) / "kegnet_pl_gpus"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # of another user, who has done it
        folder.chmod(0o1777)  # locks of all users lie there
    index, lock = _take(folder, count)
    try:
        yield index
    finally:
        lock.release()


def _take(folder: Path, count: int) -> tuple[int, FileLock]:
    start = sweep.job_number() % count  # so that jobs that start together try different ones first
    while True:
        for place in range(count):
            index = (start + place) % count
            lock = FileLock(folder / f"{_identity(index)}.lock", mode=0o666)
            try:
                # Only while all are taken does anybody wait, and then a little at each.
                lock.acquire(timeout=0 if place < count - 1 else _POLL_SECONDS)
            except Timeout:
                continue
            return index, lock


def _identity(index: int) -> str:
    """Name a GPU as every process on this machine does, whatever CUDA_VISIBLE_DEVICES says."""
    return str(torch.cuda.get_device_properties(index).uuid)
