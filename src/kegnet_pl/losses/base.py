"""What every term of the generator objective sees, and what it looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class NormStatistics(NamedTuple):
    """What enters a batch-norm layer of the teacher, channel by channel; all ``(C,)``, variances positive.

    Attributes:
        mean: Of the batch at hand, over samples and positions.
        variance: The same; the layer's epsilon is in it.
        stored_mean: Of the teacher's training data, as the layer has stored it.
        stored_variance: The same; the layer's epsilon is in it.
    """

    mean: Tensor
    variance: Tensor
    stored_mean: Tensor
    stored_variance: Tensor


@dataclass(frozen=True)
class GeneratedBatch:
    """One batch on its way through generator, teacher and decoder; all tensors in float32 or wider.

    Attributes:
        z: Noise ``(B, Z)``.
        y: Labels ``(B, C)``, rows sum to 1 (one-hot in the paper).
        x: Generated samples ``(B, *input_shape)``.
        logits: The teacher's answer ``(B, C)``.
        z_decoded: The decoder's answer ``(B, Z)``, or None where no term uses the decoder.
        statistics: What enters the teacher's batch-norm layers, in their order; empty where no term uses it.
    """

    z: Tensor
    y: Tensor
    x: Tensor
    logits: Tensor
    z_decoded: Tensor | None = None
    statistics: Sequence[NormStatistics] = ()


class GeneratorLoss(nn.Module):
    """A term of the generator objective: a :class:`GeneratedBatch` in, a scalar out (lower is better).

    Attributes:
        uses_decoder: Whether the term reads ``batch.z_decoded``.
        uses_statistics: Whether the term reads ``batch.statistics``.
    """

    uses_decoder: ClassVar[bool] = False
    uses_statistics: ClassVar[bool] = False

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError
