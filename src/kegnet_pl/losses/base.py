"""The base class of loss terms of generators, and the batch that they read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class NormStatistics(NamedTuple):
    """Channel statistics of the input of a batch-norm layer of the teacher; all ``(C,)``, variances positive.

    Attributes:
        mean: Mean of the current batch, over samples and positions.
        variance: Variance of the current batch, plus the layer's epsilon.
        stored_mean: Running mean of the layer, from the teacher's training data.
        stored_variance: Running variance of the layer, plus its epsilon.
    """

    mean: Tensor
    variance: Tensor
    stored_mean: Tensor
    stored_variance: Tensor


@dataclass(frozen=True)
class GeneratedBatch:
    """One batch of generated samples, with the outputs of teacher and decoder; all tensors in float32 or wider.

    Attributes:
        z: Noise ``(B, Z)``.
        y: Labels ``(B, C)``, rows sum to 1 (one-hot in the paper).
        x: Generated samples ``(B, *input_shape)``.
        logits: Logits of the teacher ``(B, C)``.
        z_decoded: Output of the decoder ``(B, Z)``, or None if no term uses the decoder.
        statistics: Statistics of the teacher's batch-norm layers, in their order; empty if no term uses them.
    """

    z: Tensor
    y: Tensor
    x: Tensor
    logits: Tensor
    z_decoded: Tensor | None = None
    statistics: Sequence[NormStatistics] = ()


class GeneratorLoss(nn.Module):
    """A term of the generator objective: maps a :class:`GeneratedBatch` to a scalar (lower is better).

    Attributes:
        uses_decoder: True if the term reads ``batch.z_decoded``.
        uses_statistics: True if the term reads ``batch.statistics``.
    """

    uses_decoder: ClassVar[bool] = False
    uses_statistics: ClassVar[bool] = False

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError
