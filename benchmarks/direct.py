"""PAPER's formulas as they are written, with nothing done for speed: what kegnet_pl is measured against.

The layers (generator, decoder, teacher, student) are the same modules; all that is done with them is written here, and
nothing of the product's losses, modules, loaders or trainer is used. Everything is float32, the diversity term is a
tensor of batch x batch x pixels and is computed whatever its weight, the teacher's weights collect gradients, five
generators are trained one after another, and a student reads a ``DataLoader`` over a ``TensorDataset``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class DirectGenerator:
    """One generator that is trained against a teacher (PAPER section 2).

    Attributes:
        generator: Called with noise and labels.
        decoder: Reads the noise from samples.
        teacher: Returns logits. Its batch norm looks at the batch, its dropout is off.
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
        self.teacher.train()
        for layer in self.teacher.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()

    def step(self, z: Tensor, y: Tensor) -> Tensor:
        """Make one step for noise ``(B, Z)`` and one-hot labels ``(B, C)``; return the loss, detached."""
        x = self.generator(z, y)
        classifier = functional.kl_div(functional.log_softmax(self.teacher(x), dim=1), y, reduction="batchmean")
        decoder = (self.decoder(x) - z).square().mean()
        d_z = (z[:, None] - z[None]).square().mean(dim=2)
        flat = x.flatten(1)
        d_x = (flat[:, None] - flat[None]).abs().mean(dim=2)
        diversity = torch.exp(-(d_z * d_x).mean())
        loss: Tensor = classifier + self.alpha * decoder + self.beta * diversity
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def direct_student_epoch(
    student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, probabilities: Tensor, batch_size: int
) -> float:
    """Train a student for one epoch on the teacher's probabilities (PAPER section 5); return the mean loss."""
    total = 0.0
    for samples, targets in DataLoader(TensorDataset(x, probabilities), batch_size=batch_size):
        loss = functional.kl_div(functional.log_softmax(student(samples), dim=1), targets, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(samples)
    return total / len(x)


@torch.no_grad()
def direct_draw(generators: Sequence[nn.Module], z: Tensor, y: Tensor) -> Tensor:
    """Pass the same noise and labels through every generator (PAPER section 1), all of it at once."""
    return torch.cat([generator.eval()(z, y) for generator in generators])
