"""Distributed processes: rank, shares of work, exchange, and the decisions that rank 0 shares with the other ranks."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from kegnet_pl.runtime.progress import report_progress
from kegnet_pl.runtime.storage import allocate, layout_of

T = TypeVar("T")

_DECISIONS = "KEGNET_STAGES"
"""Environment variable that passes the stage being built from the main process to the processes that it starts."""

_PATIENCE = timedelta(days=30)
"""Maximum time that a process waits for the others, which may train other networks or wait for rank 0."""

_group: Any = None
"""The group of the run's processes for messages; Lightning's group transfers gradients, and waits half an hour."""

_sharing: ContextVar[bool] = ContextVar("sharing", default=False)


def rank() -> int:
    """Return the rank of this process; rank 0 writes files and messages."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def distributed() -> bool:
    """Return True if the processes of the run have met; see :func:`meet`."""
    return _group is not None


def place() -> tuple[int, int]:
    """Return the rank of this process among the processes of the run that have met, and their number."""
    return (torch.distributed.get_rank(_group), torch.distributed.get_world_size(_group)) if distributed() else (0, 1)


def meet() -> None:
    """Form a group for messages. Every process of torch's process group must call this function once."""
    global _group
    _group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def barrier() -> None:
    """Wait for the other processes of the run, if there are others."""
    if distributed():
        torch.distributed.barrier(_group)


def exchange(value: T) -> list[T]:
    """Return the values of all processes, by rank; each process calls it with its own."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * place()[1]
    torch.distributed.all_gather_object(values, value, group=_group)
    return values


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one process after another, by rank, run the context."""
    number, count = place()
    for _ in range(number):
        barrier()
    try:
        yield
    finally:
        for _ in range(number, count - 1):
            barrier()


@contextmanager
def apart() -> Iterator[None]:
    """Make this process rank 0 within the context, in which each process trains its own networks."""
    before = rank()
    vars(rank_zero_only)["rank"] = 0
    try:
        yield
    finally:
        vars(rank_zero_only)["rank"] = before


def shares(count: int, processes: int) -> list[range]:
    """Return the indices below ``count`` for each process: contiguous ranges whose lengths differ by at most one."""
    least, more = divmod(count, processes)
    ends = accumulate((least + (number < more) for number in range(processes)), initial=0)
    return [range(start, end) for start, end in pairwise(ends)]


@contextmanager
def work_shared(enabled: bool = True) -> Iterator[None]:
    """Let :func:`concatenate` share its work among the processes within the context, which all processes enter."""
    token = _sharing.set(enabled)
    try:
        yield
    finally:
        _sharing.reset(token)


def concatenate(
    compute: Callable[[int], Tensor], lengths: Sequence[int], device: torch.device, *, report: bool = False
) -> Tensor:
    """Return ``compute(0)``, ``compute(1)``, ... as one tensor on a device.

    Within :func:`work_shared`, each process computes its share and receives the other shares. The result is the same,
    bit for bit. Parts are written into the result one by one, so memory for a second copy is not needed.

    Args:
        compute: Takes the index of a part, returns its rows ``(length, ...)``.
        lengths: Number of rows of each part.
        device: Device of the parts.
        report: True to report the progress of this process (:func:`report_progress`).
    """
    number, count = place() if _sharing.get() else (0, 1)
    own = shares(len(lengths), count)
    ends = [0, *accumulate(lengths)]
    result: Tensor | None = None
    for index in own[number]:
        part = compute(index)
        if result is None:
            result = allocate(ends[-1], layout_of(part), device)
        result[ends[index] : ends[index + 1]] = part
        del part
        if report:
            report_progress((index + 1 - own[number].start) / len(own[number]))
    if count == 1:
        return torch.empty(0, device=device) if result is None else result
    layouts = exchange(None if result is None else layout_of(result))
    layout = next(found for found in layouts if found is not None)
    if result is None:
        result = allocate(ends[-1], layout, device)
    group = _group if device.type == "cpu" else None  # a GPU's tensors go from GPU to GPU
    for source, indices in enumerate(own):
        if indices:
            rows = result[ends[indices.start] : ends[indices.stop]]
            torch.distributed.broadcast(rows.movedim(1, -1) if layout[2] else rows, source, group=group)
    return result


def share_decision(key: str, hit: bool) -> None:
    """Tell other ranks, running or started later, if the stage with a fingerprint is finished; called on rank 0.

    Ranks that start later find finished stages in the store, so the variable names only the stage being built.
    """
    if distributed():
        torch.distributed.broadcast_object_list([hit], src=0, group=_group)
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
        torch.distributed.broadcast_object_list(values, src=0, group=_group)
        return bool(values[0])
    return final.is_dir()
