"""The real training data as a source: the ceiling for students of other sources."""

import torch
from torch import Tensor

from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.base import REAL_DATA, Prior, SyntheticSource


class RealSource(SyntheticSource):
    """The inputs of the real training data.

    A student of this source is the ceiling for students of other sources. It is not a data-free result.

    Args:
        inputs: Inputs of the training data ``(N, *input_shape)``.

    Raises:
        ValueError: If ``inputs`` holds no samples in floating point.
    """

    title = "Real"
    color = "#8c939c"
    marker = "P"
    prior: Prior = REAL_DATA
    needs_data = True

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        if not isinstance(inputs, Tensor):
            raise ValueError(f"Expected `inputs` to be a tensor, but got {type(inputs).__name__}.")
        if inputs.ndim < 2 or not len(inputs) or not inputs.is_floating_point():
            raise ValueError(
                f"Expected `inputs` to be samples (N, *input_shape) in floating point, but got {inputs.dtype} "
                f"{tuple(inputs.shape)}."
            )
        self.inputs = inputs
        self.input_shape = tuple(inputs.shape[1:])

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)`` without replacement: each pass over the ``N`` inputs is shuffled."""
        count, generator = len(self.inputs), stream(seed, "synthetic")
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-n // count))])[:n]
        return self.inputs[order.to(self.inputs.device)]
