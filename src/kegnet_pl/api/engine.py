"""Fits generators and students: the one place that wires modules, called by the library and by the command line."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from pytorch_lightning import Callback
from torch import nn

from kegnet_pl.data.synthetic import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss, GeneratorObjective
from kegnet_pl.networks import StackedModule, adapt_norm, match_layers, prefer_channels_last
from kegnet_pl.networks.batch_norm import ADAPTING_SAMPLES
from kegnet_pl.networks.execution import teacher_for
from kegnet_pl.runtime.seeds import seeded
from kegnet_pl.settings import DistillationSettings, FeatureDistillationSettings, GeneratorTrainingSettings
from kegnet_pl.training import FeatureDistillation, GeneratorModule, StudentModule
from kegnet_pl.training.fit import Fit, Metrics
from kegnet_pl.training.optimizers import OptimizerFactory
from kegnet_pl.training.progress import StageProgress
from kegnet_pl.training.vectorization import should_vectorize, vectorization_error


@dataclass(frozen=True)
class GeneratorTask:
    """Generators to train for a teacher.

    Attributes:
        teacher: Returns logits ``(B, C)``; it stays as it is.
        input_shape: Shape of one sample.
        make_generator: Returns a new generator with attributes ``noise_dim`` and ``classes``.
        make_decoder: Returns a new decoder, which reads the noise from samples.
        objective: The weighted sum of losses.
        optimizer: Takes parameters, returns an optimiser.
        settings: How long and how they are trained.
        precision: Of the training.
        clipping: ``gradient_clip_val`` and ``gradient_clip_algorithm`` of the trainer.
    """

    teacher: nn.Module
    input_shape: tuple[int, ...]
    make_generator: Callable[[], nn.Module]
    make_decoder: Callable[[], nn.Module]
    objective: Callable[[], GeneratorObjective]
    optimizer: OptimizerFactory
    settings: GeneratorTrainingSettings
    precision: str = "32-true"
    clipping: tuple[float | None, str | None] = (None, None)

    def make_pair(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Return a new generator and its decoder, with the weights that the seed gives to this index."""
        with seeded(self.settings.seed, "generator", index):
            return self.make_generator(), self.make_decoder()

    def make_module(self, pairs: Sequence[tuple[nn.Module, nn.Module]], index: int) -> GeneratorModule:
        """Return the module that trains one pair, or several pairs as one batch of networks.

        Args:
            pairs: Generators and decoders.
            index: Index of the first pair.
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

    def choose_parallel(self, device: torch.device) -> tuple["GeneratorTask", str | None]:
        """Decide how generators are trained.

        Args:
            device: Where they are trained.

        Returns:
            The task with ``parallel`` set to ``"vmap"`` or ``"sequential"``, and why torch cannot vectorise what
            ``"auto"`` would have (None if it can).

        Raises:
            ValueError: If ``parallel="vmap"`` is set and torch cannot vectorise the networks.
        """
        settings, obstacle = self.settings, None
        vectorize = should_vectorize(settings.parallel, settings.count, device, self.input_shape)
        if vectorize:
            obstacle = vectorization_error(
                lambda: self.make_module([self.make_pair(0), self.make_pair(1)], 0), *self.clipping
            )
            if obstacle is not None and settings.parallel == "vmap":
                raise ValueError(
                    f"Expected generators, teacher and losses that torch can vectorise with parallel='vmap', but: "
                    f"{obstacle.rstrip('.')}. Use parallel='sequential'."
                )
        parallel = "vmap" if vectorize and obstacle is None else "sequential"
        return replace(self, settings=settings.model_copy(update={"parallel": parallel})), obstacle


@dataclass(frozen=True)
class TrainedGenerator:
    """A trained generator, its decoder, and the metrics of its last epoch."""

    generator: nn.Module
    decoder: nn.Module
    metrics: Metrics = field(default_factory=dict)


MakeCallbacks = Callable[[Sequence[str], nn.Module], Sequence[Callback]]
"""Takes the names of the generators of a fit and one network of their structure, returns the callbacks of the fit."""


def fit_generators(
    task: GeneratorTask, fit: Fit, progress: StageProgress | None = None, make_callbacks: MakeCallbacks | None = None
) -> list[TrainedGenerator]:
    """Train the generators of a task, as one batch of networks or one after another.

    Args:
        task: With ``parallel`` decided (:meth:`GeneratorTask.choose_parallel`).
        fit: Trains a module.
        progress: Shows how far the training is.
        make_callbacks: Makes further callbacks for a fit.

    Returns:
        The generators, on the CPU. Metrics are those of rank 0; other ranks have none.
    """
    count = task.settings.count
    groups = [list(range(count))] if task.settings.parallel == "vmap" else [[index] for index in range(count)]
    trained: list[TrainedGenerator] = []
    with progress or nullcontext():
        for number, indices in enumerate(groups):
            names = [f"generator_{index}" for index in indices]
            pairs = [task.make_pair(index) for index in indices]
            module = task.make_module(pairs, indices[0])
            module.names = names if count > 1 else None
            callbacks = list(make_callbacks(names, pairs[0][0]) if make_callbacks else [])
            if progress is not None:
                progress.next_fit(number, len(groups))
                callbacks.append(progress)
            fit(module, None, name="-".join(names), epochs=task.settings.epochs, callbacks=callbacks)
            _unstack(module, pairs)
            means = module.means or [{} for _ in pairs]
            trained += [TrainedGenerator(*pair, metrics) for pair, metrics in zip(pairs, means, strict=True)]
    return trained


def _unstack(module: GeneratorModule, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Copy the weights of stacked networks back to the single ones."""
    for stacked, singles in zip((module.generator, module.decoder), zip(*pairs, strict=True), strict=True):
        for index, single in enumerate(singles):
            if isinstance(stacked, StackedModule):
                stacked.take(index, single)
            single.cpu().eval()


def fit_student(
    network: nn.Module,
    data: SyntheticDataModule,
    settings: DistillationSettings,
    optimizer: OptimizerFactory,
    fit: Fit,
    *,
    name: str = "student",
    seed: int = 0,
    progress: StageProgress | None = None,
) -> tuple[StudentModule, Metrics]:
    """Train a student on the teacher's answers to synthetic samples.

    Args:
        network: Returns logits ``(B, C)``; it is trained in place.
        data: Samples and the teacher that labels them, on the device of the training.
        settings: How long and how the student is trained.
        optimizer: Takes parameters, returns an optimiser.
        fit: Trains a module.
        name: Name of the fit.
        seed: Seed of dropout.
        progress: Shows how far the training is.

    Returns:
        The fitted module, its network on the CPU in evaluation mode, and its metrics.
    """
    data.setup()
    shape = tuple(data.splits["train"][0].shape[1:])
    network = prefer_channels_last(network, shape).to(data.device)
    if settings.norm == "adapt":
        adapt_norm(network, data.teacher.network, data.subset(ADAPTING_SAMPLES))
    module = StudentModule(
        network,
        DistillationLoss(settings.temperature),
        optimizer,
        lr_scheduler=settings.lr_scheduler,
        norm="frozen" if settings.norm == "frozen" else "batch",
        dropout=settings.dropout,
        feature_distillation=_feature_distillation(settings.feature_distillation, data.teacher.network),
        seed=seed,
        compile=settings.compile,
        cuda_graphs=settings.cuda_graphs,
    )
    with progress or nullcontext():
        callbacks = [progress] if progress is not None else []
        metrics = fit(module, data, name=name, epochs=settings.epochs, callbacks=callbacks)
    module.network.cpu().eval()
    return module, metrics


def _feature_distillation(settings: FeatureDistillationSettings, teacher: nn.Module) -> FeatureDistillation | None:
    if not settings.weight:
        return None
    return FeatureDistillation(teacher, match_layers(teacher, settings.layers), settings.weight)


def adam(lr: float) -> OptimizerFactory:
    """Return the library's optimiser: Adam with a learning rate."""
    return partial(torch.optim.Adam, lr=lr)
