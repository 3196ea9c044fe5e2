"""Random batches for the loss terms."""

import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses import GeneratedBatch


def random_batch(
    count: int = 7, classes: int = 4, noise_dim: int = 5, shape: tuple[int, ...] = (2, 3, 3), seed: int = 0
) -> GeneratedBatch:
    """A batch in float64, with one-hot labels."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=chance, dtype=torch.float64)

    y = functional.one_hot(torch.randint(classes, (count,), generator=chance), classes).double()
    return GeneratedBatch(
        z=normal(count, noise_dim),
        y=y,
        x=normal(count, *shape),
        logits=3 * normal(count, classes),
        z_decoded=normal(count, noise_dim),
    )


def permuted(batch: GeneratedBatch, order: Tensor) -> GeneratedBatch:
    """The same batch in another order."""
    assert batch.z_decoded is not None
    return GeneratedBatch(batch.z[order], batch.y[order], batch.x[order], batch.logits[order], batch.z_decoded[order])
