"""What every term of the generator objective sees, and what it looks like."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class GeneratedBatch:
    """One batch on its way through generator, teacher and decoder; all tensors in float32 or wider.

    Attributes:
        z: Noise ``(B, Z)``.
        y: Labels ``(B, C)``, rows sum to 1 (one-hot in the paper).
        x: Generated samples ``(B, *input_shape)``.
        logits: The teacher's answer ``(B, C)``.
        z_decoded: The decoder's answer ``(B, Z)``, or None where no term uses the decoder.
    """

    z: Tensor
    y: Tensor
    x: Tensor
    logits: Tensor
    z_decoded: Tensor | None = None


class GeneratorLoss(nn.Module):
    """A term of the generator objective: a :class:`GeneratedBatch` in, a scalar out (lower is better).

    Attributes:
        uses_decoder: Whether the term reads ``batch.z_decoded``.
    """

    uses_decoder: ClassVar[bool] = False

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError
