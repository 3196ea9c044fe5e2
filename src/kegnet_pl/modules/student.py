"""Training a student on the teacher's answers."""

import torch
from torch import Tensor, nn

from kegnet_pl.losses import DistillationLoss
from kegnet_pl.modules.base import OptimizerFactory, SeededModule, accuracy


class StudentModule(SeededModule):
    """A student that learns the teacher's answers to synthetic samples.

    Logs ``train/loss`` (nats) and ``train/accuracy``, the agreement with the teacher; ``val/loss`` and
    ``val/accuracy`` on whatever the data module validates on (teacher's logits or true classes); ``test/accuracy``.

    Args:
        network: Returns logits ``(B, C)``.
        distillation: The loss.
        optimizer: Takes parameters, returns an optimiser.
        seed: The run's seed.

    Shapes:
        Training batches ``(x, teacher_logits)`` of ``(B, *input_shape)`` and ``(B, C)``; validation batches the same,
        or with classes ``(B,)`` as test batches have.
    """

    def __init__(
        self, network: nn.Module, distillation: DistillationLoss, optimizer: OptimizerFactory, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.save_hyperparameters("seed")
        self.network = network
        self.distillation = distillation
        self._optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the distillation loss of a batch."""
        x, teacher_logits = batch
        logits = self(x)
        loss: Tensor = self.distillation(logits, teacher_logits)
        agreement = accuracy(logits, teacher_logits.argmax(dim=1))
        self.log_epoch({"train/loss": loss.detach(), "train/accuracy": agreement}, len(x))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log accuracy, and the distillation loss where the batch has the teacher's logits."""
        x, target = batch
        logits = self(x)
        if target.ndim == 2:
            self.log_epoch({"val/loss": self.distillation(logits, target)}, len(x))
            target = target.argmax(dim=1)
        self.log_epoch({"val/accuracy": accuracy(logits, target)}, len(x))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log accuracy on real test data."""
        x, y = batch
        self.log_epoch({"test/accuracy": accuracy(self(x), y)}, len(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimise the network."""
        return self._optimizer(list(self.network.parameters()))
