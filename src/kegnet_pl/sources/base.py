"""What a source of samples is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SyntheticSource(nn.Module, ABC):
    """Something that samples can be drawn from."""

    @abstractmethod
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw samples.

        Args:
            n: Number of samples.
            seed: The same seed gives the same samples.

        Returns:
            Samples ``(n, *input_shape)``, on the source's device.
        """
