"""The statistics loss: synthetic samples match the running statistics of the teacher's batch norm."""

import torch
from torch import Tensor

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss, NormStatistics


class StatisticsLoss(GeneratorLoss):
    r"""Divergence of the inputs of the teacher's batch norm from its running statistics, in nats.

    .. math:: \frac{1}{L} \sum_l \frac{1}{C_l} \sum_c KL(N(m_{lc}, v_{lc}) \,||\, N(\mu_{lc}, \sigma^2_{lc}))
              = \frac{1}{L} \sum_l \frac{1}{2 C_l} \sum_c
                \frac{v_{lc} + (m_{lc} - \mu_{lc})^2}{\sigma^2_{lc}} - 1 - \ln \frac{v_{lc}}{\sigma^2_{lc}}

    with mean m and variance v of channel c of layer l over the batch and all positions, and the mean and variance of
    the training data, which the layer has stored. It is zero if every channel has its stored mean and variance. It is
    not part of KegNet.

    Shapes:
        ``batch.statistics``: L entries of four tensors ``(C_l,)``; output a scalar.

    Source:
        Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020, equation 4, with the
        divergence of Haroush et al., "The Knowledge Within: Methods for Data-Free Model Compression", 2020, instead of
        squared differences: it has the same unit in every layer.
    """

    uses_statistics = True

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the mean over layers and channels.

        Raises:
            ValueError: If the batch has no statistics.
        """
        if not batch.statistics:
            raise ValueError(
                "Expected `statistics` of batch-norm layers in the batch, but got none. For a teacher without batch "
                "norm, set the weight of the term to 0."
            )
        return torch.stack([divergence_of_statistics(layer) for layer in batch.statistics]).mean()


def divergence_of_statistics(layer: NormStatistics) -> Tensor:
    """Return the mean over the channels of a layer of the divergence in :class:`StatisticsLoss`, a scalar."""
    ratio = layer.variance / layer.stored_variance
    distance = (layer.mean - layer.stored_mean).square() / layer.stored_variance
    return (distance + ratio - 1 - ratio.log()).mean() / 2
