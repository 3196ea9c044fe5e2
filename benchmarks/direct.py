"""The opponent that kegnet_pl is measured against: the method as a careful author writes it in plain PyTorch.

The arithmetic is that of ``examples/kegnet_plain.py``, and the networks are the product's; nothing of the product's
losses, modules, loaders or trainer is used. Terms of weight 0 are skipped, pairwise distances come from
``torch.cdist``, the teacher's weights collect no gradients, and no step waits for a number. Everything is float32,
generators are trained one after another, and a student reads a ``DataLoader`` over a ``TensorDataset``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.kegnet_plain import distil_epoch, generate_samples, generator_loss, update

__all__ = ["DirectGenerator", "direct_student_epoch", "generate_samples"]


@dataclass
class DirectGenerator:
    """One generator that is trained against a teacher (PAPER section 2).

    Attributes:
        generator: Called with noise and labels.
        decoder: Recovers the noise from samples.
        teacher: Returns logits. Its batch norm uses batch statistics, its dropout is off, its weights are frozen.
        learning_rate: Of Adam.
        alpha: Weight of the decoder's loss.
        beta: Weight of the diversity.
    """

    generator: nn.Module
    decoder: nn.Module
    teacher: nn.Module
    learning_rate: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        trained = [*self.generator.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        self.teacher.train().requires_grad_(False)
        for layer in self.teacher.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()

    def step(self, z: Tensor, y: Tensor) -> Tensor:
        """Make one step for noise ``(B, Z)`` and one-hot labels ``(B, C)``; return the loss, detached."""
        loss = generator_loss(self.generator, self.decoder, self.teacher, z, y, self.alpha, self.beta)
        return update(self.optimizer, loss)


def direct_student_epoch(
    student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, probabilities: Tensor, batch_size: int
) -> Tensor:
    """Train a student for one epoch on the teacher's probabilities (PAPER section 5); return the mean loss."""
    return distil_epoch(student, optimizer, DataLoader(TensorDataset(x, probabilities), batch_size=batch_size))
