"""Procedural sources: samples with properties that most images, signals or tables have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kegnet_pl.networks.validation import to_shape
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.base import Prior, SyntheticSource

_EXPONENTS = 1.0, 4.0
"""Range of the exponents of the spectra; natural images have about 2."""

_COMPONENTS = 32
"""Number of Gaussians of the mixture for rows of features."""


_MOST_DIRECTIONS = 1024
"""Maximum number of directions in which a Gaussian varies; more would need a large matrix per Gaussian."""


class ProceduralSource(SyntheticSource):
    """Base class of procedural sources, with the shape of one sample and the device of the samples."""

    prior: Prior = "procedural"

    def __init__(self, input_shape: int | Sequence[int], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.input_shape = to_shape(input_shape)
        self.device = torch.device(device)


class RandomFields(ProceduralSource):
    """Gaussian random fields of random smoothness; for rows of features, a mixture of correlated Gaussians.

    A field of an image or a signal has the power spectrum ``1 / f^a``, ``a`` from U(1, 4) for each sample. Its channels
    are correlated, by a random amount for each sample. Each channel has mean 0 and variance 1. A field of one value is
    drawn from N(0, 1). Rows are drawn from 32 Gaussians with random means and covariances; features have mean 0 and
    variance 1 over all rows.

    Args:
        input_shape: Shape of one sample: channels and sizes, or a number of features.
        device: Device of the samples.
    """

    title = "Fields"
    color = "#7a5195"
    marker = "D"

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        rng = stream(seed, "synthetic")
        shape = self.input_shape
        x = _draw_rows(n, shape[0], rng) if len(shape) == 1 else draw_fields(n, shape, rng, _EXPONENTS)
        return x.to(self.device)


def draw_fields(n: int, shape: Sequence[int], rng: torch.Generator, exponents: tuple[float, float]) -> Tensor:
    """Return random fields ``(n, *shape)`` of channels with mean 0 and variance 1.

    Args:
        n: Number of samples.
        shape: Channels and sizes.
        rng: Random numbers.
        exponents: Range of the exponents a of the power spectra ``1 / f^a``; each sample has one.
    """
    channels, *sizes = shape
    axes = tuple(range(2, 2 + len(sizes)))
    ones = (1,) * len(sizes)
    squares = torch.zeros(sizes)
    for axis, size in enumerate(sizes):
        along = [1] * len(sizes)
        along[axis] = size
        squares = squares + torch.fft.fftfreq(size).square().reshape(along)
    frequencies = squares.sqrt().clamp_min(1 / max(sizes))
    low, high = exponents
    exponent = low + (high - low) * torch.rand(n, 1, *ones, generator=rng)
    shared = torch.rand(n, 1, *ones, generator=rng)
    noise = (1 - shared).sqrt() * torch.randn(n, channels, *sizes, generator=rng)
    noise = noise + shared.sqrt() * torch.randn(n, 1, *sizes, generator=rng)
    if noise[0, 0].numel() == 1:
        return noise
    fields: Tensor = torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * frequencies ** (-exponent / 2), dim=axes).real
    fields = fields - fields.mean(axes, keepdim=True)
    return fields / fields.std(axes, keepdim=True).clamp_min(1e-12)


def _draw_rows(n: int, features: int, rng: torch.Generator) -> Tensor:
    """Return rows of a mixture of Gaussians whose covariances have spectra ``1 / i^a``, ``a`` from U(0, 2)."""
    directions = min(features, max(_MOST_DIRECTIONS**2 // features, 1))
    exponents = 2 * torch.rand(_COMPONENTS, 1, generator=rng)
    scales = torch.arange(1, directions + 1) ** (-exponents / 2)
    bases = torch.linalg.qr(torch.randn(_COMPONENTS, features, directions, generator=rng))[0]
    factors = bases * scales[:, None]
    factors = factors / factors.square().sum(dim=2).mean(dim=1).sqrt()[:, None, None]
    component = torch.randint(_COMPONENTS, (n,), generator=rng)
    means = torch.randn(_COMPONENTS, features, generator=rng)
    noise = torch.randn(n, directions, generator=rng)
    rows = means[component]
    for index, factor in enumerate(factors):  # together, they would need a matrix for every row
        chosen = component == index
        rows[chosen] += noise[chosen] @ factor.T
    return rows / 2**0.5


class RandomRows(ProceduralSource):
    """Rows of features of four kinds, a quarter each; features have mean 0 and about variance 1.

    The kinds are independent values from N(0, 1); correlated Gaussians (:class:`RandomFields`); correlated Gaussians
    with heavy tails (Student's t with 3 degrees of freedom, scaled to about variance 1); and correlated Gaussians in a
    bounded range, half of them in steps.

    Args:
        input_shape: Number of features.
        device: Device of the samples.
    """

    title = "Rows"
    color = "#be185d"
    marker = "p"

    def __init__(self, input_shape: int | Sequence[int], device: torch.device | str = "cpu") -> None:
        super().__init__(input_shape, device)
        (self.features,) = self.input_shape

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, features)``."""
        rng = stream(seed, "synthetic")
        count = -(-n // 4)
        plain = torch.randn(count, self.features, generator=rng)
        correlated, tails, bounded = _draw_rows(3 * count, self.features, rng).split(count)
        chi_squared = torch.randn(count, 3, generator=rng).square().sum(dim=1, keepdim=True)
        tails = tails * chi_squared.clamp_min(0.05).rsqrt()
        bounded = torch.special.ndtr(bounded)
        levels = torch.randint(2, 17, (count, 1), generator=rng)
        stepped = (bounded * levels).floor().clamp_max(levels - 1) / (levels - 1)
        bounded = torch.where(torch.rand(count, 1, generator=rng) < 0.5, stepped, bounded)
        bounded = (bounded - 0.5) * 12**0.5
        rows = torch.cat([plain, correlated, tails, bounded])
        return rows[torch.randperm(len(rows), generator=rng)[:n]].to(self.device)
