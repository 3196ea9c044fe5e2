"""Trained generators, and data sets of synthetic samples."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from kegnet_pl.api.checkpoints import damaged_stage, load_network, to_folder
from kegnet_pl.api.checks import check_counts
from kegnet_pl.data.synthetic import SyntheticDataModule
from kegnet_pl.networks import OutputKey, as_classifier, count_classes
from kegnet_pl.networks.handling import frozen_copy, move
from kegnet_pl.networks.validation import FORWARD_ERRORS, check_module, materialise, to_shape
from kegnet_pl.reporting.classes import shown_classes
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.runtime.errors import WeightsError, first_line
from kegnet_pl.runtime.manifests import DamagedError, read_manifest
from kegnet_pl.runtime.safe_files import exists, printable
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.runtime.storage import StorageLimits
from kegnet_pl.settings import Outputs
from kegnet_pl.sources import GeneratorSource, SyntheticSource
from kegnet_pl.training.progress import make_console, show_long_work

_ROWS = 2**16
"""Number of labels that are compared at once."""


@dataclass(frozen=True)
class Generators:
    """Trained generators, their decoders and their teacher.

    Attributes:
        networks: Generators, called with noise ``(B, Z)`` and one-hot labels ``(B, C)``; on the CPU, in evaluation
            mode.
        decoders: Decoders, one per generator, which return the noise ``(B, Z)`` of samples; on the CPU, in evaluation
            mode.
        teacher: A copy of the teacher; on the CPU, in evaluation mode.
        input_shape: Shape of one sample.
        classes: Number of classes.
        device: Device that draws samples.
        metrics: Metrics of the last epoch of every generator: ``train/loss``, ``train/accuracy``, ...
    """

    networks: Sequence[nn.Module]
    decoders: Sequence[nn.Module]
    teacher: nn.Module
    input_shape: tuple[int, ...]
    classes: int
    device: torch.device
    metrics: Sequence[Mapping[str, float]] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.networks)

    def __repr__(self) -> str:
        kind = type(self.networks[0]).__name__
        return f"Generators({len(self)} {kind}, samples of shape {self.input_shape}, {self.classes} classes)"

    @property
    def noise_dim(self) -> int:
        """Dimensions of the noise, Z."""
        return int(self.networks[0].noise_dim)  # type: ignore[arg-type]

    def source(self, noise_std: float = 0.0) -> GeneratorSource:
        """Return a source of samples from all generators, in turn."""
        return GeneratorSource(self.networks, self.device, noise_std=noise_std)

    def sample(self, n: int, *, seed: int = 0, noise_std: float = 0.0) -> Tensor:
        """Draw samples of random classes.

        Args:
            n: Number of samples, a multiple of the number of generators.
            seed: The same seed gives the same samples.
            noise_std: Standard deviation of Gaussian noise that is added to samples.

        Returns:
            Samples ``(n, *input_shape)``, on the CPU.

        Raises:
            ValueError: If ``n`` is not a multiple of the number of generators.
        """
        return self.source(noise_std).sample(n, seed).cpu()

    def dataset(
        self, samples: int = 16_000, *, seed: int = 0, noise_std: float = 0.0, memory: float | None = None,
        progress: bool = True,
    ) -> "SyntheticDataset":  # fmt: skip
        """Return a data set for a student: samples with labels of the teacher; see :class:`SyntheticDataset`."""
        return SyntheticDataset(
            self.source(noise_std), self.teacher, samples, seed=seed, device=self.device, memory=memory,
            progress=progress,
        )  # fmt: skip

    @torch.no_grad()
    def of_class(self, label: int, n: int, *, seed: int = 0, index: int = 0, batch_size: int | None = None) -> Tensor:
        """Return ``n`` samples ``(n, *input_shape)`` of a class from one generator, on the CPU.

        ``batch_size`` limits the samples of a forward pass; None draws all at once.
        """
        network = self._network(index)
        check_counts(n=(n, 1))
        z = torch.randn(n, self.noise_dim, generator=stream(seed, "of_class"))
        label_of_all = self._one_hot(label)
        return torch.cat([network(part, label_of_all.expand(len(part), -1)) for part in z.split(batch_size or n)])

    @torch.no_grad()
    def walk(self, start: int, end: int, *, steps: int = 11, seed: int = 0, index: int = 0) -> tuple[Tensor, Tensor]:
        """Interpolate the label between two classes, with the same noise.

        Args:
            start: First class.
            end: Last class.
            steps: Number of samples, including both ends.
            seed: Seed of the noise.
            index: Index of the generator.

        Returns:
            Samples ``(steps, *input_shape)`` and the teacher's probabilities ``(steps, C)``, on the CPU.
        """
        network = self._network(index)
        check_counts(steps=(steps, 2))
        z = torch.randn(1, self.noise_dim, generator=stream(seed, "walk"))
        share = torch.linspace(0, 1, steps)[:, None]
        x = network(z.expand(steps, -1), (1 - share) * self._one_hot(start) + share * self._one_hot(end))
        return x, self.teacher(x).softmax(dim=1)

    def _network(self, index: int) -> nn.Module:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected `index` of a generator, from 0 to {len(self) - 1}, but got {index}.")
        return self.networks[index]

    def _one_hot(self, label: int) -> Tensor:
        if not 0 <= label < self.classes:
            raise IndexError(f"Expected a class from 0 to {self.classes - 1}, but got {label}.")
        return torch.eye(self.classes)[label]

    @torch.no_grad()
    def confidence(
        self,
        n: int = 100,
        *,
        seed: int = 0,
        classes: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Return the teacher's mean probability of the intended class ``(G, C)``, over ``n`` samples per class.

        Args:
            n: Samples of a class.
            seed: Seed of the noise.
            classes: The classes; None for all.
            batch_size: Samples of a forward pass; None for all of a class at once.
        """
        labels = range(self.classes) if classes is None else classes
        check_counts(n=(n, 1))
        rows = []
        for index in range(len(self)):
            found = []
            for label in labels:
                x = self.of_class(label, n, seed=seed, index=index, batch_size=batch_size)
                found.append(torch.cat([self.teacher(part) for part in x.split(batch_size or n)]))
            rows.append(class_confidence(torch.stack(found), labels))
        return torch.stack(rows)

    def sheet(self, rows: int = 4, *, seed: int = 0, index: int = 0, scale: int = 2) -> Image.Image:
        """Return a picture of samples, with one column per class for images and one row per class for tables.

        With more than 50 classes, it shows 24 at equal distances.

        Args:
            rows: Number of samples per class.
            seed: Seed of the noise.
            index: Index of the generator.
            scale: Pixels of the picture per pixel of a sample.
        """
        from kegnet_pl.reporting.images import sheet_rows

        check_counts(rows=(rows, 1), scale=(scale, 1))
        samples = [self.of_class(label, rows, seed=seed, index=index) for label in shown_classes(self.classes)]
        return to_image(sheet_rows(samples, rows), scale)


class SyntheticDataset(TensorDataset):
    """Synthetic samples ``x (*input_shape)`` with the teacher's logits ``(C,)``, on the CPU.

    They are stored in memory, or in a temporary file if they exceed the memory budget. A set of more than 1 GiB is
    drawn in parts.

    It is a ``torch.utils.data.Dataset`` for any ``DataLoader``; :func:`distill` accepts it directly.

    Args:
        source: Source of the samples: :meth:`Generators.source`, or :class:`NoiseSource` for the paper's baselines.
        teacher: Any classifier. It is copied and frozen.
        samples: Number of samples, a multiple of the number of generators.
        seed: The same seed gives the same samples.
        device: Device of the teacher; ``"auto"`` is a GPU if there is one.
        outputs: Type of the output of the teacher, see :func:`train_generators`.
        output_key: Key, attribute or position of the output tensor, if it returns several; None finds it.
        memory: Memory budget of the samples, in GB (10^9 bytes); None for half of the free memory. A larger set is
            stored in a temporary file (in the folder of the variable TMPDIR), which is removed with the data set. The
            samples are the same. :func:`distill` uses the same budget.
        progress: True to print the progress of a draw that takes several seconds.

    Raises:
        ConfigError: If the samples fit neither into the memory budget nor on the disk.
        ValueError: If ``samples`` is out of range, the teacher does not accept the samples or does not return
            logits, or some samples or logits are NaN or infinite.

    It warns if the teacher returns the same logits for all samples.
    """

    def __init__(
        self,
        source: SyntheticSource,
        teacher: nn.Module,
        samples: int = 16_000,
        *,
        seed: int = 0,
        device: Device = "auto",
        outputs: Outputs = "auto",
        output_key: OutputKey = None,
        memory: float | None = None,
        progress: bool = True,
    ) -> None:
        check_counts(samples=(samples, 1), seed=(seed, 0))
        if memory is not None and not (isinstance(memory, Real) and memory >= 0):
            raise ValueError(f"Expected `memory` of at least 0 GB, or None, but got {memory!r}.")
        check_module(teacher, "teacher")
        if not isinstance(source, SyntheticSource):
            raise ValueError(
                f"Expected `source` to be a SyntheticSource, such as kegnet_pl.sources.Procedural(shape), but got "
                f"{type(source).__name__}."
            )
        try:
            with torch.inference_mode(mode=False):  # students are trained on these tensors
                if source.input_shape:
                    materialise(teacher, source.input_shape, "teacher")
                data = SyntheticDataModule(
                    source, teacher, samples=samples, seed=seed, device=find_device(device),
                    storage=StorageLimits(memory),
                    as_classifier=partial(as_classifier, outputs=outputs, key=output_key, name="teacher"),
                )  # fmt: skip
                with show_long_work("samples", make_console(quiet=not progress)):
                    data.setup()
        except ValueError:  # a source's message is complete
            raise
        except FORWARD_ERRORS as error:
            raise ValueError(
                f"Expected the teacher {type(teacher).__name__} to accept samples of the source, but it failed: "
                f"{first_line(error)}"
            ) from error
        x, logits = (tensor.cpu() for tensor in data.splits["train"])
        shape = tuple(x.shape[1:])
        count_classes(data.teacher.network, shape, "teacher")
        same = (torch.isclose(part, logits[:1], rtol=1e-6, atol=0).all() for part in logits.split(_ROWS))
        if len(logits) > 1 and all(same):
            warnings.warn(
                f"{type(teacher).__name__} returns the same logits for all {len(x)} samples. A student learns nothing "
                f"from them: check the weights of the teacher and the range of the samples.",
                stacklevel=2,
            )
        super().__init__(x, logits)
        self.source = source
        self.teacher = move(data.teacher.network, "cpu")
        self.seed = seed
        self.memory = memory
        self.input_shape = shape
        self.label_entropy = float(data.label_entropies().mean())
        """Mean entropy of the teacher's labels, in nats; 0 if all labels are certain."""


def load_generators(
    folder: str | Path, teacher: str | Path | nn.Module, device: Device = "auto", *, trust: Collection[str] = ()
) -> Generators:
    """Load the generators of a finished run.

    Args:
        folder: Folder of the stage, ``STORE/generators-...``, which the run prints.
        teacher: Teacher of the generators, or the folder of its stage.
        device: Device that draws samples; ``"auto"`` is a GPU if there is one.
        trust: Modules, classes and Python files whose code may run, see :func:`load_network`.

    Raises:
        FileNotFoundError: If the folder has no generators.
        WeightsError: If a file is damaged, or differs from the manifest.
        ValueError: If the generators were trained with another teacher, or the network has another number of classes
            (weights are not compared).
    """
    folder = to_folder(folder)
    manifest = folder / "manifest.json"
    if not exists(manifest):
        raise FileNotFoundError(
            f"Expected a folder of finished generators, but got {printable(folder, 300)} without manifest.json."
        )
    content = _read_manifest(folder)
    if content["stage"] != "generators":
        raise FileNotFoundError(f"Expected a folder of generators, but {folder} holds {printable(content['stage'])}.")
    try:
        config, parents = content["config"], content["parents"]
        shape, expected = to_shape(config["input_shape"]), int(config["classes"])
        metrics = {str(int(name)): dict(values) for name, values in content["metrics"]["generators"].items()}
        fingerprint = str(parents["teacher"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"Expected the generators of a finished run in {manifest}, but it is damaged "
            f"({printable(first_line(error), 300)}). Run its command again."
        ) from error
    names = sorted(metrics, key=int)
    if not isinstance(teacher, nn.Module):
        _check_teacher(to_folder(teacher), fingerprint)
        teacher = load_network(teacher, logits=True, trust=trust)
    teacher = as_classifier(teacher, shape, name="teacher")
    classes = count_classes(teacher, shape, "teacher")
    if classes != expected:
        raise ValueError(
            f"Expected the teacher of these generators, with {expected} classes, but got one with {classes}."
        )
    return Generators(
        [load_network(folder, f"generator_{name}", trust=trust) for name in names],
        [load_network(folder, f"decoder_{name}", trust=trust) for name in names],
        frozen_copy(teacher),
        shape,
        classes,
        find_device(device),
        [metrics[name] for name in names],
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a stage.

    Raises:
        WeightsError: If it is damaged.
    """
    try:
        content = read_manifest(folder)
        missing = {"stage", "fingerprint", "config", "parents", "metrics"} - set(content)
        if missing:
            raise DamagedError(f"manifest.json lacks {', '.join(sorted(missing))}")
    except DamagedError as error:
        raise damaged_stage(folder, error) from error
    return content


def _check_teacher(folder: Path, fingerprint: str) -> None:
    manifest = folder / "manifest.json"
    actual = _read_manifest(folder)["fingerprint"] if exists(manifest) else None
    if actual not in (None, fingerprint):  # without a manifest, load_network raises the error
        raise ValueError(
            f"Expected the teacher of these generators, teacher-{fingerprint}, but {folder} holds {actual}. Use the "
            f"teacher in the results of the generators' run."
        )


def class_confidence(logits: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Return the teacher's mean probability of the intended class, for every class: ``(K,)``, in [0, 1].

    ``logits`` has the shape ``(K, N, C)``: ``logits[k]`` belongs to ``N`` samples that were generated for
    ``classes[k]``. Without ``classes``, K = C, and they were generated for class k.

    Raises:
        ValueError: If the number of classes differs.
    """
    labels = range(logits.shape[-1]) if classes is None else classes
    if logits.ndim != 3 or logits.shape[0] != len(labels):
        raise ValueError(
            f"Expected `logits` of shape (K, N, C) for K = {len(labels)} classes, but got {tuple(logits.shape)}."
        )
    return logits.softmax(dim=2)[..., list(labels)].diagonal(dim1=0, dim2=2).mean(dim=0)


def to_image(rows: Sequence[Sequence[Tensor]], scale: int = 2) -> Image.Image:
    """Return a picture of rows of samples.

    Args:
        rows: Samples ``(C, H, W)`` or ``(F,)``, the same number in every row.
        scale: Pixels of the picture per pixel of a sample.
    """
    from kegnet_pl.reporting.images import grid

    picture = Image.fromarray(grid(rows))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
