"""KegNet's source: frozen generators that were trained with the teacher."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.networks import FrozenModule, TeacherNorm
from kegnet_pl.networks.execution import chunk_size
from kegnet_pl.runtime.distributed import concatenate
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.base import Prior, SyntheticSource

_ROWS = 8192
"""Number of samples to which noise is added at once."""


def sample_labels_and_noise(n: int, classes: int, noise_dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``n`` inputs of a generator (PAPER section 2), on the device of the random number generator.

    Returns:
        Noise ``(n, noise_dim)``, standard normal, and one-hot labels ``(n, classes)``, classes uniform.
    """
    device = generator.device
    labels = torch.randint(classes, (n,), generator=generator, device=device)
    z = torch.randn(n, noise_dim, generator=generator, device=device)
    return z, functional.one_hot(labels, classes).to(z.dtype)


class GeneratorSource(SyntheticSource):
    """Frozen generators: the same labels and noise pass through each of them (PAPER section 1).

    Args:
        generators: One or more, with attributes ``noise_dim`` and ``classes``. They are copied and frozen.
        device: Device of the generators.
        chunk: Samples per forward pass; None to fit the device.
        norm: Statistics of the generators' batch norm. ``"running"``: the stored ones. ``"batch"``: those of each
            chunk, as in training; ``chunk`` is then required, and should be about a batch of the training.
        noise_std: Standard deviation of Gaussian noise that is added to every sample (Bishop, "Training with Noise is
            Equivalent to Tikhonov Regularization", 1995): it spreads samples, which cluster where the teacher is
            certain.

    Raises:
        ValueError: If there is no generator, the chunk is missing, or ``noise_std`` is negative.
    """

    title = "KegNet"
    color = "#2468d8"
    marker = "o"
    prior: Prior = "teacher"
    needs_generators = True

    def __init__(
        self,
        generators: Sequence[nn.Module],
        device: torch.device | str = "cpu",
        chunk: int | None = None,
        norm: TeacherNorm = "running",
        noise_std: float = 0.0,
    ) -> None:
        super().__init__()
        if not generators:
            raise ValueError("Expected at least one generator, but got none.")
        if not noise_std >= 0:
            raise ValueError(f"Expected `noise_std` of at least 0, but got {noise_std}.")
        if norm == "batch" and chunk is None:
            raise ValueError(
                "Expected `chunk`, the number of samples per forward pass, since `norm` is 'batch', but got None."
            )
        self.generators = nn.ModuleList(FrozenModule(generator, norm) for generator in generators).to(device)
        self.multiple = len(generators)
        self.noise_dim = int(generators[0].noise_dim)  # type: ignore[arg-type]
        self.classes = int(generators[0].classes)  # type: ignore[arg-type]
        self.device = torch.device(device)
        self.chunk = chunk
        self.noise_std = noise_std
        with torch.no_grad():  # two, as a batch of one has no statistics
            z, y = torch.zeros(2, self.noise_dim, device=device), torch.zeros(2, self.classes, device=device)
            first: Any = self.generators[0].network
            self.input_shape = tuple(first(z, y).shape[1:])

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples, the same number from each generator.

        Raises:
            ValueError: If ``n`` cannot be shared out evenly.
        """
        count = self.multiple
        if n < count or n % count:
            raise ValueError(
                f"Expected the number of samples to be a multiple of the {count} generators, but got {n}. "
                f"Try {max(1, round(n / count)) * count}."
            )
        # Noise from the CPU, as it is not the same on another device.
        z, y = sample_labels_and_noise(n // count, self.classes, self.noise_dim, stream(seed, "synthetic"))
        x = self.generate(range(count), z, y)
        if self.noise_std:
            noise = torch.randn(x.shape, generator=stream(seed, "noise_std"))
            for rows, values in zip(x.split(_ROWS), noise.split(_ROWS), strict=True):
                rows.add_(values.to(rows), alpha=self.noise_std)
        return x

    @torch.no_grad()
    def generate(self, indices: Sequence[int], z: Tensor, y: Tensor) -> Tensor:
        """Return the samples of some generators, one after another, on their device.

        Args:
            indices: The K generators.
            z: Noise ``(N, Z)``.
            y: One-hot labels ``(N, C)``.

        Returns:
            Samples ``(K N, *input_shape)``.
        """
        z, y = z.to(self.device), y.to(self.device)
        networks: list[Any] = [self.generators[index].network for index in indices]
        chunk = self.chunk or chunk_size(self.input_shape, self.device)
        # Of about one size: a batch of one has no statistics.
        count = max(round(len(z) / chunk), 1)
        noise, labels = z.tensor_split(count), y.tensor_split(count)
        lengths = [len(part) for part in noise] * len(networks)
        return concatenate(
            lambda part: networks[part // count](noise[part % count], labels[part % count]), lengths, self.device
        )
