"""Synthetic data: samples from frozen generators or from noise, labelled by the teacher."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.data.base import Split
from kegnet_pl.data.loading import STEPS_PER_BATCH, TensorLoader, chunk_size
from kegnet_pl.networks import FrozenModule, TeacherNorm, prefer_channels_last
from kegnet_pl.seeds import derive_seed, stream

Noise = Literal["uniform", "normal"]


class SyntheticSource(nn.Module, ABC):
    """Something that samples can be drawn from."""

    @abstractmethod
    def draw(self, n: int, seed: int) -> Tensor:
        """Draw samples.

        Args:
            n: Number of samples.
            seed: The same seed gives the same samples.

        Returns:
            Samples ``(n, *input_shape)``, on the source's device.
        """


def draw_labels_and_noise(n: int, classes: int, noise_dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what a generator is fed with (PAPER section 2), on the device of ``generator``.

    Args:
        n: Number of pairs.
        classes: Number of classes.
        noise_dim: Dimensions of the noise.
        generator: Where the random numbers come from.

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
        device: Where they compute.
        chunk: Samples at a time; None for what suits the device.
        norm: Statistics of the generators' batch norm: ``"running"``, or ``"batch"``, those of each chunk, as when they
            were trained. The chunk, about as large as a batch of that training, must then be given.
        jitter: Standard deviation of Gaussian noise that is added to every sample (Bishop, "Training with Noise is
            Equivalent to Tikhonov Regularization", 1995): samples crowd where the teacher is sure, and then cover what
            lies between them.

    Raises:
        ValueError: If there is no generator, the chunk is missing, or ``jitter`` is negative.
    """

    def __init__(
        self,
        generators: Sequence[nn.Module],
        device: torch.device | str = "cpu",
        chunk: int | None = None,
        norm: TeacherNorm = "running",
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        if not generators:
            raise ValueError("Expected at least one generator, but got none.")
        if not jitter >= 0:
            raise ValueError(f"Expected `jitter` of at least 0, but got {jitter}.")
        if norm == "batch" and chunk is None:
            raise ValueError("Expected `chunk`, samples at a time, where `norm` is 'batch', but got None.")
        self.generators = nn.ModuleList(FrozenModule(generator, norm) for generator in generators).to(device)
        self.noise_dim = int(generators[0].noise_dim)  # type: ignore[arg-type]
        self.classes = int(generators[0].classes)  # type: ignore[arg-type]
        self.device = torch.device(device)
        self.chunk = chunk
        self.jitter = jitter

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples, the same number from each generator.

        Raises:
            ValueError: If ``n`` cannot be shared out evenly.
        """
        count = len(self.generators)
        if n < count or n % count:
            raise ValueError(
                f"Expected the number of samples to be a multiple of the {count} generators, but got {n}. "
                f"Try {max(1, round(n / count)) * count}."
            )
        # Noise from the CPU, as it is not the same on another device.
        z, y = draw_labels_and_noise(n // count, self.classes, self.noise_dim, stream(seed, "synthetic"))
        x = torch.cat([self.generate(index, z, y) for index in range(count)])
        if self.jitter:
            x.add_(torch.randn(x.shape, generator=stream(seed, "jitter")).to(x), alpha=self.jitter)
        return x

    @torch.no_grad()
    def generate(self, index: int, z: Tensor, y: Tensor) -> Tensor:
        """Return one generator's samples ``(N, *input_shape)``, on its device, for ``z (N, Z)`` and ``y (N, C)``."""
        network = self.generators[index].network
        z, y = z.to(self.device), y.to(self.device)
        chunk = self.chunk or chunk_size(network(z[:1], y[:1]).shape[1:], self.device)  # type: ignore[operator]
        # Of about one size: a batch of one has no statistics.
        count = max(round(len(z) / chunk), 1)
        pieces = zip(z.tensor_split(count), y.tensor_split(count), strict=True)
        return torch.cat([network(a, b) for a, b in pieces])  # type: ignore[operator]


class NoiseSource(SyntheticSource):
    """The paper's baselines: inputs from U(-1, 1) or N(0, 1), independent of everything.

    Args:
        distribution: ``"uniform"`` or ``"normal"``.
        input_shape: Shape of one sample, or a number of features.

    Raises:
        ValueError: If ``distribution`` is unknown.
    """

    def __init__(self, distribution: Noise, input_shape: int | Sequence[int]) -> None:
        super().__init__()
        if distribution not in get_args(Noise):
            raise ValueError(f"Expected `distribution` to be one of {get_args(Noise)}, but got {distribution!r}.")
        self.distribution = distribution
        self.input_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)

    def draw(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        generator = stream(seed, "synthetic")
        shape = (n, *self.input_shape)
        if self.distribution == "uniform":
            return torch.rand(shape, generator=generator) * 2 - 1
        return torch.randn(shape, generator=generator)


class SyntheticDataModule(LightningDataModule):
    """Samples of a source with the teacher's logits as labels: all the student ever sees.

    Batches are ``(x, teacher_logits)`` of shapes ``(B, *input_shape)`` and ``(B, C)``. The validation split is drawn
    from the same source with another seed.

    Args:
        source: Where samples come from.
        teacher: Labels them, in evaluation mode. It is copied and frozen.
        samples: Training samples.
        validation_samples: Validation samples; 0 for none.
        real_validation: Real validation samples in place of synthetic ones: only to select an epoch as the authors'
            release does. Validation batches are then ``(x, y)`` with classes ``(B,)``.
        batch_size: Samples of one optimiser step, over all processes.
        shuffle: Whether to shuffle every epoch; the paper's release visits them in their order.
        fresh: Whether to draw new training samples for every epoch.
        seed: Seed of the draw and of the order.
        device: Where the teacher labels, and where samples and labels stay: where the student is trained.

    Raises:
        ValueError: If a count is out of range.
    """

    def __init__(
        self,
        source: SyntheticSource,
        teacher: nn.Module,
        *,
        samples: int,
        validation_samples: int = 0,
        real_validation: Split | None = None,
        batch_size: int = 64,
        shuffle: bool = True,
        fresh: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("samples", samples, 1),
            ("validation_samples", validation_samples, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"Expected `{name}` of at least {least}, but got {value}.")
        self.source = source
        self.teacher = FrozenModule(teacher).to(device)
        self.device = torch.device(device)
        self.samples = samples
        self.validation_samples = validation_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.fresh = fresh
        self.seed = seed
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}
        self.made = 0
        self.seconds = {"draw": 0.0, "label": 0.0}
        self.seconds_between_steps = 0.0
        self.real_validation = real_validation

    @torch.no_grad()
    def label(self, x: Tensor) -> Tensor:
        """Return the teacher's logits ``(N, C)`` for samples ``(N, *input_shape)``, on the module's device."""
        size = chunk_size(x.shape[1:], self.device)
        return torch.cat([self.teacher(piece.to(self.device)) for piece in x.split(size)])

    def label_entropies(self) -> Tensor:
        """Return the entropy of the teacher's label of every training sample ``(N,)``, in nats: 0 where it is sure."""
        logits = self.splits["train"][1].double()
        entropies: Tensor = torch.distributions.Categorical(logits=logits).entropy()
        return entropies.cpu()

    def sample(self, n: int) -> Tensor:
        """Return ``n`` of the training samples, or all, at equal distances: from all generators."""
        x = self.splits["train"][0]
        return x[torch.linspace(0, len(x) - 1, min(n, len(x)), device=x.device).round().long()]

    def setup(self, stage: str | None = None) -> None:
        """Draw and label once; every process draws the same and trains on its share."""
        if self.splits:
            return
        for part, count in (("train", self.samples), ("val", self.validation_samples)):
            if count:
                self.splits[part] = self._draw(count, derive_seed(self.seed, part))
        if self.real_validation is not None:
            self.splits["val"] = (self.real_validation.x.to(self.device), self.real_validation.y.to(self.device))

    def _draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        start = time.perf_counter()
        x = self.source.draw(count, seed).to(self.device)
        drawn = self._clock()
        if not self.splits:  # once: it tries the network
            prefer_channels_last(self.teacher, x.shape[1:])
        logits = self.label(x)
        self.made += count
        self.seconds["draw"] += drawn - start
        self.seconds["label"] += self._clock() - drawn
        return x, logits

    def _draw_again(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw and label an epoch's own samples; the first epoch has those of the start."""
        if epoch == 0:
            return self.splits["train"]
        start = time.perf_counter()
        drawn = self._draw(self.samples, derive_seed(self.seed, "train", epoch))
        self.seconds_between_steps += time.perf_counter() - start
        return drawn

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # twice a stage; else the work would count where it is waited for
        return time.perf_counter()

    def _loader(self, part: str, **options: Any) -> TensorLoader:
        return TensorLoader(
            *self.splits[part], batch_size=self.batch_size, trainer=self.trainer, seed=self.seed, **options
        )

    def train_dataloader(self) -> TensorLoader:
        """Lists of training batches ``(x, teacher_logits)``, an optimiser step each."""
        refresh = self._draw_again if self.fresh else None
        return self._loader("train", shuffle=self.shuffle, train=True, steps=STEPS_PER_BATCH, refresh=refresh)

    def val_dataloader(self) -> TensorLoader | list[Any]:
        """Validation batches ``(x, teacher_logits)``, none where there are no validation samples."""
        return self._loader("val") if "val" in self.splits else []
