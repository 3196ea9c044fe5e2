"""Settings of the teacher, of Lightning's trainer, and of all trainings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from kegnet_pl.settings.base import FREE, Count, Object, Outputs, Positive, Precision, Rules, Settings, explained


class OptimizerSettings(Settings):
    """An optimiser of torch. Further settings are its arguments."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(default="torch.optim.Adam", alias="_target_")
    """Class of the optimiser."""
    partial: bool = Field(default=True, alias="_partial_")
    """true: the parameters of the network are passed when training starts."""
    lr: Positive = 1e-3
    """Learning rate."""


def _check_patience(settings: "TrainingSettings") -> Iterator[str]:
    if settings.patience is None and settings.min_epochs is not None:
        part = settings.part
        yield (
            f"Expected a value for `{part}.patience`, since `{part}.min_epochs` is set, but got null. Set "
            f"`{part}.patience`, or leave out `{part}.min_epochs`."
        )


class TrainingSettings(Settings):
    """Settings that the training of the teacher and of students share."""

    RULES: ClassVar[Rules] = (_check_patience,)
    part: ClassVar[str]
    """Name of the group in messages."""

    epochs: Count
    """Maximum number of passes over the samples."""
    min_epochs: Count | None = None
    """Minimum number of epochs, if patience is set."""
    patience: Count | None = None
    """Training stops this number of epochs after the best one. null: training runs to the last epoch."""
    batch_size: Count
    """Samples per optimiser step, over all processes."""


class TeacherSettings(TrainingSettings):
    """The trained network."""

    part = "teacher"

    name: str = Field(json_schema_extra=FREE)
    """Name of the teacher in tables. It also selects the paper's plan for this teacher."""
    network: Object
    """Any classifier (nn.Module)."""
    outputs: Outputs = Field(default="auto", json_schema_extra=FREE)
    """Type of the network's output. auto: the type is detected with trial samples, and printed."""
    output_key: str | int | None = Field(default=None, json_schema_extra=explained("a key or a number") | FREE)
    """Key, attribute or position of the output tensor, if the network returns several. null: logits, or the first
    tensor."""
    arch: str | None = Field(default=None, json_schema_extra=explained("a name") | FREE)
    """Name of the architecture, for teacher=torchvision and teacher=timm."""
    path: str | None = Field(default=None, json_schema_extra=explained("a path") | FREE)
    """Folder or Hub name for teacher=huggingface; Python file or exported program for teacher=file."""
    factory: str | None = Field(default=None, json_schema_extra=explained("a name") | FREE)
    """Class or function in the Python file that returns the network, for teacher=file. null for exported programs."""
    pretrained: bool = Field(default=False, json_schema_extra=FREE)
    """true: the constructor returns a network with trained weights. Then weights must be null."""
    weights: str | None = Field(default=None, json_schema_extra=explained("a file") | FREE)
    """File of trained weights: state dict, Lightning checkpoint or safetensors. null: the teacher is trained on the
    real data."""
    weights_url: str | None = Field(default=None, json_schema_extra=explained("an address") | FREE)
    """URL of the published weights that a preset needs. If it is set, weights=null is an error."""
    epochs: Count = 30
    batch_size: Count = 64

    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of the teacher."""

    @property
    def title(self) -> str:
        """Name of the network in tables: of the factory, file or folder if ``name`` is that of the group."""
        if self.name not in ("file", "huggingface") or self.path is None:
            return self.name
        path = Path(self.path)
        return self.factory or (path.stem if self.name == "file" else path.name) or self.name

    @property
    def is_program(self) -> bool:
        """True for a TorchScript or torch.export file. It has weights, and its layers cannot be replaced."""
        of_file = str(self.network["_target_"]).endswith("foreign.from_file")
        return of_file and not str(self.network.get("path")).endswith(".py")

    @property
    def is_given(self) -> bool:
        """True if the teacher has trained weights, so that no data is needed to train it."""
        return self.weights is not None or self.pretrained or self.is_program


LIGHTNING = {
    **dict.fromkeys(
        ("max_epochs", "max_steps", "max_time", "min_steps"),
        "set teacher.epochs, generator.epochs and student.epochs",
    ),
    "min_epochs": "set teacher.min_epochs and student.min_epochs",
    "accumulate_grad_batches": "set teacher.batch_size, generator.batch_size and student.batch_size",
    **dict.fromkeys(
        ("check_val_every_n_epoch", "val_check_interval"), "patience and selection validate at the end of every epoch"
    ),
    "limit_val_batches": "set student.validation_samples",
    "logger": "use the group `logger`",
    "callbacks": "use the group `callbacks`",
}
"""Argument of Lightning's trainer that other settings replace -> the remedy in the message."""


def _check_arguments(settings: "TrainerSettings") -> Iterator[str]:
    extra = settings.model_extra or {}
    for name, instead in LIGHTNING.items():
        if name in extra:
            yield f"Expected no setting `trainer.{name}`: {instead}."
    if extra.get("fast_dev_run"):
        yield (
            "Expected no setting `trainer.fast_dev_run`, since a stage would be stored as finished after one batch. "
            "Use debug=fast."
        )
    if extra.get("limit_train_batches", 1) == 0:
        yield "Expected `trainer.limit_train_batches` above 0, but got 0. With 0, nothing is trained."


def _check_strategy(settings: "TrainerSettings") -> Iterator[str]:
    if any(word in settings.strategy for word in ("spawn", "fork", "notebook")):
        yield (
            f"Expected `trainer.strategy` to start separate processes (auto, ddp), but got {settings.strategy}. "
            f"Use trainer=ddp trainer.devices=N."
        )


def _check_precision(settings: "TrainerSettings") -> Iterator[str]:
    if settings.precision == "16-mixed" and settings.accelerator == "cpu":
        yield (
            "Expected `trainer.precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed', which needs a GPU. "
            "Set trainer.precision=bf16-mixed, or trainer=gpu."
        )


class TrainerSettings(Settings):
    """Lightning's trainer. Further settings are its arguments."""

    model_config = ConfigDict(extra="allow")
    RULES = (_check_arguments, _check_strategy, _check_precision)

    target: str = Field(default="pytorch_lightning.Trainer", alias="_target_")
    """Class of the trainer."""
    accelerator: Literal["cpu", "gpu"] = Field(default="cpu", json_schema_extra=FREE)
    """Device of all training."""
    devices: Count = Field(default=1, json_schema_extra=FREE)
    """Number of processes on each machine."""
    num_nodes: Count = Field(default=1, json_schema_extra=FREE)
    """Number of machines. On several machines, torchrun or srun starts the processes."""
    strategy: str = Field(default="auto", json_schema_extra=FREE)
    """Strategy for several processes: auto or ddp."""
    precision: Precision = "32-true"
    """Precision of all training."""
    gradient_clip_val: float | None = None
    """Gradients are clipped to this norm (or value). null: they are not clipped."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """norm, null: the norm of all gradients is clipped. value: each value is clipped."""

    @property
    def processes(self) -> int:
        """Processes of a run, on all machines."""
        return self.devices * self.num_nodes

    def fingerprint(self) -> dict[str, Any]:
        """Return the arguments that can change a result, which include all that a user adds."""
        free = (
            "deterministic", "enable_model_summary", "enable_progress_bar", "num_sanity_val_steps",
            "log_every_n_steps", "use_distributed_sampler",
        )  # fmt: skip
        return {name: value for name, value in super().fingerprint().items() if name not in free and value is not None}
