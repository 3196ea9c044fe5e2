"""Distributed processes: rank, barrier, and the decisions that rank 0 shares with the other ranks."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

_DECISIONS = "KEGNET_STAGES"
"""Environment variable that passes the stage being built from the main process to the processes that it starts."""


def rank() -> int:
    """Return the rank of this process; rank 0 writes files and messages."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def distributed() -> bool:
    """Return True if the process group is initialised."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for the other processes of the group, if there is one."""
    if distributed():
        torch.distributed.barrier()


def share_decision(key: str, hit: bool) -> None:
    """Tell other ranks, running or started later, if the stage with a fingerprint is finished; called on rank 0.

    Ranks that start later find finished stages in the store, so the variable names only the stage being built.
    """
    if distributed():
        torch.distributed.broadcast_object_list([hit], src=0)
    elif hit:
        os.environ.pop(_DECISIONS, None)
    else:
        os.environ[_DECISIONS] = json.dumps({key: False})


def shared_decision(key: str, final: Path) -> bool:
    """Return, on another rank, the decision that rank 0 shared.

    If nothing was shared, the stage is finished if its folder ``final`` exists.
    """
    decisions = json.loads(os.environ.get(_DECISIONS, "{}"))
    if key in decisions:
        return bool(decisions[key])
    if distributed():
        values: list[Any] = [None]
        torch.distributed.broadcast_object_list(values, src=0)
        return bool(values[0])
    return final.is_dir()
