"""The decoder network, which predicts the noise ``z`` of a generated sample."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class Decoder(nn.Module):
    """Dense network that predicts the noise from a generated sample.

    Args:
        input_shape: Shape of one sample, ``(C, H, W)`` or ``(features,)``.
        noise_dim: Dimensions of the noise.
        blocks: Number of hidden blocks Linear - ELU - BatchNorm after the first one.
        width: Units of every hidden block.

    Shapes:
        Input ``(B, *input_shape)``, output ``(B, noise_dim)``.

    Source:
        KegNet section 4.2 and its release (PAPER section 3).
    """

    def __init__(self, input_shape: Sequence[int], noise_dim: int = 10, blocks: int = 1, width: int = 120) -> None:
        super().__init__()
        sides = [math.prod(input_shape)] + [width] * (blocks + 1)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sides):
            layers += [nn.Linear(before, after), nn.ELU(), nn.BatchNorm1d(after)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, noise_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the predicted noise ``(B, noise_dim)`` of samples ``(B, *input_shape)``."""
        z: Tensor = self.layers(x.flatten(1))
        return z
