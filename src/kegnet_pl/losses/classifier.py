"""The classifier loss: the teacher classifies a sample as the label that it was generated for."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss


class ClassifierLoss(GeneratorLoss):
    r"""Kullback-Leibler divergence of the teacher's prediction from the label, in nats.

    .. math:: L_{cls} = \frac{1}{B} \sum_i KL(y_i \,||\, softmax(M(x_i) / T))

    For one-hot labels this is the cross-entropy. At T = 1, as in the paper, the loss is small once the teacher is
    confident. The gradient vanishes long before samples are typical of their class, and training takes tens of
    thousands of steps on small gradients. A temperature of 10 requires ten times the margin.

    Args:
        temperature: T, divides the teacher's logits.

    Shapes:
        ``batch.y (B, C)``, ``batch.logits (B, C)``; output a scalar.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source:
        KegNet equation 3 (PAPER section 2), with T = 1.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"Expected `temperature` to be a positive number, but got {temperature}.")
        self.temperature = temperature

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the mean divergence."""
        log_probabilities = functional.log_softmax(batch.logits / self.temperature, dim=1)
        # Not functional.kl_div: under vmap, torch loops over the generators.
        return (torch.xlogy(batch.y, batch.y) - batch.y * log_probabilities).sum(dim=1).mean()
