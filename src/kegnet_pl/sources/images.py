"""Procedural images: occluding shapes, strokes, and compositions of them with random fields."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from kegnet_pl.runtime.distributed import concatenate
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.procedural import ProceduralSource, RandomRows, draw_fields

_CHUNK = 1024
"""Number of images that are drawn at once."""

_STEPS = 2048
"""Number of steps of the table of quantiles."""

_SHAPES = 12
"""Maximum number of shapes in an image."""


class PixelSource(ProceduralSource):
    """Base class of sources that draw values from N(0, 1) by a procedure (:meth:`draw`).

    With ``mean`` and ``std`` the values become pixels in [0, 1] whose distribution is about the Beta distribution with
    this mean and deviation, and are normalised like the inputs of the teacher.

    Args:
        input_shape: Channels and sizes of one sample.
        device: Device of the samples.
        mean: Mean of the pixels of each channel, in [0, 1], by which the teacher's inputs are normalised; one number
            holds for all channels. None: the values from N(0, 1) are the inputs.
        std: Standard deviation of the pixels of each channel.

    Raises:
        ValueError: If the shape is none of the kind, or mean and standard deviation are not those of pixels.
    """

    dimensions: tuple[int, ...]
    """Numbers of dimensions of a sample that the source can draw."""
    expected: str
    """The shapes that it can draw, for messages."""

    def __init__(
        self,
        input_shape: Sequence[int],
        device: torch.device | str = "cpu",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, device)
        if len(self.input_shape) not in self.dimensions:
            raise ValueError(self.expected.format(self.input_shape))
        self._pixels = None if mean is None and std is None else _Pixels(mean, std, self.input_shape[0])

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """Shape in which samples are drawn."""
        return self.input_shape

    @property
    def chunk(self) -> int:
        """Number of samples that are drawn together."""
        return _CHUNK

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        starts = range(0, n, self.chunk)
        lengths = [min(self.chunk, n - start) for start in starts]

        def draw(index: int) -> Tensor:
            values = self.draw(lengths[index], self.drawn_shape, stream(seed, "synthetic", starts[index]))
            return values if self._pixels is None else self._pixels(values)

        return concatenate(draw, lengths, torch.device("cpu")).reshape(n, *self.input_shape).to(self.device)

    @abstractmethod
    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` samples ``(n, *shape)`` of values from N(0, 1), over all samples."""


class ProceduralImages(PixelSource):
    """Base class of sources that draw images by a procedure.

    Strokes on a black ground result from MNIST's mean of 0.13, and middle tones from that of photographs. Signals
    ``(C, length)`` are images of height 1.

    Args:
        input_shape: ``(C, H, W)`` or ``(C, length)``.
        device, mean, std: See :class:`PixelSource`.

    Raises:
        ValueError: If the shape is no image or signal, or mean and standard deviation are not those of pixels.
    """

    dimensions = (2, 3)
    expected = (
        "Expected `input_shape` of an image (C, H, W) or of a signal (C, length), but got {}. For rows of features use "
        "the source procedural (class Procedural)."
    )

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """Shape of an image ``(C, H, W)``; a signal has the height 1."""
        return self.input_shape if len(self.input_shape) == 3 else (self.input_shape[0], 1, self.input_shape[1])


class _Pixels:
    """Converts values from N(0, 1) to normalised pixels of a Beta distribution."""

    def __init__(
        self, mean: float | Sequence[float] | None, std: float | Sequence[float] | None, channels: int
    ) -> None:
        try:
            both = (math.nan if value is None else value for value in (mean, std))
            given = [np.broadcast_to(np.asarray(value, dtype=float), channels) for value in both]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected `mean` and `std` as one number, or one for each of {channels} channels, but got "
                f"mean={mean!r} and std={std!r}."
            ) from error
        if not all(0 < m < 1 and 0 < s < math.sqrt(m * (1 - m)) for m, s in zip(*given, strict=True)):
            of_bytes = any(m > 1 for m in given[0])
            remedy = "If these are of pixels in [0, 255], divide both by 255." if of_bytes else "Set both."
            raise ValueError(
                f"Expected `mean` in (0, 1) and `std` in (0, sqrt(mean (1 - mean))), of pixels in [0, 1], but got "
                f"mean={mean!r} and std={std!r}. {remedy} If inputs are not normalised pixels, set neither (None, "
                f"null): values are then from N(0, 1)."
            )
        total = [m * (1 - m) / s**2 - 1 for m, s in zip(*given, strict=True)]
        grid = np.linspace(0, 1, _STEPS + 1)
        tables = [stats.beta(m * t, (1 - m) * t).ppf(grid) for m, t in zip(given[0], total, strict=True)]
        normalised = [(table - m) / s for table, m, s in zip(tables, *given, strict=True)]
        self._table = torch.tensor(np.stack(normalised), dtype=torch.float32)

    def __call__(self, values: Tensor) -> Tensor:
        positions = (torch.special.ndtr(values) * _STEPS).clamp(0, _STEPS - 1e-3)
        index = positions.long()
        channel = torch.arange(values.shape[1]).view(1, -1, *(1,) * (values.dim() - 2))
        low, high = self._table[channel, index], self._table[channel, index + 1]
        return torch.lerp(low, high, positions - index)


def _normal(n: int, rng: torch.Generator, channels: int = 1) -> Tensor:
    return torch.randn(n, channels, 1, 1, generator=rng)


def _uniform(n: int, rng: torch.Generator) -> Tensor:
    return torch.rand(n, 1, 1, 1, generator=rng)


def _grid(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the coordinates y ``(H, 1)`` and x ``(1, W)`` of the pixels, from -1 to 1; 0 for a size of 1."""
    y, x = (torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in shape[1:])
    return y[:, None], x[None, :]


def _vignette(n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Return the values that are subtracted outside a disc, for half of the images: objects are often in the middle."""
    y, x = _grid(shape)
    centre = 0.3 * torch.randn(2, n, 1, 1, 1, generator=rng)
    radius = 0.4 + 0.8 * _uniform(n, rng)
    distance = ((y - centre[0]).square() + (x - centre[1]).square()).sqrt()
    return (_uniform(n, rng) < 0.5) * 3 * (distance / radius - 1).clamp_min(0)


class Leaves(ProceduralImages):
    """Dead leaves: up to twelve shapes that occlude each other, with random outlines, colours and textures.

    Source:
        Outlines are superellipses with waves. The model is that of Lee, Mumford and Huang, "Occlusion Models for
        Natural Images", 2001.
    """

    title = "Leaves"
    color = "#4d7c0f"
    marker = "h"

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` images of occluding shapes."""
        canvas = _normal(n, rng, shape[0]).expand(n, *shape)
        count = torch.randint(1, _SHAPES + 1, (n, 1, 1, 1), generator=rng)
        texture = draw_fields(n, shape, rng, (1.0, 3.0))
        for index in range(_SHAPES):
            inside = _outline(n, shape, rng) * (index < count)
            colour = 0.7 * _normal(n, rng) + 0.7 * _normal(n, rng, shape[0])
            canvas = torch.lerp(canvas, colour + 0.4 * _uniform(n, rng) * texture, inside)
        return canvas - _vignette(n, shape, rng)


def _outline(n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Return 1 inside a random shape and 0 outside ``(n, 1, H, W)``, with an edge of one pixel."""
    y, x = _grid(shape)
    centre = 1.1 * (2 * torch.rand(2, n, 1, 1, 1, generator=rng) - 1)
    size = 0.15 * 6 ** _uniform(n, rng)
    aspect, angle = (0.5 * _normal(n, rng)).exp(), math.pi * _uniform(n, rng)
    dx, dy = x - centre[0], y - centre[1]
    along = (dx * angle.cos() + dy * angle.sin()) / (size * aspect)
    across = (dy * angle.cos() - dx * angle.sin()) / (size / aspect)
    power = 4 ** _uniform(n, rng)
    waves = torch.randint(2, 7, (n, 1, 1, 1), generator=rng) * torch.atan2(across, along)
    waves = 1 + 0.25 * _uniform(n, rng) * torch.cos(waves + 2 * math.pi * _uniform(n, rng))
    radius: Tensor = (along.abs() ** power + across.abs() ** power) ** (1 / power) / waves
    return ((1 - radius) * size * max(shape[1:]) / 2).clamp(-0.5, 0.5) + 0.5


class Strokes(ProceduralImages):
    """Strokes: bands around the level sets of smooth fields, cut by a second field."""

    title = "Strokes"
    color = "#9d174d"
    marker = "P"

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` images of strokes."""
        plane = (1, *shape[1:])
        level = _normal(n, rng)
        distance = (draw_fields(n, plane, rng, (3.0, 6.0)) - level).abs()
        # The distance has the distribution of |z - level|, so that its rank is uniform.
        rank = 1 - torch.special.ndtr(level + distance) + torch.special.ndtr(level - distance)
        values: Tensor = torch.special.ndtri(rank.clamp(1e-6, 1 - 1e-6))
        cut = draw_fields(n, plane, rng, (3.0, 6.0)) < _normal(n, rng) - 1
        values = values - 3 * cut - _vignette(n, shape, rng) + 0.3 * _normal(n, rng)
        if shape[0] == 1:
            return values
        sign = torch.where(torch.rand(n, shape[0], 1, 1, generator=rng) < 0.5, 1.0, -1.0)
        contrast = torch.rand(n, shape[0], 1, 1, generator=rng)
        return values * sign * contrast + 0.5 * _normal(n, rng, shape[0])


class Blobs(ProceduralImages):
    """Random fields of random smoothness, with a random brightness for each image."""

    title = "Blobs"
    color = "#0f766e"
    marker = "8"

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` images of random fields."""
        share = 0.3 * _uniform(n, rng)
        values = (1 - share).sqrt() * draw_fields(n, shape, rng, (1.0, 4.0)) + share.sqrt() * _normal(n, rng)
        return values - _vignette(n, shape, rng)


class Waves(ProceduralImages):
    """Waves in a window: gratings of images; chirps and bursts of signals."""

    title = "Waves"
    color = "#6d28d9"
    marker = "X"

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` images of waves."""
        y, x = _grid(shape)
        angle = 2 * math.pi * _uniform(n, rng) if shape[1] > 1 else torch.zeros(n, 1, 1, 1)
        along = x * angle.cos() + y * angle.sin()
        cycles = max(shape[1:]) ** (0.8 * _uniform(n, rng)) / 2
        phase = 2 * math.pi * torch.rand(n, shape[0], 1, 1, generator=rng)
        bend = torch.randn(n, 1, 1, 1, generator=rng) * (_uniform(n, rng) < 0.5)  # a chirp
        wave = 2**0.5 * torch.cos(2 * math.pi * cycles * (along + 0.25 * bend * along.square()) + phase)
        centre, width = 2 * _uniform(n, rng) - 1, 0.1 * 20 ** _uniform(n, rng)
        window = torch.exp(-((along - centre) / width).square() / 2)
        return wave * window + 0.5 * _normal(n, rng, shape[0])


class Procedural(ProceduralSource):
    """All procedural samples of a kind of data.

    Images: leaves, strokes, blobs and compositions of two of them, a quarter each. Signals: the same and waves, a fifth
    each. Volumes: see :class:`Volumes`. Rows of features: see :class:`RandomRows`.

    Args:
        input_shape: ``(C, H, W)``, ``(C, length)``, ``(C, D, H, W)`` or ``(features,)``.
        device: Device of the samples.
        mean: Mean of the pixels of each channel; see :class:`ProceduralImages`. Rows need none.
        std: Standard deviation of the pixels of each channel.
    """

    title = "Procedural"
    color = "#b45309"
    marker = "H"

    def __init__(
        self,
        input_shape: int | Sequence[int],
        device: torch.device | str = "cpu",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, device)
        shape = self.input_shape
        if len(shape) == 1:
            self.source: ProceduralSource = RandomRows(shape, device)
        else:
            self.source = (Volumes if len(shape) == 4 else _Mix)(shape, device, mean, std)

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        return self.source.sample(n, seed)


class Volumes(PixelSource):
    """Volumes of three kinds, a third each: random fields, bands around their level sets, and regions of one value.

    Regions are where a smooth field exceeds random thresholds; each has one value per channel, and a weak random field
    is added. Values are about N(0, 1) over all volumes.

    Args:
        input_shape: ``(C, D, H, W)``.
        device, mean, std: See :class:`PixelSource`.

    Raises:
        ValueError: If the shape is not (C, D, H, W), or mean and standard deviation are not those of pixels.
    """

    title = "Volumes"
    color = "#0369a1"
    marker = "X"
    dimensions = (4,)
    expected = "Expected `input_shape` of a volume (C, D, H, W), but got {}."

    @property
    def chunk(self) -> int:
        """Number of volumes that are drawn together: as many values as in large images."""
        return max(_CHUNK * 1024 // math.prod(self.input_shape), 3)

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` volumes of all kinds, in random order."""
        count, channels = -(-n // 3), shape[0]

        def normal(channels: int = 1) -> Tensor:
            return torch.randn(count, channels, 1, 1, 1, generator=rng)

        textures = draw_fields(3 * count, shape, rng, (1.0, 4.0)).split(count)
        levels, thresholds = draw_fields(2 * count, (1, *shape[1:]), rng, (3.0, 6.0)).split(count)
        share = 0.3 * torch.rand(count, 1, 1, 1, 1, generator=rng)
        plain = (1 - share).sqrt() * textures[0] + share.sqrt() * normal()
        distance = (levels - normal()).abs()  # its mean is 1.13, its deviation 0.85
        bands = (1.13 - distance) / 0.85 + 0.3 * textures[1]
        regions = normal(channels)
        for _ in range(3):
            inside = thresholds > normal()
            regions = torch.where(inside, normal(channels), regions)
        values = torch.cat([plain, bands, regions + 0.3 * textures[2]])
        return values[torch.randperm(len(values), generator=rng)[:n]]


class _Mix(ProceduralImages):
    """Images or signals of all kinds, and compositions of two of them."""

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw ``n`` images of all kinds, in random order."""
        kinds: list[ProceduralImages] = [kind(self.input_shape) for kind in (Leaves, Strokes, Blobs)]
        kinds += [Waves(self.input_shape)] if shape[1] == 1 else []
        count = -(-n // (len(kinds) + 1))
        plain = torch.cat([kind.draw(count, shape, rng) for kind in kinds])
        first, second = (plain[torch.randint(len(plain), (count,), generator=rng)] for _ in range(2))
        mask = torch.sigmoid(4 * draw_fields(count, (1, *shape[1:]), rng, (3.0, 6.0)) + 2 * _normal(count, rng))
        values = torch.cat([plain, torch.lerp(first, second, mask)])
        return values[torch.randperm(len(values), generator=rng)[:n]]
