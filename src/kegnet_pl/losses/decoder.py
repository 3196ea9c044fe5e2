"""The decoder loss: the decoder recovers the noise from a sample."""

from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss


class DecoderLoss(GeneratorLoss):
    """Mean squared error between the noise and the decoder's output for the sample.

    Shapes:
        ``batch.z (B, Z)``, ``batch.z_decoded (B, Z)``; output a scalar.

    Source:
        KegNet equation 4 (PAPER section 2).
    """

    uses_decoder = True

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the mean over batch and dimensions.

        Raises:
            ValueError: If the batch has no decoded noise.
        """
        if batch.z_decoded is None:
            raise ValueError("Expected `z_decoded` in the batch, but got None. Run a decoder on `x` first.")
        return functional.mse_loss(batch.z_decoded, batch.z)
