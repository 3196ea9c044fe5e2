"""Typed settings: names, defaults, units and ranges, once for the library, the command line and the reference page."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
LRSchedulerName = Literal["constant", "cosine"]
BatchNormStatistics = Literal["batch", "running"]
StudentNorm = Literal["batch", "frozen", "adapt"]
Parallel = Literal["auto", "vmap", "sequential"]
Selection = Literal["last", "synthetic", "real"]
Resume = Literal["auto", "never", "require"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_FREE = {"fingerprint": False}
"""Marks a setting that does not change the result: fingerprints leave it out."""


def problem(message: str) -> PydanticCustomError:
    """Return an error whose message is complete: it names the setting, what is allowed, what came."""
    return PydanticCustomError("complete", "{message}", {"message": message})


def _check_object(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("_target_"), str):
        raise PydanticCustomError("object", "an object with `_target_`")
    return value


Object = Annotated[dict[str, Any], AfterValidator(_check_object)]
"""What Hydra instantiates: ``_target_`` and arguments."""


class Settings(BaseModel):
    """A group of settings: unknown names, wrong types and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on, plain."""
        free = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict) and not field.json_schema_extra.get("fingerprint", True)
        }
        return self.model_dump(by_alias=True, exclude=free)


class DataSettings(Settings):
    """Real data: to train a teacher and to report accuracy. Further settings are arguments of the data module."""

    model_config = ConfigDict(extra="allow")

    target: str | None = Field(default=None, alias="_target_")
    """Class of the data module; null: there is no real data."""
    name: str
    """Name of the data set in tables."""
    input_shape: list[Count]
    """Shape of one sample: [channels, height, width] or [features]."""
    classes: Annotated[int, Field(ge=2)]
    """Number of classes."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if len(self.input_shape) not in (1, 3):
            raise problem(
                f"Expected `data.input_shape` to be [channels, height, width] or [features], but got "
                f"{self.input_shape!r}."
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings of the data, without the folders that it is read from."""
        places = ("root", "download", "train", "val", "test")
        return {name: value for name, value in super().fingerprint().items() if name not in places}


class OptimizerSettings(Settings):
    """An optimiser of torch. Further settings are its arguments."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(default="torch.optim.Adam", alias="_target_")
    """Class of the optimiser."""
    partial: bool = Field(default=True, alias="_partial_")
    """True: the optimiser is given its parameters later."""
    lr: Positive = 1e-3
    """Learning rate."""


class TrainingSettings(Settings):
    """What the training of the teacher and of students has in common."""

    epochs: Count
    """Passes over the samples, at most."""
    min_epochs: Count | None = None
    """Epochs at least, where patience is set."""
    patience: Count | None = None
    """Stop so many epochs after the best one; null: train to the last epoch."""
    batch_size: Count
    """Samples of an optimiser step, over all processes."""

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience is None and self.min_epochs is not None:
            part = type(self).__name__.removesuffix("Settings").lower()
            raise problem(f"Expected `{part}.patience` where `{part}.min_epochs` is set, but got null.")
        return self


class TeacherSettings(TrainingSettings):
    """The trained network."""

    name: str
    """Name of the teacher in tables; plans of the paper are found by it."""
    network: Object
    """Any nn.Module that returns logits."""
    weights: str | None = None
    """File of trained weights: state dict, Lightning checkpoint or safetensors; null: train on the real data."""
    epochs: Count = 30
    batch_size: Count = 64
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of the teacher."""


class ObjectiveTerm(Settings):
    """A loss of the generators and its weight."""

    weight: NotNegative
    """Weight of the loss; 0 leaves the term out."""
    term: Object
    """The loss."""


class GeneratorTrainingSettings(Settings):
    """How generators are trained: what the library and the command line share."""

    count: Count = 5
    """Generators, trained independently."""
    noise_dim: Count = 10
    """Dimensions of the noise."""
    epochs: Count = 20
    """Epochs."""
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
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generators alone: students of several seeds can share them."""
    compile: bool = False
    """torch.compile: a slow start, faster steps; on a CPU it needs a C++ compiler."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=_FREE)
    """On one GPU a step is recorded once and replayed; false: for a loss that changes in Python from step to step."""


class GeneratorSettings(GeneratorTrainingSettings):
    """The generators and their losses."""

    upsampling: Literal["transposed", "nearest"] = Field(default="transposed", json_schema_extra=_FREE)
    """Of generator=image: transposed convolutions, as in the paper, or nearest: no checkerboard."""
    output_norm: Literal["image", "batch", "none"] = Field(default="image", json_schema_extra=_FREE)
    """Of generator=image: zero mean and unit deviation of each image, of each channel over the batch, or none."""
    network: Object
    """Called with noise (B, Z) and one-hot labels (B, C); has attributes noise_dim and classes."""
    decoder: Object
    """Reads the noise (B, Z) from samples."""
    objective: dict[str, ObjectiveTerm]
    """Losses by name."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of generators and decoders."""

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if not any(term.weight for term in self.objective.values()):
            raise problem("Expected a positive weight for one term of `generator.objective`, but got only zeros.")
        return self


class FeatureDistillationSettings(Settings):
    """The student's layers learn to return what the teacher's layers of the same names return."""

    weight: NotNegative = 0.0
    """Weight of the feature loss; the distillation loss has weight 1."""
    layers: list[str] | None = Field(default=None, min_length=1)
    """Patterns of layer names; null: all batch-norm layers."""


class BaselineSettings(Settings):
    """What differs for students that learn from noise."""

    samples: Count = 16_000
    epochs: Count = 8
    temperature: Positive = 4.0
    lr: Positive = 1e-3


class DistillationSettings(TrainingSettings):
    """How a student is trained: what the library and the command line share."""

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
    cuda_graphs: bool = Field(default=True, json_schema_extra=_FREE)
    """On one GPU a step is recorded once and replayed."""


class StudentSettings(DistillationSettings):
    """The student."""

    network: Object | None = Field(default=None, json_schema_extra=_FREE)
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
    """What differs for students that learn from noise."""

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        if self.patience is not None and self.selection == "last":
            raise problem(
                "Expected `student.selection` to be synthetic or real where `student.patience` is set, but got 'last'."
            )
        return self


class CompressionRule(Settings):
    """The rank of some layers."""

    layers: str | list[str]
    """Pattern of layer names, or a list of patterns; the first rule that matches a layer decides."""
    rank: Any
    """evbmf, full, target, a number of components, a fraction in (0, 1], or {in: ..., out: ...}."""


class CompressionSettings(Settings):
    """Which layers of the teacher shrink, and how far."""

    name: str
    """Name in tables."""
    rank: Any = Field(default=None, json_schema_extra=_FREE)
    """Of compression=fraction: the share of every side that is kept."""
    rules: list[CompressionRule] | None = None
    """Ranks by layer; null: those that `plans` holds for the teacher."""
    plans: dict[str, dict[str, Any]] = Field(default={}, json_schema_extra=_FREE)
    """Name of a teacher -> rules and settings that the paper has for it."""
    target: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Compression ratio of the whole network (parameters of the teacher / of the student), for rank=target."""
    when_larger: Literal["keep", "compress"] = "keep"
    """What to do with a layer that would grow."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on; a name does not."""
        return {name: value for name, value in super().fingerprint().items() if name != "name"}


_LIGHTNING = {
    **dict.fromkeys(
        ("max_epochs", "max_steps", "max_time", "min_steps"),
        "the length of training is teacher.epochs, generator.epochs and student.epochs",
    ),
    "min_epochs": "set teacher.min_epochs and student.min_epochs",
    "accumulate_grad_batches": "samples of a step are teacher.batch_size, generator.batch_size and student.batch_size",
    **dict.fromkeys(
        ("check_val_every_n_epoch", "val_check_interval"), "patience and selection look at the end of every epoch"
    ),
    "limit_val_batches": "students are selected by all of student.validation_samples",
    "logger": "loggers are the group `logger`",
    "callbacks": "callbacks are the group `callbacks`",
}
"""Arguments of Lightning's trainer that other settings decide."""


class TrainerSettings(Settings):
    """Lightning's trainer. Further settings are its arguments."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(default="pytorch_lightning.Trainer", alias="_target_", json_schema_extra=_FREE)
    """Class of the trainer."""
    accelerator: Literal["cpu", "gpu"] = Field(default="cpu", json_schema_extra=_FREE)
    """Where everything is trained."""
    devices: Count = Field(default=1, json_schema_extra=_FREE)
    """Processes on this machine."""
    num_nodes: int = Field(default=1, json_schema_extra=_FREE)
    """Machines; several are not supported."""
    strategy: str = Field(default="auto", json_schema_extra=_FREE)
    """How processes share the work: auto or ddp."""
    precision: Precision = "32-true"
    """Of all training."""
    gradient_clip_val: float | None = None
    """Clip gradients to this norm (or value); null: do not clip."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """What gradient_clip_val limits."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        extra = self.model_extra or {}
        for name, instead in _LIGHTNING.items():
            if name in extra:
                raise problem(f"Expected no setting `trainer.{name}`: {instead}.")
        if any(word in self.strategy for word in ("spawn", "fork", "notebook")):
            raise problem(
                f"Expected `trainer.strategy` to start processes of their own (auto, ddp), but got {self.strategy}. "
                f"Use trainer=ddp trainer.devices=N."
            )
        if self.num_nodes != 1:
            raise problem(
                f"Expected `trainer.num_nodes` to be 1, but got {self.num_nodes!r}: the processes of one run are on "
                f"one machine (trainer=ddp trainer.devices=N). Several machines can share the jobs of a sweep "
                f"(hydra/launcher=submitit_slurm)."
            )
        if extra.get("limit_train_batches", 1) == 0:
            raise problem("Expected `trainer.limit_train_batches` above 0, but got 0: nothing would be trained.")
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise problem(
                "Expected `trainer.precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed', which needs a "
                "GPU."
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return the arguments that change a result; all that a user adds may."""
        free = (
            "deterministic", "enable_model_summary", "enable_progress_bar", "num_sanity_val_steps",
            "log_every_n_steps", "use_distributed_sampler",
        )  # fmt: skip
        found = super().fingerprint() | {"processes": self.devices}
        return {name: value for name, value in found.items() if name not in free and value is not None}
