"""Settings of generators and of students, and of their training."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from kegnet_pl.settings.base import (
    FREE,
    BatchNormStatistics,
    Count,
    LRSchedulerName,
    NotNegative,
    Object,
    Parallel,
    Positive,
    Seed,
    Selection,
    Settings,
    StudentNorm,
    explained,
)
from kegnet_pl.settings.training import OptimizerSettings, TrainingSettings


class ObjectiveTerm(Settings):
    """A loss of the generators and its weight."""

    weight: NotNegative
    """Weight of the loss; 0 leaves the term out."""
    term: Object
    """The loss."""


class GeneratorTrainingSettings(Settings):
    """Training of generators: settings that the library and the command line share."""

    count: Count = 5
    """Number of generators; each is trained on its own."""
    noise_dim: Count = 10
    """Dimensions of the noise."""
    epochs: Count = 20
    """Number of epochs."""
    steps_per_epoch: Count = 50
    """Optimiser steps of an epoch."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Samples of a step and generator, over all processes."""
    lr_scheduler: LRSchedulerName = "constant"
    """Learning rate from epoch to epoch: constant, or cosine (down to zero)."""
    teacher_norm: BatchNormStatistics = "batch"
    """Statistics of the teacher's batch norm: batch, as in the authors' release, or running."""
    teacher_dropout: bool = False
    """True: the teacher's dropout is on, as in the authors' release."""
    parallel: Parallel = "auto"
    """vmap: all generators as one batch of networks; sequential; auto: vmap on a GPU and for tables, where possible."""
    seed: Seed = 0
    """Seed of the generators alone: students of several seeds can share them."""
    compile: bool = False
    """torch.compile: a slow start, faster steps; on a CPU it needs a C++ compiler."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=FREE)
    """On one GPU a step is recorded once and replayed; false: for a loss that changes in Python from step to step."""


def _check_objective(settings: "GeneratorSettings") -> Iterator[str]:
    if not any(term.weight for term in settings.objective.values()):
        yield "Expected a positive weight for one term of `generator.objective`, but got only zeros."


class GeneratorSettings(GeneratorTrainingSettings):
    """The generators and their losses."""

    RULES = (_check_objective,)

    processes: Literal["auto", "spread", "shared"] = Field(default="auto", json_schema_extra=FREE)
    """Several processes: spread: each trains its share of the generators; shared: all train each generator, with
    shares of its batches; auto: spread if there are as many generators as processes, or more."""
    upsampling: Literal["transposed", "nearest"] = Field(default="transposed", json_schema_extra=FREE)
    """For generator=image: transposed convolutions, as in the paper, or nearest: no checkerboard."""
    output_norm: Literal["image", "batch", "none"] = Field(default="image", json_schema_extra=FREE)
    """For generator=image: zero mean and unit deviation of each image, of each channel over the batch, or none."""
    network: Object
    """Called with noise (B, Z) and one-hot labels (B, C); has attributes noise_dim and classes."""
    decoder: Object
    """Reads the noise (B, Z) from samples."""
    objective: dict[str, ObjectiveTerm] = Field(json_schema_extra=explained("losses by name"))
    """Losses by name."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of generators and decoders."""

    def is_spread(self, processes: int) -> bool:
        """Return True if each of several processes trains its share of the generators."""
        enough = self.processes == "auto" and self.count >= processes
        return processes > 1 and (enough or self.processes == "spread")

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on, plain; losses of weight 0 are none of them."""
        used = {name: term for name, term in self.objective.items() if term.weight}
        return super(GeneratorSettings, self.model_copy(update={"objective": used})).fingerprint()


class FeatureDistillationSettings(Settings):
    """The student's layers learn to return what the teacher's layers of the same names return."""

    weight: NotNegative = 0.0
    """Weight of the feature loss; the distillation loss has weight 1."""
    layers: list[str] | None = Field(
        default=None, min_length=1, json_schema_extra=explained("a list of patterns of layer names")
    )
    """Patterns of layer names; null: all batch-norm layers."""


def _check_temperature(settings: "BaselineSettings | DistillationSettings") -> Iterator[str]:
    if not 0.01 <= settings.temperature <= 1000:
        part = "student.baselines" if isinstance(settings, BaselineSettings) else "student"
        yield (
            f"Expected `{part}.temperature` between 0.01 and 1000, since the loss vanishes outside, but got "
            f"{settings.temperature:g}."
        )


class BaselineSettings(Settings):
    """Settings of students that learn from noise, where they differ."""

    RULES = (_check_temperature,)

    samples: Count = 16_000
    """Synthetic samples."""
    epochs: Count = 8
    """Maximum number of passes over the samples."""
    temperature: Positive = 4.0
    """Softens the answers of teacher and student."""
    lr: Positive = 1e-3
    """Learning rate."""


class DistillationSettings(TrainingSettings):
    """Training of a student: settings that the library and the command line share."""

    RULES = (*TrainingSettings.RULES, _check_temperature)

    part = "student"

    samples: Count = 16_000
    """Synthetic samples; a multiple of generator.count."""
    resample_each_epoch: bool = False
    """True: new samples for every epoch."""
    noise_std: NotNegative = 0.0
    """Standard deviation of Gaussian noise added to every sample of the generators."""
    epochs: Count = 8
    batch_size: Count = 128
    shuffle: bool = True
    """False: samples in the order in which they were drawn, as in the authors' release."""
    norm: StudentNorm = "batch"
    """Statistics of the student's batch norm: batch (of synthetic samples), frozen (the teacher's), or adapt."""
    dropout: bool = True
    """False: the student's dropout is off while it trains."""
    reconstruct: bool = False
    """True: before training, layers of a compressed teacher are fitted to the teacher's function on the samples."""
    temperature: Positive = 4.0
    """Softens the answers of teacher and student; 1 in the paper."""
    feature_distillation: FeatureDistillationSettings = FeatureDistillationSettings()
    """The student's layers learn from the teacher's."""
    lr_scheduler: LRSchedulerName = "constant"
    """Learning rate from epoch to epoch: constant, or cosine (down to zero)."""
    compile: bool = False
    """torch.compile: a slow start, faster steps; on a CPU it needs a C++ compiler."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=FREE)
    """On one GPU a step is recorded once and replayed."""


def _check_selection(settings: "StudentSettings") -> Iterator[str]:
    if settings.patience is not None and settings.selection == "last":
        yield "Expected `student.selection` to be synthetic or real where `student.patience` is set, but got 'last'."


_NETWORK = explained(
    "null (the compressed teacher) or a network with `_target_`",
    "A group is chosen by student=..., such as student=lenet5.",
)


class StudentSettings(DistillationSettings):
    """The student."""

    RULES = (*DistillationSettings.RULES, _check_selection)

    network: Object | None = Field(default=None, json_schema_extra=_NETWORK | FREE)
    """Another network than the compressed teacher, trained from scratch; null: the compressed teacher."""
    sampling_norm: BatchNormStatistics = "running"
    """Statistics of the generators' batch norm while samples are drawn."""
    oversampling: Count = 1
    """Candidates per sample; above 1, the teacher selects balanced classes, near its batch-norm statistics."""
    mixing: Annotated[float, Field(ge=0, le=1, json_schema_extra=explained("a number from 0 to 1"))] = 0.0
    """Share of the samples that are mixed with each other: averages, for images also composed by a mask."""
    selection: Selection = "last"
    """Epoch to keep: last, best on further synthetic samples, or best on real validation data."""
    validation_samples: Count = 2000
    """Samples for selection=synthetic; a multiple of generator.count."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of the student."""
    baselines: BaselineSettings = BaselineSettings()
    """Students that learn from noise, where they differ."""
