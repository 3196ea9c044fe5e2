"""What the three modules have in common."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from kegnet_pl.seeds import derive_seed

OptimizerFactory = Callable[[Iterator[nn.Parameter] | list[nn.Parameter]], torch.optim.Optimizer]
"""Takes parameters, returns an optimiser: ``functools.partial(torch.optim.Adam, lr=1e-3)``."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share, in [0, 1], of rows of logits ``(B, C)`` whose largest one is at the label ``(B,)``."""
    return (logits.argmax(dim=1) == labels).float().mean()


class SeededModule(LightningModule):
    """A module whose epochs draw from streams of their own, so that a resumed run equals an unbroken one.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_train_epoch_start(self) -> None:
        """Seed what draws from torch's global stream (dropout) by the epoch and the rank."""
        torch.manual_seed(derive_seed(self.seed, "dropout", self.global_rank, self.current_epoch))

    def log_epoch(self, metrics: dict[str, Tensor], batch_size: int) -> None:
        """Log means over an epoch and over all processes."""
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=self._distributed)

    @property
    def _distributed(self) -> bool:
        return self.trainer.world_size > 1


def frozen_keys_left_out(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return a state dict without the entries of a frozen submodule."""
    return {key: value for key, value in state.items() if not key.startswith(prefix)}
