"""Batches of tensors that are already in memory."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DistributedSampler

from kegnet_pl.runtime.seeds import derive_seed

STEPS_PER_BATCH = 10
"""Optimiser steps of one Lightning batch: enough to make Lightning's work a batch small, few enough to see progress."""


class TensorLoader:
    """Iterates over batches of tensors, with no worker and no call a row; batches are on the tensors' own device.

    Lightning tells ``sampler`` the epoch, so the order of an epoch depends on ``seed`` and the epoch alone, and a
    resumed run sees what an unbroken one would have seen. Processes share the rows out: evenly in training, for which
    a few rows come twice; in evaluation every row comes once, so that no figure depends on the number of processes.

    Args:
        tensors: Each ``(N, ...)``.
        batch_size: Samples of one step, over all processes.
        trainer: Knows how many processes share the rows; None outside of one.
        seed: Seed of the order.
        shuffle: Whether to shuffle every epoch.
        train: Whether steps must be of one size, and as many in every process: the last, smaller batch is left out if
            there is another, as batch norm cannot normalise a batch of one.
        steps: Batches handed out at a time, as a list; None hands out one by one, not in a list.
        refresh: Returns the tensors of an epoch, of the same lengths; None: they are the same in every epoch.

    Raises:
        ValueError: If lengths differ, there are no rows, or a batch cannot be shared out evenly.
    """

    batch_sampler = None  # Lightning looks for one where it finds a sampler

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        trainer: Trainer | None = None,
        seed: int = 0,
        shuffle: bool = False,
        train: bool = False,
        steps: int | None = None,
        refresh: Callable[[int], tuple[Tensor, ...]] | None = None,
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"Expected tensors of one length above 0, but got {[len(tensor) for tensor in tensors]}.")
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        self.tensors = tensors
        self.batch_size = local_batch_size(batch_size, trainer)
        # Every process needs a row, as its first forward synchronises buffers; and the other does not know a seed.
        once = not train and not shuffle and len(tensors[0]) >= world
        self.sampler: DistributedSampler[Tensor] = (UnrepeatedDistributedSampler if once else DistributedSampler)(
            tensors[0],  # type: ignore[arg-type]  # the sampler asks for its length alone
            num_replicas=world,
            rank=rank,
            shuffle=shuffle,
            seed=derive_seed(seed, "order") % 2**32,  # the sampler adds the epoch to it
        )
        self.drop_last = train and len(self.sampler) > self.batch_size
        self.steps = steps
        self.refresh = refresh

    @property
    def _batches(self) -> int:
        count = len(self.sampler)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __len__(self) -> int:
        return -(-self._batches // (self.steps or 1))

    def __iter__(self) -> Iterator[Any]:
        if self.refresh is not None:
            self.tensors = ()  # make room
            self.tensors = self.refresh(self.sampler.epoch)
        if self.sampler.shuffle or self.sampler.num_replicas > 1:
            order = torch.tensor(list(self.sampler)).to(self.tensors[0].device)
            batches: Iterator[tuple[Tensor, ...]] = (
                tuple(tensor[rows] for tensor in self.tensors) for rows in order.split(self.batch_size)[: self._batches]
            )
        else:  # nothing to copy
            batches = itertools.islice(
                zip(*(tensor.split(self.batch_size) for tensor in self.tensors), strict=True), self._batches
            )
        if self.steps is None:
            yield from batches
        else:
            while several := list(itertools.islice(batches, self.steps)):
                yield several


def local_batch_size(batch_size: int, trainer: Trainer | None) -> int:
    """Return the share of a batch that one process sees.

    Args:
        batch_size: Samples of one optimiser step, over all processes.
        trainer: The trainer, None outside of one.

    Raises:
        ValueError: If the batch cannot be shared out evenly.
    """
    world = trainer.world_size if trainer is not None else 1
    if batch_size % world:
        raise ValueError(
            f"Expected `batch_size` to be a multiple of the {world} processes, but got {batch_size}. "
            f"Set it to {batch_size // world * world or world}, or change trainer.devices."
        )
    return batch_size // world
