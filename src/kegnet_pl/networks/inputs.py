"""Value ranges of inputs: networks that take pixels in [0, 1], [0, 255] or [-1, 1] instead of standardised values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from kegnet_pl.networks.hooks import find_hook, hook_input, remove_hooks

PIXEL_MEAN, PIXEL_STD = 0.45, 0.25
"""Default mean and standard deviation of pixels in [0, 1]: about those of photographs."""


@dataclass(frozen=True)
class ValueRange:
    """Conversion of standardised samples to the pixels that a network expects: a forward pre-hook of the network.

    Sources draw samples with mean 0 and standard deviation 1. A pixel of the network is
    ``low + (high - low) (mean + std x)``.

    Attributes:
        low: Value of a black pixel, such as 0 or -1.
        high: Value of a white pixel, such as 1 or 255.
        mean: Mean of the pixels of each channel, on the scale from 0 to 1; one number holds for all channels.
        std: Standard deviation of the pixels of each channel, on the same scale.
    """

    low: float
    high: float
    mean: tuple[float, ...] = (PIXEL_MEAN,)
    std: tuple[float, ...] = (PIXEL_STD,)

    @classmethod
    def of(
        cls,
        bounds: Sequence[float],
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> Self:
        """Return the range ``(low, high)``; mean and deviation are one number, one per channel, or None (default)."""
        mean, std = PIXEL_MEAN if mean is None else mean, PIXEL_STD if std is None else std
        numbers = [
            tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) for value in (mean, std)
        ]
        return cls(float(bounds[0]), float(bounds[1]), *numbers)

    @property
    def _scales(self) -> list[tuple[float, float]]:
        """Factor and summand of each channel, from standardised samples to pixels; one pair if all are equal."""
        span = self.high - self.low
        channels = max(len(self.mean), len(self.std))
        means, stds = (values * channels if len(values) == 1 else values for values in (self.mean, self.std))
        pairs = [(span * std, self.low + span * mean) for mean, std in zip(means, stds, strict=True)]
        return pairs[:1] if len(set(pairs)) == 1 else pairs

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG002
        """Return the inputs of a network, the first converted to pixels."""
        x, scales = inputs[0], self._scales
        if len(scales) == 1:
            ((factor, summand),) = scales
            return (x * factor + summand, *inputs[1:])
        # Numbers, not tensors: a tensor would be copied to the GPU at every call.
        channels = x.split(1, dim=1)
        pixels = [channel * factor + summand for channel, (factor, summand) in zip(channels, scales, strict=True)]
        return (torch.cat(pixels, dim=1), *inputs[1:])

    def standardise(self, pixels: Tensor) -> Tensor:
        """Return standardised samples for the pixels that the network expects."""
        scales = pixels.new_tensor(self._scales).T.reshape(2, -1, *(1,) * (pixels.dim() - 2))
        return (pixels - scales[1]) / scales[0]

    def attach(self, network: nn.Module) -> nn.Module:
        """Add the conversion to a network, in place, so that it accepts standardised samples; return the network."""
        hook_input(network, self)
        return network

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the range that :meth:`to_dict` described."""
        return cls.of((values["low"], values["high"]), values["mean"], values["std"])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def value_range_of(network: nn.Module) -> ValueRange | None:
    """Return the hook that converts standardised samples for a network; None for a network without one."""
    return find_hook(network._forward_pre_hooks, ValueRange)


def restore_inputs(network: nn.Module) -> nn.Module:
    """Remove the value range of a network, in place, so that it accepts pixels again, and return it."""
    remove_hooks(network._forward_pre_hooks, ValueRange)
    return network
