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
    Share,
    StudentNorm,
    explained,
)
from kegnet_pl.settings.training import OptimizerSettings, TrainingSettings


class ObjectiveTerm(Settings):
    """A loss of the generators and its weight."""

    weight: NotNegative
    """Weight of the loss. 0 disables the term."""
    term: Object
    """The loss."""


class GeneratorTrainingSettings(Settings):
    """Settings of generator training that the library and the command line share."""

    count: Count = 5
    """Number of generators, trained independently."""
    noise_dim: Count = 10
    """Dimensions of the noise."""
    epochs: Count = 20
    """Number of epochs."""
    steps_per_epoch: Count = 50
    """Optimiser steps per epoch."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Samples per step and generator, over all processes."""
    lr_scheduler: LRSchedulerName = "constant"
    """Learning rate from epoch to epoch: constant, or cosine (down to zero)."""
    teacher_norm: BatchNormStatistics = "batch"
    """Statistics of the teacher's batch norm: batch (as in the authors' release) or running."""
    teacher_dropout: bool = False
    """true: the teacher's dropout is active, as in the authors' release."""
    parallel: Parallel = "auto"
    """vmap: all generators are trained as one batch of networks. sequential: they are trained one after the other.
    auto: vmap on a GPU and for tables, if torch can vectorise the networks; otherwise sequential."""
    seed: Seed = 0
    """Seed of the generators only, so that students of several seeds can share them."""
    compile: bool = False
    """torch.compile: a slow start, faster steps; on a CPU it needs a C++ compiler."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=FREE)
    """true: on one GPU, a step is recorded once and replayed. Set false if Python code of a loss changes from step to
    step."""


def _check_objective(settings: "GeneratorSettings") -> Iterator[str]:
    if not any(term.weight for term in settings.objective.values()):
        yield (
            "Expected a positive weight for at least one term of `generator.objective`, but got only zeros. Set for "
            "example generator.objective.classifier.weight=1."
        )


class GeneratorSettings(GeneratorTrainingSettings):
    """The generators and their losses."""

    RULES = (_check_objective,)

    processes: Literal["auto", "spread", "shared"] = Field(default="auto", json_schema_extra=FREE)
    """Generators with several processes. spread: each process trains its share of the generators. shared: all processes
    train each generator, with shares of its batches. auto: spread if there are at least as many generators as
    processes; otherwise shared."""
    upsampling: Literal["transposed", "nearest"] = Field(default="transposed", json_schema_extra=FREE)
    """For generator=image. transposed: transposed convolutions, as in the paper. nearest: repeated pixels before a
    convolution, without checkerboard patterns."""
    output_norm: Literal["image", "batch", "none"] = Field(default="image", json_schema_extra=FREE)
    """For generator=image: zero mean and unit deviation per image and channel (image) or per channel over the batch
    (batch), or none."""
    network: Object
    """The generator. It is called with noise (B, Z) and one-hot labels (B, C), and has the attributes noise_dim and
    classes."""
    decoder: Object
    """The decoder. It predicts the noise (B, Z) from samples."""
    objective: dict[str, ObjectiveTerm] = Field(json_schema_extra=explained("losses by name"))
    """Losses by name."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of generators and decoders."""

    def is_spread(self, processes: int) -> bool:
        """Return True if each of several processes trains its share of the generators."""
        enough = self.processes == "auto" and self.count >= processes
        return processes > 1 and (enough or self.processes == "spread")

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on, as a plain dict without losses of weight 0."""
        used = {name: term for name, term in self.objective.items() if term.weight}
        return super(GeneratorSettings, self.model_copy(update={"objective": used})).fingerprint()


class FeatureDistillationSettings(Settings):
    """The student's layers learn the outputs of the teacher's layers of the same names."""

    weight: NotNegative = 0.0
    """Weight of the feature loss. The distillation loss has weight 1."""
    layers: list[str] | None = Field(
        default=None, min_length=1, json_schema_extra=explained("a list of patterns of layer names")
    )
    """Patterns of layer names. null: all batch-norm layers."""


def _check_temperature(settings: "BaselineSettings | DistillationSettings") -> Iterator[str]:
    if not 0.01 <= settings.temperature <= 1000:
        part = "student.baselines" if isinstance(settings, BaselineSettings) else "student"
        yield (
            f"Expected `{part}.temperature` between 0.01 and 1000, since the loss vanishes outside this range, but got "
            f"{settings.temperature:g}."
        )


LearningRate = Annotated[Positive | Literal["auto"], Field(json_schema_extra=explained("a number above 0, or auto"))]
"""A learning rate, or ``"auto"`` if short trainings choose it."""


class BaselineSettings(Settings):
    """Settings for students of uniform and normal noise, if they differ from those of other students."""

    RULES = (_check_temperature,)

    samples: Count = 16_000
    """Number of synthetic samples."""
    epochs: Count = 8
    """Maximum number of passes over the samples."""
    temperature: Positive = 4.0
    """Temperature that divides the logits of teacher and student."""
    lr: LearningRate = "auto"
    """Learning rate, or auto; see student.optimizer."""


class StudentOptimizerSettings(OptimizerSettings):
    """The student's optimiser. Further settings are its arguments."""

    lr: LearningRate = "auto"  # type: ignore[assignment]
    """Learning rate. auto (only with Adam and AdamW): short trainings on four fifths of the samples compare learning
    rates from 3e-5 to 3e-3. The one with the lowest loss on the other samples is used."""


class DistillationSettings(TrainingSettings):
    """Settings of student training that the library and the command line share."""

    RULES = (*TrainingSettings.RULES, _check_temperature)

    part = "student"

    samples: Count = 16_000
    """Number of synthetic samples, a multiple of generator.count."""
    resample_each_epoch: bool = False
    """true: every epoch uses new samples."""
    memory: NotNegative | None = Field(default=None, json_schema_extra=FREE)
    """Memory budget of the synthetic set, in GB (10^9 bytes). A larger set is stored in a temporary file. null: half of
    the free memory."""
    noise_std: NotNegative = 0.0
    """Standard deviation of Gaussian noise added to every sample of the generators."""
    epochs: Count = 8
    batch_size: Count = 128
    shuffle: bool = True
    """false: samples keep the order in which they were drawn, as in the authors' release."""
    norm: StudentNorm = "batch"
    """Statistics of the student's batch norm: batch (of synthetic samples), frozen (the teacher's), or adapt (of
    synthetic samples, with scale and shift that match outputs of the teacher's layers)."""
    dropout: bool = True
    """false: the student's dropout is off in training."""
    reconstruct: bool = False
    """true: before training, layers of a compressed teacher are fitted to the teacher's function on the samples."""
    temperature: Positive = 4.0
    """Temperature that divides the logits of teacher and student. It is 1 in the paper."""
    feature_distillation: FeatureDistillationSettings = FeatureDistillationSettings()
    """The student's layers learn from the teacher's."""
    lr_scheduler: LRSchedulerName = "constant"
    """Learning rate from epoch to epoch: constant, or cosine (down to zero)."""
    compile: bool = False
    """torch.compile: a slow start, faster steps; on a CPU it needs a C++ compiler."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=FREE)
    """true: on one GPU, a step is recorded once and replayed."""


def _check_selection(settings: "StudentSettings") -> Iterator[str]:
    if settings.patience is not None and settings.selection == "last":
        yield (
            "Expected `student.selection` to be synthetic or real, since `student.patience` is set, but got 'last'. "
            "Set student.selection=synthetic."
        )


def _check_learning_rate(settings: "StudentSettings") -> Iterator[str]:
    optimizer = settings.optimizer
    if "auto" in (optimizer.lr, settings.baselines.lr) and optimizer.target.rpartition(".")[2] not in _ADAM:
        yield (
            f"Expected a number for `student.optimizer.lr` (and `student.baselines.lr`) with {optimizer.target}, since "
            f"auto compares learning rates for {' and '.join(_ADAM)}, but got auto. Set student.optimizer.lr=0.01, for "
            f"example."
        )


_ADAM = ("Adam", "AdamW")

_NETWORK = explained(
    "null (the compressed teacher) or a network with `_target_`",
    "To choose a group, write student=..., for example student=lenet5.",
)


class StudentSettings(DistillationSettings):
    """The student."""

    RULES = (*DistillationSettings.RULES, _check_selection, _check_learning_rate)

    network: Object | None = Field(default=None, json_schema_extra=_NETWORK | FREE)
    """A network that is trained from scratch. null: the compressed teacher is trained."""
    sampling_norm: BatchNormStatistics = "running"
    """Statistics of the generators' batch norm during sampling: running, or batch (as in training)."""
    oversampling: Count = 1
    """Candidates per sample. Above 1, the teacher selects samples with balanced classes, nearest to its batch-norm
    statistics."""
    matching: Share = 0.0
    """Share of the samples that are then matched to the teacher's batch-norm statistics by gradient steps."""
    mixing: Share = 0.0
    """Share of the samples that are mixed with each other: averages of two; for images two averages, composed by a
    smooth mask."""
    selection: Selection = "last"
    """Epoch to keep. last: the last one. synthetic: the best one on further synthetic samples. real: the best one on
    real validation data."""
    validation_samples: Count = 2000
    """Number of samples for selection=synthetic, a multiple of generator.count."""
    optimizer: StudentOptimizerSettings = StudentOptimizerSettings()
    """Optimiser of the student."""
    baselines: BaselineSettings = BaselineSettings()
    """Settings for students of noise, if they differ."""
