"""Loaders of tensors in memory and of noise."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.sources import sample_labels_and_noise

STEPS_PER_DRAW = 10
"""Steps whose noise is drawn at once. The noise of a seed depends on it."""


class TensorLoader(DataLoader[tuple[Tensor, ...]]):
    """A DataLoader of tensors that reads whole batches from them; batches are on the device of the tensors.

    Lightning passes the epoch to ``sampler``, so the order of an epoch depends on ``seed`` and the epoch alone, and a
    resumed fit sees the batches of an uninterrupted one. Processes share the rows: evenly in training, for which a few
    rows come twice; in evaluation every row comes once, so that no metric depends on the number of processes.

    Args:
        tensors: Each ``(N, ...)``.
        batch_size: Samples of one step, over all processes.
        trainer: The trainer whose processes share the rows; None without one.
        seed: Seed of the order.
        shuffle: True to shuffle every epoch.
        train: True for training: all steps have the same size, and all processes have the same number of steps. A last,
            smaller batch is skipped if there is another batch, since batch norm cannot normalise a batch of one.
        refresh: Takes an epoch, returns its tensors, of the same lengths; None for the same tensors in every epoch.

    Raises:
        ValueError: If lengths differ, there are no rows, or a batch cannot be shared evenly.
    """

    dataset: TensorDataset
    sampler: DistributedSampler[tuple[Tensor, ...]]
    batch_size: int

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        trainer: Trainer | None = None,
        seed: int = 0,
        shuffle: bool = False,
        train: bool = False,
        refresh: Callable[[int], tuple[Tensor, ...]] | None = None,
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"Expected tensors of one length above 0, but got {[len(tensor) for tensor in tensors]}.")
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        size = local_batch_size(batch_size, trainer)
        dataset = TensorDataset(*tensors)
        # Every process needs a row, as its first forward synchronises buffers; and the other does not know a seed.
        once = not train and not shuffle and len(dataset) >= world
        kind = UnrepeatedDistributedSampler if once else DistributedSampler
        order_seed = derive_seed(seed, "order") % 2**32  # the sampler adds the epoch to it
        sampler: DistributedSampler[tuple[Tensor, ...]] = kind(
            dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=order_seed
        )
        super().__init__(dataset, batch_size=size, sampler=sampler, drop_last=train and len(sampler) > size)
        self.refresh = refresh

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:  # type: ignore[override]
        if self.refresh is not None:
            self.dataset.tensors = ()  # frees the memory of the last epoch
            self.dataset.tensors = self.refresh(self.sampler.epoch)
        batches: Iterable[Tensor | slice]
        if self.sampler.shuffle or self.sampler.num_replicas > 1:
            batches = torch.tensor(list(self.sampler)).to(self.dataset.tensors[0].device).split(self.batch_size)
        else:  # views
            starts = range(0, len(self.dataset), self.batch_size)
            batches = (slice(start, start + self.batch_size) for start in starts)
        for rows in itertools.islice(batches, len(self)):
            yield tuple(tensor[rows] for tensor in self.dataset.tensors)


class NoiseLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader that draws noise and one-hot labels for every step, anew in each epoch.

    Lightning passes the epoch to ``sampler``; the noise of an epoch depends on its streams alone.

    Args:
        steps: Steps of an epoch.
        batch_size: Samples of one step and generator, in this process.
        noise_dim: Dimensions of the noise.
        classes: Number of classes.
        streams: Takes an epoch, returns the random generators of its noise, one for each of K networks.
        stacked: True for batches with a leading dimension of K; otherwise K must be 1.

    Shapes:
        Batches ``(z, y)`` of ``(B, Z)`` and ``(B, C)``; ``(K, B, Z)`` and ``(K, B, C)`` if stacked.
    """

    sampler: DistributedSampler[int]

    def __init__(
        self,
        steps: int,
        batch_size: int,
        noise_dim: int,
        classes: int,
        streams: Callable[[int], Sequence[torch.Generator]],
        stacked: bool = False,
    ) -> None:
        numbers: Sequence[int] = range(steps)
        # Each process has noise of its own: Lightning keeps a sampler of one process, and sets its epoch. (Lightning
        # warns about an IterableDataset with a length, which would need no sampler.)
        sampler = DistributedSampler(numbers, num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type, var-annotated]
        super().__init__(numbers, batch_size=None, sampler=sampler)  # type: ignore[arg-type]
        self.steps, self.samples, self.noise_dim, self.classes = steps, batch_size, noise_dim, classes
        self.streams, self.stacked = streams, stacked

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        streams = self.streams(self.sampler.epoch)
        for start in range(0, self.steps, STEPS_PER_DRAW):
            shape = (min(STEPS_PER_DRAW, self.steps - start), self.samples)
            drawn = [sample_labels_and_noise(shape[0] * shape[1], self.classes, self.noise_dim, s) for s in streams]
            z, y = (
                torch.stack([part.unflatten(0, shape) for part in parts], dim=1) for parts in zip(*drawn, strict=True)
            )
            yield from zip(z, y, strict=True) if self.stacked else zip(z[:, 0], y[:, 0], strict=True)


def local_batch_size(batch_size: int, trainer: Trainer | None) -> int:
    """Return the batch size of one process of a trainer; the whole batch size without a trainer.

    Raises:
        ValueError: If the batch cannot be shared evenly.
    """
    world = trainer.world_size if trainer is not None else 1
    if batch_size % world:
        raise ValueError(
            f"Expected `batch_size` to be a multiple of the {world} processes, but got {batch_size}. "
            f"Set it to {batch_size // world * world or world}, or change trainer.devices."
        )
    return batch_size // world
