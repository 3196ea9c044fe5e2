"""Training a teacher on real data."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.training.base import SeededModule, accuracy
from kegnet_pl.training.optimizers import OptimizerFactory, gradient_norm


class TeacherModule(SeededModule):
    """An ordinary classifier trained by cross-entropy, for users who have no teacher yet.

    Logs ``train/loss`` (nats), ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``test/accuracy`` (in [0, 1]).

    Args:
        network: Returns logits ``(B, C)``.
        optimizer: Takes parameters, returns an optimiser.
        seed: The run's seed.

    Shapes:
        Batches ``(x, y)`` of ``(B, *input_shape)`` and ``(B,)``.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerFactory, seed: int = 0) -> None:
        super().__init__(seed)
        self.save_hyperparameters("seed")
        self.network = network
        self._optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        x, y = batch
        logits = self(x)
        loss = functional.cross_entropy(logits.float(), y)
        self._log_epoch({"train/loss": loss.detach(), "train/accuracy": accuracy(logits, y)}, len(x))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradients before clipping; the size of batches does not weigh here."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        self._log_epoch({"train/grad_norm": gradient_norm(gradients)}, 1)

    def on_train_epoch_end(self) -> None:
        """Stop where training has diverged."""
        self.check_weights(self.network.parameters())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count loss and accuracy on the validation split."""
        x, y = batch
        logits = self(x)
        loss = functional.cross_entropy(logits.float(), y)
        self.count({"val/loss": loss, "val/accuracy": accuracy(logits, y)}, len(x))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count accuracy on the test split."""
        x, y = batch
        self.count({"test/accuracy": accuracy(self(x), y)}, len(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimise the network."""
        return self._optimizer(list(self.network.parameters()))

    def _log_epoch(self, metrics: dict[str, Tensor], batch_size: int) -> None:
        """Log means over an epoch and over all processes, which take steps of one size."""
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=self._distributed)
