"""Fits of compressed networks, generators and students, for the library and the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path

import torch
from pytorch_lightning import Callback
from torch import nn

from kegnet_pl.api.checks import check_counts
from kegnet_pl.api.learning_rate import best, describe_trials, recall_trials, try_learning_rates
from kegnet_pl.api.sampling import Generators
from kegnet_pl.api.spread import Pair, receive_pairs
from kegnet_pl.compression import (
    Calibration,
    Compressed,
    Plan,
    describe_structure,
    fittable_layers,
    measure_layers,
    reconstruct,
    split_attention,
)
from kegnet_pl.data.synthetic import StackedDataModule, SyntheticDataModule
from kegnet_pl.losses import DistillationLoss, GeneratorObjective
from kegnet_pl.networks import StackedModule, adapt_norm, count_classes, match_layers, prefer_channels_last
from kegnet_pl.networks.batch_norm import ADAPTING_SAMPLES, forget_counts
from kegnet_pl.networks.execution import first_weight, teacher_for
from kegnet_pl.networks.handling import copy_network, frozen_copy, move, set_mode, to_float32
from kegnet_pl.runtime.progress import listen_to_progress, progress_within
from kegnet_pl.runtime.seeds import derive_seed, seeded
from kegnet_pl.settings import DistillationSettings, GeneratorTrainingSettings
from kegnet_pl.sources import SyntheticSource, check_finite, select_samples
from kegnet_pl.sources.base import check_share
from kegnet_pl.sources.matching import match_share
from kegnet_pl.training import FeatureDistillation, GeneratorModule, StudentModule
from kegnet_pl.training.fit import Fit, Metrics
from kegnet_pl.training.generator_module import can_vectorize, find_failure, should_vectorize, vectorization_error
from kegnet_pl.training.optimizers import OptimizerFactory, with_learning_rate
from kegnet_pl.training.progress import StageProgress

_RECONSTRUCTION_SAMPLES = 2_500

_MATCHING = 0.4
"""Share of the time of a compression that the matching of its samples takes, roughly; it moves the bar."""


def fit_compression(
    network: nn.Module,
    shape: tuple[int, ...],
    plan: Plan,
    progress: StageProgress,
    source: SyntheticSource | None = None,
    samples: int = 0,
    oversampling: int = 1,
    matching: float = 0.0,
    seed: int = 0,
) -> Compressed:
    """Compress a network by its weights alone, or, with a source, by its outputs for samples.

    ``samples``, ``oversampling``, ``matching`` and ``seed`` describe the samples of the source; see
    :func:`kegnet_pl.compress`.

    Raises:
        ValueError: If an argument is out of range, or the network does not accept such samples.
    """
    drawn = 0.0

    def show_matching(share: float) -> None:
        nonlocal drawn
        drawn = _MATCHING * share
        progress.move_to(drawn)

    with torch.inference_mode(mode=False), progress:  # gradients by layers are needed
        if source is None:
            return plan.apply(network, shape, None, progress.move_to)
        with listen_to_progress(show_matching):
            calibration = _calibrate(network, shape, source, samples, oversampling, matching, seed)
        compressed = plan.apply(
            network, shape, calibration, lambda share: progress.move_to(drawn + (1 - drawn) * share)
        )
    return replace(compressed, held_out=len(calibration.held_out))


def _calibrate(
    network: nn.Module,
    shape: tuple[int, ...],
    source: SyntheticSource,
    samples: int,
    oversampling: int,
    matching: float,
    seed: int,
) -> Calibration:
    """Return samples of a source, and held-out samples that decide if the fit of a layer is kept."""
    check_counts(samples=(samples, 10), oversampling=(oversampling, 1))
    check_share(matching=matching)
    if not isinstance(source, SyntheticSource):
        raise ValueError(
            f"Expected `source` to be a SyntheticSource, such as NoiseSource('normal', {shape}), or None, but got "
            f"{source!r}."
        )
    weight = first_weight(network)
    count_classes(network if weight.dtype == torch.float32 else to_float32(copy_network(network)), shape)

    def draw(count: int, seed: int, start: float, share: float) -> torch.Tensor:
        candidates = count * oversampling
        x = source.sample(candidates, seed)
        if not isinstance(x, torch.Tensor) or tuple(x.shape) != (candidates, *shape):
            received = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(
                f"Expected `source` to return samples of shape {(candidates, *shape)}, but got {received}. Check its "
                f"method `sample`."
            )
        x = x.detach().to(weight)
        check_finite(source, x)
        x = x if oversampling == 1 else select_samples(x, network, count, seed)
        with progress_within(start, share):
            return match_share(x, network, matching, seed)

    held_out = -(-samples // 4 // source.multiple) * source.multiple
    return Calibration(draw(samples, seed, 0.0, 0.8), draw(held_out, derive_seed(seed, "held out"), 0.8, 0.2), seed)


@dataclass(frozen=True)
class GeneratorTask:
    """Generators to train for a teacher, which is not changed.

    Attributes:
        make_generator: Returns a new generator with attributes ``noise_dim`` and ``classes``.
        make_decoder: Returns a new decoder, which maps samples to noise.
        objective: Returns the weighted sum of losses.
        clipping: ``gradient_clip_val`` and ``gradient_clip_algorithm`` of the trainer.
    """

    teacher: nn.Module
    input_shape: tuple[int, ...]
    device: torch.device
    make_generator: Callable[[], nn.Module]
    make_decoder: Callable[[], nn.Module]
    objective: Callable[[], GeneratorObjective]
    optimizer: OptimizerFactory
    settings: GeneratorTrainingSettings
    precision: str = "32-true"
    clipping: tuple[float | None, str | None] = (None, None)

    def make_pair(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Return a new generator and its decoder, with initial weights that depend on the seed and the index."""
        with seeded(self.settings.seed, "generator", index):
            return self.make_generator(), self.make_decoder()

    def make_module(self, pairs: Sequence[tuple[nn.Module, nn.Module]], index: int) -> GeneratorModule:
        """Return the module that trains one pair of generator and decoder, or several as one batch of networks.

        ``index`` is the index of the first pair.
        """
        settings = self.settings
        generators, decoders = zip(*pairs, strict=True)
        return GeneratorModule(
            generators[0] if len(pairs) == 1 else StackedModule(generators),
            decoders[0] if len(pairs) == 1 else StackedModule(decoders),
            teacher_for(self.teacher, self.input_shape, self.precision),
            self.objective(),
            self.optimizer,
            batch_size=settings.batch_size,
            steps_per_epoch=settings.steps_per_epoch,
            teacher_norm=settings.teacher_norm,
            teacher_dropout=settings.teacher_dropout,
            lr_scheduler=settings.lr_scheduler,
            seed=settings.seed,
            index=index,
            compile=settings.compile,
            cuda_graphs=settings.cuda_graphs,
        )

    def choose_parallel(self, count: int | None = None) -> tuple["GeneratorTask", str | None]:
        """Choose if generators are trained as one batch of networks or one after another.

        Args:
            count: Number of generators that a process trains; None for all.

        Returns:
            The task with ``parallel`` set to ``"vmap"`` or ``"sequential"``. Also a reason if ``"auto"`` would choose
            ``"vmap"`` but torch cannot vectorise the networks, otherwise None.

        Raises:
            ValueError: If ``parallel="vmap"`` is set and torch cannot vectorise the networks.
        """
        settings, obstacle = self.settings, None
        vectorize = should_vectorize(settings.parallel, count or settings.count, self.device, self.input_shape)
        if vectorize:
            obstacle = vectorization_error(
                lambda: self.make_module([self.make_pair(0), self.make_pair(1)], 0), *self.clipping
            )
            vectorize = can_vectorize(settings.parallel, obstacle, "generators, teacher and losses")
        parallel = "vmap" if vectorize else "sequential"
        return replace(self, settings=settings.model_copy(update={"parallel": parallel})), obstacle


MakeCallbacks = Callable[[Sequence[str], nn.Module], Sequence[Callback]]
"""Takes the names of the generators of a fit and one network of their structure, returns the callbacks of the fit."""


def fit_generators(
    task: GeneratorTask,
    fit: Fit,
    progress: StageProgress,
    make_callbacks: MakeCallbacks,
    share: Sequence[int] | None = None,
) -> Generators:
    """Train the generators of a task, as one batch of networks or one after another.

    :meth:`GeneratorTask.choose_parallel` must have set ``parallel`` of the task. Only rank 0 has the metrics of the
    generators.

    ``share`` has the indices of the generators that this process trains. It receives the other generators from the
    other processes, which train at the same time. None: it trains all generators.
    """
    count = task.settings.count
    own = list(range(count)) if share is None else list(share)
    groups = [own] if own and task.settings.parallel == "vmap" else [[index] for index in own]
    trained: dict[int, Pair] = {}
    metrics: dict[int, Metrics] = {}
    with progress:
        for number, indices in enumerate(groups):
            names = [f"generator_{index}" for index in indices]
            pairs = [task.make_pair(index) for index in indices]
            module = task.make_module(pairs, indices[0])
            module.names = names if count > 1 else None
            progress.next_fit(number, len(groups))
            callbacks = [*make_callbacks(names, pairs[0][0]), progress]
            fit(module, None, name="-".join(names), epochs=task.settings.epochs, callbacks=callbacks)
            for index, pair in enumerate(pairs):
                for fitted, network in zip((module.generator, module.decoder), pair, strict=True):
                    if isinstance(fitted, StackedModule):
                        fitted.take(index, network)
                    set_mode(move(network, "cpu"), training=False)
            trained |= zip(indices, pairs, strict=True)
            metrics |= zip(indices, module.means or [{} for _ in pairs], strict=True)
        if share is not None:
            progress.console.print(f"{progress.title}: waiting for those of the other processes")
            receive_pairs(task.make_pair, trained, metrics)
    generators, decoders = zip(*(trained[index] for index in range(count)), strict=True)
    classes, means = int(generators[0].classes), [metrics[index] for index in range(count)]
    return Generators(generators, decoders, frozen_copy(task.teacher), task.input_shape, classes, task.device, means)


def fit_student(
    network: nn.Module,
    data: SyntheticDataModule,
    settings: DistillationSettings,
    optimizer: OptimizerFactory,
    fit: Fit,
    progress: StageProgress,
    name: str = "student",
    label: str | None = None,
    find_lr: bool = False,
    trials_file: Path | None = None,
) -> tuple[StudentModule, Metrics]:
    """Train a student on the teacher's logits of synthetic samples.

    The network is trained in place, on the device of the data. Dropout uses the seed of the data. With ``find_lr``,
    short trainings choose the learning rate (:func:`try_learning_rates`), and the metrics include it. ``trials_file``
    keeps them for a resumed fit. With a label, loggers get ``LABEL/train/loss``.

    Returns:
        The fitted module, its network on the CPU in evaluation mode, and its metrics.
    """
    given: dict[str, float] = {}
    with progress:
        _draw(data, progress)
        shape = tuple(data.splits["train"][0].shape[1:])
        network = move(prefer_channels_last(network, shape), data.device)
        _prepare_student(network, data, settings)
        if find_lr:

            def make_module(copied: nn.Module, lr: float) -> StudentModule:
                return _student_module(copied, data, settings, with_learning_rate(optimizer, lr))

            with progress.part("trying learning rates"):
                trials = recall_trials(
                    trials_file, lambda: try_learning_rates(network, data, settings.epochs, make_module)
                )
            given["lr"] = best(trials).lr
            optimizer = with_learning_rate(optimizer, given["lr"])
            progress.console.print(f"{progress.title}: {describe_trials(trials)}", soft_wrap=True)
        module = _student_module(network, data, settings, optimizer)
        module.names = None if label is None else [label]
        metrics = fit(module, data, name=name, epochs=settings.epochs, callbacks=[progress])
    set_mode(move(module.network, "cpu"), training=False)
    return module, metrics | given


def fit_students(
    networks: Sequence[nn.Module],
    data: Sequence[SyntheticDataModule],
    settings: DistillationSettings,
    optimizer: OptimizerFactory,
    fit: Fit,
    progress: StageProgress,
) -> list[nn.Module]:
    """Train students of one structure as one batch of networks, each on its own data.

    The data modules differ in their seeds. :func:`stacking_obstacle` must have returned None.

    Returns:
        The networks, trained in place; on the CPU, in evaluation mode.
    """
    with progress:
        for network, own in zip(networks, data, strict=True):
            _draw(own, progress)
            _prepare_student(move(network, own.device), own, settings)
        stacked = StackedModule(networks)
        module = _student_module(stacked, data[0], settings, optimizer)
        module.names = [f"seed_{own.seed}" for own in data]
        fit(module, StackedDataModule(data), name="-".join(module.names), epochs=settings.epochs, callbacks=[progress])
    return [set_mode(move(stacked.take(i, network), "cpu"), training=False) for i, network in enumerate(networks)]


def _draw(data: SyntheticDataModule, progress: StageProgress) -> None:
    """Draw and label the samples of a student."""
    with progress.part("drawing and labelling samples"):
        data.setup()


def stacking_obstacle(
    network: nn.Module, data: SyntheticDataModule, settings: DistillationSettings, optimizer: OptimizerFactory
) -> str | None:
    """Return the reason why students cannot be trained as one batch of networks; None if they can.

    The test is a training step of two copies on the CPU. The network must be on the CPU; it is not changed.
    """
    if settings.feature_distillation.weight:
        return "feature distillation"
    x, logits = (tensor[:4].cpu().expand(2, -1, *tensor.shape[1:]) for tensor in data.splits["train"])

    def make_step() -> None:
        pair = [copy_network(network), copy_network(network)]
        stacked = StackedModule(pair)
        _student_module(stacked, data, settings, optimizer).step((x, logits))[0].backward()
        stacked.take(0, pair[0])

    return find_failure(make_step)


def _prepare_student(network: nn.Module, data: SyntheticDataModule, settings: DistillationSettings) -> None:
    """Apply the changes that precede training to a student: batch norm, and the fit of its layers."""
    if settings.norm != "frozen":
        forget_counts(network)
    if settings.reconstruct:
        reconstruct_student(network, data)
    if settings.norm == "adapt":
        adapt_norm(network, data.teacher.network, data.subset(ADAPTING_SAMPLES))


def _student_module(
    network: nn.Module, data: SyntheticDataModule, settings: DistillationSettings, optimizer: OptimizerFactory
) -> StudentModule:
    """Return the module that trains one student, or stacked students."""
    features = None
    if settings.feature_distillation.weight:
        layers = match_layers(data.teacher.network, settings.feature_distillation.layers)
        features = FeatureDistillation(data.teacher.network, layers, settings.feature_distillation.weight)
    return StudentModule(
        network,
        DistillationLoss(settings.temperature),
        optimizer,
        lr_scheduler=settings.lr_scheduler,
        norm="frozen" if settings.norm == "frozen" else "batch",
        dropout=settings.dropout,
        feature_distillation=features,
        seed=data.seed,
        compile=settings.compile,
        cuda_graphs=settings.cuda_graphs,
    )


def reconstruct_student(network: nn.Module, data: SyntheticDataModule) -> list[str]:
    """Fit the layers of a compressed teacher to the teacher's function on training samples; see :func:`reconstruct`.

    One sample in five is held out to decide whether the fit of a layer is kept.

    Returns:
        The layers whose fit was kept.
    """
    x, teacher = data.subset(_RECONSTRUCTION_SAMPLES), data.teacher.network
    split = describe_structure(network)["split"]
    if split:
        teacher = copy_network(teacher)
        split_attention(teacher, split)
    held_out = torch.arange(len(x), device=x.device) % 5 == 0
    moments = measure_layers(teacher, fittable_layers(teacher), x[~held_out], seed=data.seed, of_inputs=())
    return reconstruct(teacher, network, moments, Calibration(x[~held_out], x[held_out], data.seed))


def adam(lr: float) -> OptimizerFactory:
    """Return the library's optimiser: Adam with a learning rate.

    Raises:
        ValueError: If the learning rate is not a positive number.
    """
    if not (isinstance(lr, Real) and 0 < lr < float("inf")):
        raise ValueError(f"Expected `lr` to be a number above 0, but got {lr!r}.")
    return partial(torch.optim.Adam, lr=lr)
