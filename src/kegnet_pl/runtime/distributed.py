"""Several processes that do the same: which one this is, and what rank 0 tells the others."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

_DECISIONS = "KEGNET_STAGES"
"""Environment variable by which the main process tells the processes it starts what it found in the store."""


def rank() -> int:
    """Return the rank of this process, 0 for the one that writes and speaks."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def distributed() -> bool:
    """Whether the processes are connected by now."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if distributed():
        torch.distributed.barrier()


def decide(mark: str, hit: bool) -> None:
    """Rank 0 tells the other ranks, running or yet to be started, whether a stage is there."""
    if distributed():
        torch.distributed.broadcast_object_list([hit], src=0)
    else:
        known = json.loads(os.environ.get(_DECISIONS, "{}"))
        os.environ[_DECISIONS] = json.dumps(known | {mark: hit})


def decided(mark: str, final: Path) -> bool:
    """Other ranks ask what rank 0 found."""
    known = json.loads(os.environ.get(_DECISIONS, "{}"))
    if mark in known:
        return bool(known[mark])
    if distributed():
        answer: list[Any] = [None]
        torch.distributed.broadcast_object_list(answer, src=0)
        return bool(answer[0])
    return final.is_dir()
