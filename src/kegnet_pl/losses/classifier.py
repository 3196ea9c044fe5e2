"""The teacher shall answer with the label that the sample was made for."""

import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss


class ClassifierLoss(GeneratorLoss):
    r"""Kullback-Leibler divergence of the teacher's answer from the label, in nats.

    .. math:: L_{cls} = \frac{1}{B} \sum_i KL(y_i \,||\, softmax(M(x_i)))

    For one-hot labels this is the cross-entropy.

    Shapes:
        ``batch.y (B, C)``, ``batch.logits (B, C)``; output a scalar.

    Source:
        KegNet equation 3 (PAPER section 2).
    """

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the mean divergence."""
        log_probabilities = functional.log_softmax(batch.logits, dim=1)
        # kl_div, written out: torch would loop over generators that are trained together.
        return (torch.xlogy(batch.y, batch.y) - batch.y * log_probabilities).sum(dim=1).mean()
