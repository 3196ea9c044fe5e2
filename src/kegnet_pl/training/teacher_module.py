"""Training of a teacher on real data."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.training.base import ClassifierModule, accuracy
from kegnet_pl.training.optimizers import OptimizerFactory


class TeacherModule(ClassifierModule):
    """A classifier trained by cross-entropy on real data, for users who have no teacher yet.

    Logs ``train/loss`` (nats), ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``test/accuracy`` (in [0, 1]).

    Args:
        network: Returns logits ``(B, C)``.
        optimizer, seed: See :class:`TrainingModule`.

    Shapes:
        Batches ``(x, y)`` of ``(B, *input_shape)`` and ``(B,)``.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerFactory, seed: int = 0) -> None:
        super().__init__(seed, optimizer)
        self.save_hyperparameters("seed")
        self.network = network
        self.step_by(network)

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of a batch, and its metrics."""
        x, y = batch
        logits: Tensor = self.run(x)
        loss = functional.cross_entropy(logits.float(), y)
        return loss, {"loss": loss, "accuracy": accuracy(logits, y)}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser as the user makes it; not fused, so that trained teachers keep their last digits."""
        return self.optimizer_of(self.trained_parameters())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count loss and accuracy on the validation split."""
        x, y = batch
        logits = self(x)
        loss = functional.cross_entropy(logits.float(), y)
        self.count("val", {"loss": loss, "accuracy": accuracy(logits, y)}, len(x))
