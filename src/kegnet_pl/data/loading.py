"""Batches of tensors that are already in memory."""

from collections.abc import Iterator

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler


class TensorLoader:
    """Iterates over batches of tensors, one gather a tensor and batch, with no worker and no call a row.

    Lightning tells ``sampler`` the epoch, so the order of an epoch depends on ``seed`` and the epoch alone, and a
    resumed run sees what an unbroken one would have seen.

    Args:
        tensors: Each ``(N, ...)``.
        batch_size: Samples of one step, over all processes.
        trainer: Knows how many processes share the rows; None outside of one.
        seed: Seed of the order.
        shuffle: Whether to shuffle every epoch.
        train: Whether steps must be of one size: the last, smaller batch is left out if there is another, as batch
            norm cannot normalise a batch of one.

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
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"Expected tensors of one length above 0, but got {[len(tensor) for tensor in tensors]}.")
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        self.tensors = tensors
        self.batch_size = local_batch_size(batch_size, trainer)
        self.sampler: DistributedSampler[Tensor] = DistributedSampler(
            tensors[0],  # type: ignore[arg-type]  # the sampler asks for its length alone
            num_replicas=world,
            rank=rank,
            shuffle=shuffle,
            seed=seed % 2**32,
        )
        self.drop_last = train and len(self.sampler) > self.batch_size

    def __len__(self) -> int:
        count = len(self.sampler)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.tensor(list(self.sampler))
        for rows in order.split(self.batch_size)[: len(self)]:
            yield tuple(tensor[rows] for tensor in self.tensors)


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
            f"Expected `batch_size` to be a multiple of the {world} processes (devices x nodes), but got {batch_size}. "
            f"Set it to {batch_size // world * world or world}, or change trainer.devices."
        )
    return batch_size // world
