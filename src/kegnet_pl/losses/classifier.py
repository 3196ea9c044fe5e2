"""The teacher shall answer with the label that the sample was made for."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss


class ClassifierLoss(GeneratorLoss):
    r"""Kullback-Leibler divergence of the teacher's answer from the label, in nats.

    .. math:: L_{cls} = \frac{1}{B} \sum_i KL(y_i \,||\, softmax(M(x_i) / T))

    For one-hot labels this is the cross-entropy. At T = 1, as in the paper, a sample is good enough as soon as the
    teacher is sure of it. The gradient is gone long before samples are typical of their class, and a generator goes on
    for ten thousands of steps on what little is left. A temperature of 10 asks for ten times the margin at once.

    Args:
        temperature: T, softens the teacher's answer.

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
        # kl_div, written out: torch would loop over generators that are trained together.
        return (torch.xlogy(batch.y, batch.y) - batch.y * log_probabilities).sum(dim=1).mean()
