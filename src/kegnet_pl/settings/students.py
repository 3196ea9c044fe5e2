"""Settings of students and of their training."""

from collections.abc import Iterator

from pydantic import Field

from kegnet_pl.settings.base import (
    FREE,
    BatchNormStatistics,
    Count,
    LRSchedulerName,
    NotNegative,
    Object,
    Positive,
    Selection,
    Settings,
    StudentNorm,
    explained,
)
from kegnet_pl.settings.training import OptimizerSettings, TrainingSettings


class FeatureDistillationSettings(Settings):
    """The student's layers learn to return what the teacher's layers of the same names return."""

    weight: NotNegative = 0.0
    """Weight of the feature loss; the distillation loss has weight 1."""
    layers: list[str] | None = Field(
        default=None, min_length=1, json_schema_extra=explained("a list of patterns of layer names")
    )
    """Patterns of layer names; null: all batch-norm layers."""


class BaselineSettings(Settings):
    """Settings of students that learn from noise, where they differ."""

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
    selection: Selection = "last"
    """Epoch to keep: last, best on further synthetic samples, or best on real validation data."""
    validation_samples: Count = 2000
    """Samples for selection=synthetic; a multiple of generator.count."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of the student."""
    baselines: BaselineSettings = BaselineSettings()
    """Students that learn from noise, where they differ."""
