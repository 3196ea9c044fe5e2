"""Sources of noise: the paper's baselines."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kegnet_pl.networks.validation import to_shape
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.base import Prior, SyntheticSource

Noise = Literal["uniform", "normal"]


class NoiseSource(SyntheticSource):
    """The paper's baselines: inputs from U(-1, 1) or N(0, 1), independent of everything.

    Args:
        distribution: ``"uniform"`` or ``"normal"``.
        input_shape: Shape of one sample, or a number of features.

    Raises:
        ValueError: If ``distribution`` is unknown.
    """

    title = "Noise"
    color = "#a0522d"
    marker = "<"
    prior: Prior = "none"

    def __init__(self, distribution: Noise, input_shape: int | Sequence[int]) -> None:
        super().__init__()
        if distribution not in get_args(Noise):
            raise ValueError(f"Expected `distribution` to be one of {get_args(Noise)}, but got {distribution!r}.")
        self.distribution = distribution
        self.input_shape = to_shape(input_shape)

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        generator = stream(seed, "synthetic")
        shape = (n, *self.input_shape)
        if self.distribution == "uniform":
            return torch.rand(shape, generator=generator) * 2 - 1
        return torch.randn(shape, generator=generator)


class UniformNoise(NoiseSource):
    """Noise from U(-1, 1); see :class:`NoiseSource`."""

    title = "Uniform"
    color = "#d9730d"
    marker = "^"

    def __init__(self, input_shape: int | Sequence[int]) -> None:
        super().__init__("uniform", input_shape)


class NormalNoise(NoiseSource):
    """Noise from N(0, 1); see :class:`NoiseSource`."""

    title = "Normal"
    color = "#0a8f6a"
    marker = "v"

    def __init__(self, input_shape: int | Sequence[int]) -> None:
        super().__init__("normal", input_shape)
