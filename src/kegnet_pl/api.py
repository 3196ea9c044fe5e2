"""The library without Hydra: train generators for a network, draw from them, compress, distil.

What is here is stable and is exported by :mod:`kegnet_pl` itself::

    import kegnet_pl

    generators = kegnet_pl.train_generators(teacher, input_shape=(1, 32, 32))
    data = generators.dataset(16_000)
    small = kegnet_pl.compress(teacher, input_shape=(1, 32, 32), target=4.0)
    student = kegnet_pl.distil(small.network, data)

Nothing here writes a file, moves torch's global random state, or changes a network that it is given.
"""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from kegnet_pl.artefacts import load_network
from kegnet_pl.compression import Compressed, CompressionPlan, Rule
from kegnet_pl.data.synthetic import GeneratorSource, SyntheticDataModule, SyntheticSource
from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DistillationLoss, DiversityLoss, GeneratorObjective
from kegnet_pl.modules import GeneratorModule, Hints, StudentModule
from kegnet_pl.modules.base import LRSchedule, SteppedModule
from kegnet_pl.networks import (
    Decoder,
    DenseGenerator,
    ImageGenerator,
    StackedModule,
    TeacherNorm,
    adapt_norm,
    count_classes,
    layers_named,
    prefer_channels_last,
)
from kegnet_pl.progress import StageProgress, make_console
from kegnet_pl.reporting.pixels import grid, sheet_rows
from kegnet_pl.schema import PRECISION
from kegnet_pl.seeds import derive_seed, stream
from kegnet_pl.stages.generators import faster_together, teacher_for
from kegnet_pl.stages.student import ADAPTING_SAMPLES
from kegnet_pl.training import LIGHTNING_LOGGERS, quiet_lightning, run_fit

Device = torch.device | str
Terms = Mapping[str, float]
Norm = Literal["batch", "frozen", "adapt"]

_IMAGE_SIDE = 32


@dataclass(frozen=True)
class Generators:
    """Trained generators, and what they were trained for.

    Attributes:
        networks: Called with noise ``(B, Z)`` and one-hot labels ``(B, C)``; on the CPU, in evaluation mode.
        decoders: Read the noise ``(B, Z)`` from samples, one a generator; on the CPU, in evaluation mode.
        teacher: The network they were trained for, a copy; on the CPU, in evaluation mode.
        input_shape: Shape of one sample.
        classes: Number of classes.
        device: Where samples are drawn.
        metrics: Of every generator, those of its last epoch: ``train/loss``, ``train/accuracy``, ...
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

    def source(self, jitter: float = 0.0) -> GeneratorSource:
        """Return what samples are drawn from: all generators, frozen, in turn."""
        return GeneratorSource(self.networks, self.device, jitter=jitter)

    def draw(self, n: int, *, seed: int = 0, jitter: float = 0.0) -> Tensor:
        """Draw samples of random classes.

        Args:
            n: Number of samples, a multiple of the number of generators.
            seed: The same seed gives the same samples.
            jitter: Standard deviation of Gaussian noise that is added.

        Returns:
            ``(n, *input_shape)``, on the CPU.

        Raises:
            ValueError: If ``n`` cannot be shared out evenly.
        """
        return self.source(jitter).draw(n, seed).cpu()

    def dataset(self, samples: int = 16_000, *, seed: int = 0, jitter: float = 0.0) -> "SyntheticDataset":
        """Draw samples and let the teacher label them: what a student learns from; see :class:`SyntheticDataset`."""
        return SyntheticDataset(self.source(jitter), self.teacher, samples, seed=seed, device=self.device)

    @torch.no_grad()
    def of_class(self, label: int, n: int, *, seed: int = 0, index: int = 0) -> Tensor:
        """Return ``n`` samples ``(n, *input_shape)`` that one generator makes for a class, on the CPU."""
        network = self._network(index)
        z = torch.randn(n, self.noise_dim, generator=stream(seed, "of_class"))
        x: Tensor = network(z, self._one_hot(label).expand(n, -1))
        return x

    @torch.no_grad()
    def walk(self, start: int, end: int, *, steps: int = 11, seed: int = 0, index: int = 0) -> tuple[Tensor, Tensor]:
        """Walk from one class to another at the same noise.

        Args:
            start: First class.
            end: Last class.
            steps: Samples on the way, with both ends.
            seed: Of the noise.
            index: Which generator.

        Returns:
            Samples ``(steps, *input_shape)`` and the teacher's probabilities ``(steps, C)``, on the CPU.
        """
        network = self._network(index)
        z = torch.randn(1, self.noise_dim, generator=stream(seed, "walk"))
        share = torch.linspace(0, 1, steps)[:, None]
        x = network(z.expand(steps, -1), (1 - share) * self._one_hot(start) + share * self._one_hot(end))
        return x, self.teacher(x).softmax(dim=1)

    def _network(self, index: int) -> nn.Module:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected `index` from 0 to {len(self) - 1}, one of the generators, but got {index}.")
        return self.networks[index]

    def _one_hot(self, label: int) -> Tensor:
        if not 0 <= label < self.classes:
            raise IndexError(f"Expected a class from 0 to {self.classes - 1}, but got {label}.")
        return torch.eye(self.classes)[label]

    @torch.no_grad()
    def confidence(self, n: int = 100, *, seed: int = 0) -> Tensor:
        """Return the teacher's mean probability of the intended class ``(G, C)``, over ``n`` samples each."""
        rows = [
            [self.teacher(self.of_class(label, n, seed=seed, index=index)).softmax(dim=1)[:, label].mean()
             for label in range(self.classes)]
            for index in range(len(self))
        ]  # fmt: skip
        return torch.stack([torch.stack(row) for row in rows])

    def sheet(self, rows: int = 4, *, seed: int = 0, index: int = 0, scale: int = 2) -> Image.Image:
        """Return a picture of samples: for images a column a class, for tables a row a class.

        Args:
            rows: Samples a class.
            seed: Of the noise.
            index: Which generator.
            scale: Pixels of the picture for one of a sample.
        """
        samples = [self.of_class(label, rows, seed=seed, index=index) for label in range(self.classes)]
        return to_image(sheet_rows(samples, rows), scale)


class SyntheticDataset(TensorDataset):
    """Synthetic samples ``x (*input_shape)`` with the teacher's logits ``(C,)``, in memory, on the CPU.

    A ``torch.utils.data.Dataset``, for any ``DataLoader``; :func:`distil` takes it as it is.

    Args:
        source: Where samples come from: :meth:`Generators.source`, or :class:`NoiseSource` for the paper's baselines.
        teacher: Returns logits. It is copied and frozen.
        samples: How many; a multiple of the number of generators.
        seed: The same seed gives the same samples.
        device: Where the teacher labels them; ``"auto"``: a GPU if there is one.

    Raises:
        ValueError: If ``samples`` is out of range.
    """

    def __init__(
        self,
        source: SyntheticSource,
        teacher: nn.Module,
        samples: int = 16_000,
        *,
        seed: int = 0,
        device: Device = "auto",
    ) -> None:
        data = SyntheticDataModule(source, teacher, samples=samples, seed=seed, device=_device(device))
        data.setup()
        super().__init__(*(tensor.cpu() for tensor in data.splits["train"]))
        self.source = source
        self.teacher = data.teacher.network.cpu()
        self.seed = seed
        self.label_entropy = float(data.label_entropies().mean())
        """Mean entropy of the teacher's labels, in nats: 0 where it is sure of every sample."""


def train_generators(
    teacher: nn.Module,
    input_shape: int | Sequence[int],
    *,
    count: int = 5,
    epochs: int = 20,
    steps_per_epoch: int = 50,
    batch_size: int = 256,
    lr: float = 1e-3,
    lr_schedule: LRSchedule = "constant",
    objective: GeneratorObjective | Terms | None = None,
    noise_dim: int = 10,
    make_generator: Callable[[], nn.Module] | None = None,
    make_decoder: Callable[[], nn.Module] | None = None,
    teacher_norm: TeacherNorm = "batch",
    seed: int = 0,
    device: Device = "auto",
    precision: Any = "32-true",
    logger: Logger | Sequence[Logger] | bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Generators:
    """Train generators against a frozen network until it recognises what they make (PAPER sections 1 and 2).

    Args:
        teacher: Any network that returns logits ``(B, C)``. It stays as it is.
        input_shape: Shape of one sample of it: ``(channels, 32, 32)``, or the number of features; any other one needs
            ``make_generator``. Samples are standardised, as the teacher's own input should have been.
        count: Generators, trained independently; a student learns more from several.
        epochs: Epochs; the paper's images have 200 of 100 steps.
        steps_per_epoch: Optimiser steps of an epoch.
        batch_size: Samples of a step.
        lr: Adam's learning rate.
        lr_schedule: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        objective: Weights of the terms ``classifier``, ``decoder`` and ``diversity``, or an objective of your own;
            None for the paper's: 1, 1 and 1, without diversity for rows of features.
        noise_dim: Dimensions of the noise.
        make_generator: Returns a new generator with attributes ``noise_dim`` and ``classes``.
        make_decoder: Returns a new decoder from samples to noise.
        teacher_norm: Statistics of the teacher's batch norm: ``"batch"``, as in the paper's release, or ``"running"``.
        seed: All random numbers derive from it.
        device: Where to train; ``"auto"``: a GPU if there is one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers.
        callbacks: Further Lightning callbacks.
        progress: Whether to show how far it is.

    Returns:
        The trained generators.

    Raises:
        ValueError: If the teacher, the generator or the decoder does not take such samples.
    """
    where = _device(device)
    _check(
        precision, where, count=(count, 1), epochs=(epochs, 1), steps_per_epoch=(steps_per_epoch, 1),
        batch_size=(batch_size, 2), noise_dim=(noise_dim, 1),
    )  # fmt: skip
    input_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    classes = count_classes(teacher, input_shape, "teacher")
    make_generator = make_generator or _default_generator(input_shape, classes, noise_dim)
    make_decoder = make_decoder or partial(Decoder, input_shape, noise_dim, blocks=1 if len(input_shape) == 3 else 2)
    pairs = []
    for index in range(count):
        with _seeded(derive_seed(seed, "generator", index)):
            pairs.append((make_generator(), make_decoder()))
    _check_shapes(*pairs[0], classes, input_shape)
    fits = [list(range(count))] if count > 1 and faster_together(where, input_shape) else [[i] for i in range(count)]
    metrics: list[dict[str, float]] = []
    bar = StageProgress("generators", make_console(), len(fits)) if progress else None
    with bar or nullcontext():
        for number, indices in enumerate(fits):
            if bar is not None:
                bar.next_fit(number)
            mine = [pairs[index] for index in indices]
            alone = len(mine) == 1
            module = GeneratorModule(
                mine[0][0] if alone else StackedModule([generator for generator, _ in mine]),
                mine[0][1] if alone else StackedModule([decoder for _, decoder in mine]),
                teacher_for(teacher, input_shape, precision),
                _objective(objective, input_shape),
                partial(torch.optim.Adam, lr=lr),
                batch_size=batch_size,
                steps_per_epoch=steps_per_epoch,
                teacher_norm=teacher_norm,
                lr_schedule=lr_schedule,
                seed=seed,
                index=indices[0],
            )
            own = [*callbacks, *([bar] if bar is not None else [])]
            _fit(module, None, epochs, where, precision, own, logger)
            metrics += module.means
            for place, pair in enumerate(mine):
                for stacked, single in zip((module.generator, module.decoder), pair, strict=True):
                    if isinstance(stacked, StackedModule):
                        stacked.take(place, single)
    return Generators(
        [generator.cpu().eval() for generator, _ in pairs],
        [decoder.cpu().eval() for _, decoder in pairs],
        _frozen(teacher),
        input_shape,
        classes,
        where,
        metrics,
    )


def load_generators(folder: str | Path, teacher: str | Path | nn.Module, device: Device = "auto") -> Generators:
    """Read the generators of a finished run.

    Args:
        folder: Folder of the stage: ``STORE/generators-...``, which the run names.
        teacher: The network they were trained for, or the folder of its stage.
        device: Where samples will be drawn; ``"auto"``: a GPU if there is one.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the teacher is another one.
    """
    folder = Path(folder)
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"Expected a folder of finished generators, but {folder} has no manifest.json.")
    content = json.loads(manifest.read_text())
    if content["stage"] != "generators":
        raise FileNotFoundError(f"Expected a folder of generators, but {folder} holds {content['stage']}.")
    settings, metrics = content["config"], content["metrics"]["generators"]
    names = sorted(metrics, key=int)
    teacher = teacher if isinstance(teacher, nn.Module) else load_network(teacher)
    classes = count_classes(teacher, settings["input_shape"], "teacher")
    if classes != settings["classes"]:
        raise ValueError(
            f"Expected the teacher of these generators, of {settings['classes']} classes, but got one of {classes}."
        )
    return Generators(
        [load_network(folder, f"generator_{name}") for name in names],
        [load_network(folder, f"decoder_{name}") for name in names],
        _frozen(teacher),
        tuple(settings["input_shape"]),
        classes,
        _device(device),
        [metrics[name] for name in names],
    )


def compress(
    network: nn.Module,
    input_shape: int | Sequence[int],
    target: float | None = None,
    *,
    rules: Mapping[str, Any] | None = None,
    when_larger: Literal["keep", "compress"] = "keep",
) -> Compressed:
    """Factorise the layers of a network (Tucker-2 for convolutions, PAPER section 4).

    Args:
        network: Any network. It stays as it is.
        input_shape: Shape of one sample.
        target: Compression ratio of the whole network, parameters before / after.
        rules: Pattern of layer names -> rank (a number, a fraction, ``"evbmf"``, ``"full"``, ``"target"``, or
            ``{"in": ..., "out": ...}``); the first that matches a layer decides. None: every layer, for the target, or
            by EVBMF where there is none.
        when_larger: What to do with a layer that its factorisation would enlarge.

    Returns:
        ``network``, the smaller one, and ``ledger``, what every layer cost before and after.

    Raises:
        ValueError: If a pattern matches no layer, a rank is out of range, the target is out of reach, or the network
            does not take such samples.
    """
    if rules is None:
        rules = {"*": "evbmf" if target is None else "target"}
    input_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    plan = CompressionPlan([Rule(layers, rank) for layers, rank in rules.items()], target, when_larger)
    try:
        compressed: Compressed = plan.apply(network, input_shape)
    except RuntimeError as error:
        raise ValueError(
            f"Expected the network {type(network).__name__} to take samples of shape {tuple(input_shape)}, but it "
            f"failed: {str(error).splitlines()[0]}"
        ) from error
    return compressed


def distil(
    student: nn.Module,
    data: SyntheticDataset,
    *,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_schedule: LRSchedule = "constant",
    temperature: float = 4.0,
    norm: Norm = "batch",
    dropout: bool = True,
    features: float = 0.0,
    feature_layers: Sequence[str] | None = None,
    fresh: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    device: Device = "auto",
    precision: Any = "32-true",
    logger: Logger | Sequence[Logger] | bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> nn.Module:
    """Teach a network what the teacher says about synthetic samples (PAPER sections 1 and 5).

    Args:
        student: Returns logits ``(B, C)``: a compressed teacher, or any other network. It stays as it is.
        data: Samples and the teacher's logits.
        epochs: Passes over the samples.
        batch_size: Samples of an optimiser step.
        lr: Adam's learning rate.
        lr_schedule: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        temperature: Softens both answers.
        norm: Statistics of the student's batch norm: ``"batch"``, of synthetic samples; ``"frozen"``, those it has;
            ``"adapt"``, set before training so that layers return what the teacher's do (:func:`adapt_norm`).
        dropout: Whether the student's dropout is on.
        features: Weight of what the student's layers learn from the teacher's of the same names.
        feature_layers: Patterns of their names; None for all batch-norm layers.
        fresh: Whether to draw new samples for every epoch.
        shuffle: Whether to shuffle every epoch.
        seed: Of the order, of dropout, and of fresh samples.
        device: Where to train; ``"auto"``: a GPU if there is one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers.
        callbacks: Further Lightning callbacks.
        progress: Whether to show how far it is.

    Returns:
        The trained student, a copy; on the CPU, in evaluation mode.

    Raises:
        ValueError: If the student does not answer like the teacher, or ``norm`` or ``features`` ask for layers that it
            does not share with the teacher.
    """
    where = _device(device)
    _check(precision, where, epochs=(epochs, 1), features=(features, 0))
    if norm not in (norms := get_args(Norm)):
        raise ValueError(f"Expected `norm` to be one of {norms}, but got {norm!r}.")
    if not isinstance(data, SyntheticDataset):
        raise ValueError(
            f"Expected `data` to be a SyntheticDataset, which `Generators.dataset` returns, but got {data!r}."
        )
    x, logits = data.tensors
    classes = count_classes(student, tuple(x.shape[1:]), "student")
    if classes != logits.shape[1]:
        raise ValueError(f"Expected a student of the teacher's {logits.shape[1]} classes, but got {classes}.")
    network = prefer_channels_last(copy.deepcopy(student).requires_grad_(True), tuple(x.shape[1:])).to(where)
    module_data = SyntheticDataModule(
        data.source, data.teacher, samples=len(data), batch_size=batch_size, shuffle=shuffle, fresh=fresh, seed=seed,
        device=where,
    )  # fmt: skip
    module_data.splits["train"] = (x.to(where), logits.to(where))
    prefer_channels_last(module_data.teacher, tuple(x.shape[1:]))
    teacher = module_data.teacher.network
    if norm == "adapt":
        adapt_norm(network, teacher, module_data.sample(ADAPTING_SAMPLES))
    module = StudentModule(
        network,
        DistillationLoss(temperature),
        partial(torch.optim.Adam, lr=lr),
        lr_schedule=lr_schedule,
        norm="batch" if norm == "adapt" else norm,
        dropout=dropout,
        hints=Hints(teacher, layers_named(teacher, feature_layers), features) if features else None,
        seed=seed,
    )
    bar = StageProgress("student", make_console()) if progress else None
    with bar or nullcontext():
        _fit(module, module_data, epochs, where, precision, [*callbacks, *([bar] if bar is not None else [])], logger)
    return network.cpu().eval()


def to_image(rows: Sequence[Sequence[Tensor]], scale: int = 2) -> Image.Image:
    """Return samples in rows as a picture.

    Args:
        rows: Samples ``(C, H, W)`` or ``(F,)``, the same number in every row.
        scale: Pixels of the picture for one of a sample.
    """
    picture = Image.fromarray(grid(rows))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _fit(
    module: SteppedModule,
    data: LightningDataModule | None,
    epochs: int,
    device: torch.device,
    precision: Any,
    callbacks: Sequence[Callback],
    logger: Logger | Sequence[Logger] | bool,
) -> None:
    with _seeded(0), _quietly():
        trainer = Trainer(
            max_epochs=epochs,
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=precision,
            callbacks=list(callbacks),
            logger=list(logger) if isinstance(logger, Sequence) else logger,
            limit_val_batches=0,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        run_fit(trainer, module, data)
    module.to("cpu")


@contextmanager
def _quietly() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LIGHTNING_LOGGERS}
    quiet_lightning()
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let torch's global random numbers come from a seed for a while."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed % 2**32)
        yield


def _device(device: Device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Expected `device` to be 'auto', 'cpu', 'cuda' or 'cuda:1', but got {device!r}.") from error


def _frozen(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)


def _check(precision: Any, device: torch.device, **at_least: tuple[float, float]) -> None:
    for name, (value, least) in at_least.items():
        if not value >= least:
            raise ValueError(f"Expected `{name}` of at least {least}, but got {value}.")
    if precision not in PRECISION:
        raise ValueError(f"Expected `precision` to be one of {', '.join(PRECISION)}, but got {precision!r}.")
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("Expected `precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed'.")


def _default_generator(input_shape: tuple[int, ...], classes: int, noise_dim: int) -> Callable[[], nn.Module]:
    if len(input_shape) == 1:
        return partial(DenseGenerator, input_shape[0], classes, noise_dim)
    if len(input_shape) == 3 and input_shape[1:] == (_IMAGE_SIDE, _IMAGE_SIDE):
        return partial(ImageGenerator, input_shape[0], classes, noise_dim)
    raise ValueError(
        f"Expected `make_generator` for samples of shape {input_shape}: our own generators make (channels, 32, 32) and "
        f"(features,). Give a function that returns a module with `noise_dim` and `classes`, called with (z, y)."
    )


def _check_shapes(generator: nn.Module, decoder: nn.Module, classes: int, input_shape: tuple[int, ...]) -> None:
    noise_dim = int(generator.noise_dim)  # type: ignore[arg-type]
    with torch.no_grad():
        x = copy.deepcopy(generator).eval()(torch.zeros(2, noise_dim), torch.eye(classes)[:2])
        decoded = copy.deepcopy(decoder).eval()(x)
    if tuple(x.shape) != (2, *input_shape) or tuple(decoded.shape) != (2, noise_dim):
        raise ValueError(
            f"Expected a generator of samples {input_shape} and a decoder of {noise_dim} noise dimensions, but got "
            f"{tuple(x.shape[1:])} and {tuple(decoded.shape[1:])}."
        )


def _objective(given: GeneratorObjective | Terms | None, input_shape: tuple[int, ...]) -> GeneratorObjective:
    if isinstance(given, GeneratorObjective):
        return given
    terms = {"classifier": ClassifierLoss(), "decoder": DecoderLoss(), "diversity": DiversityLoss()}
    default = {"classifier": 1.0, "decoder": 1.0, "diversity": 1.0 if len(input_shape) == 3 else 0.0}
    weights = dict(default if given is None else given)
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ValueError(f"Expected weights of {sorted(terms)} in `objective`, but got {unknown[0]!r}.")
    return GeneratorObjective({name: terms[name] for name in weights}, weights)
