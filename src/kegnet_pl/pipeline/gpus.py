"""One GPU per job of a sweep: Hydra's launchers run jobs in parallel, but do not assign GPUs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from kegnet_pl.pipeline import sweep
from kegnet_pl.settings import TrainerSettings

_POLL_SECONDS = 1.0


@contextmanager
def one_gpu(trainer: TrainerSettings, locks: Path | None = None) -> Iterator[int | None]:
    """Lock a GPU for this job within the context; wait if all are locked.

    This affects only jobs of a sweep on machines with several GPUs; Lightning chooses the GPU of other runs.

    Args:
        trainer: Settings of the trainer.
        locks: Folder of the lock files; None for one that all jobs on this machine share.

    Yields:
        Index of the GPU, None if Lightning chooses.
    """
    count = torch.cuda.device_count() if trainer.accelerator == "gpu" else 0
    if count < 2 or not sweep.in_sweep():
        yield None
        return
    folder = locks or Path(tempfile.gettempdir()) / "kegnet_pl_gpus"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # the folder of another user has this mode already
        folder.chmod(0o1777)  # shared by all users
    index, lock = _acquire(folder, count)
    try:
        yield index
    finally:
        lock.release()


def _acquire(folder: Path, count: int) -> tuple[int, FileLock]:
    start = sweep.job_number() % count  # jobs that start together try different GPUs first
    while True:
        for offset in range(count):
            index = (start + offset) % count
            identity = torch.cuda.get_device_properties(index).uuid  # does not depend on CUDA_VISIBLE_DEVICES
            lock = FileLock(folder / f"{identity}.lock", mode=0o666)
            try:
                # Only the last GPU of a round is worth waiting for: the others are locked.
                lock.acquire(timeout=0 if offset < count - 1 else _POLL_SECONDS)
            except Timeout:
                continue
            return index, lock
