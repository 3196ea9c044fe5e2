"""Settings of a run, and the rules across groups."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError

from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.manifests import Verify
from kegnet_pl.settings.base import Count, Object, Positive, Resume, Seed, Settings, explained
from kegnet_pl.settings.compression import DEFAULT_SOURCE, CompressionSettings
from kegnet_pl.settings.data import ENTRY_POINTS, DataSettings, Mixtures
from kegnet_pl.settings.distillation import GeneratorSettings, StudentSettings
from kegnet_pl.settings.messages import explain
from kegnet_pl.settings.quantization import QuantizationSettings
from kegnet_pl.settings.training import TeacherSettings, TrainerSettings


def _check_sources(run: "RunSettings") -> Iterator[str]:
    installed = importlib.metadata.entry_points(group=ENTRY_POINTS).names
    known = sorted({*run.source, *installed})
    unknown = sorted({name for mixture in run.sources for name in mixture} - set(known))
    if unknown:
        yield f"Expected `sources` to be a list of names from {', '.join(known)}, but got {', '.join(unknown)}."
    used = {
        "compression": run.compression.source if run.compression.fit == "function" else {},
        "quantization": run.quantization.source if run.quantization.needs_samples else {},
    }
    for part, given in used.items():
        unknown = sorted(set(given) - {*known, *DEFAULT_SOURCE})  # the default needs no entry in `source`
        if unknown:
            yield f"Expected `{part}.source` to be one of {', '.join(known)}, but got {', '.join(unknown)}."
    unknown = sorted(set(run.agreement.sources or ()) - set(known))
    if unknown:
        yield (
            f"Expected `agreement.sources` to be a list of names from {', '.join(known)}, but got {', '.join(unknown)}."
        )


def _check_teacher(run: "RunSettings") -> Iterator[str]:
    if run.teacher.is_program and run.student.network is None:
        yield (
            f"Expected a student with another architecture, since the layers of {run.teacher.network['path']} "
            f"(TorchScript or torch.export) cannot be compressed, but got student=tucker. Choose student=resnet14, "
            f"resnet20, lenet5, mlp or your own (+student.network._target_=mypackage.MyNet), or build the teacher from "
            f"its class, with teacher.weights=FILE."
        )
    if run.teacher.is_program and run.quantization.format is not None:
        yield (
            f"Expected quantization=none with a teacher that is a program ({run.teacher.network['path']}), since it "
            f"cannot be exported to ONNX again. Quantise the student: python -m kegnet_pl.export RUN --int8"
        )
    if run.teacher.pretrained or run.teacher.is_program:
        if run.teacher.weights is not None:
            reason = "the program has weights" if run.teacher.is_program else "teacher.pretrained=true"
            yield (
                f"Expected `teacher.weights` to be null, since the network comes with weights ({reason}), but got "
                f"{run.teacher.weights!r}. Set teacher.weights=null, or teacher.pretrained=false."
            )
    elif run.data.target is None and run.teacher.weights is None:
        yield (
            "Expected `teacher.weights`, a file of trained weights, since data=none has no data to train a teacher, "
            "but got null. Add teacher.weights=FILE, set teacher.pretrained=true if the constructor returns trained "
            "weights, or choose data=..."
        )
    elif run.teacher.weights_url is not None and run.teacher.weights is None:
        yield (
            f"Expected `teacher.weights`, a file of trained weights, since the preset does not train a teacher, but "
            f"got null. Download it from {run.teacher.weights_url} and add teacher.weights=FILE. To train a teacher on "
            f"the real data, set teacher.weights_url=null."
        )


def _check_selection(run: "RunSettings") -> Iterator[str]:
    if run.student.selection == "real" and run.data.target is None:
        yield (
            "Expected real data for student.selection=real, but got data=none. Set student.selection=synthetic or last."
        )


def _check_plan(run: "RunSettings") -> Iterator[str]:
    if (
        run.compression.method == "tucker"
        and run.compression.rules is None
        and run.teacher.name not in run.compression.plans
    ):
        name, teachers = run.compression.name, ", ".join(run.compression.plans) or "none"
        yield (
            f"Expected a plan of compression={name} for teacher={run.teacher.name}, but it has plans for {teachers}. "
            f"Choose compression=ratio (and compression.target=4), evbmf or fraction, or write a plan: a file "
            f"compression/NAME.yaml with `rules` in the folder of --config-dir."
        )


def _check_batches(part: str, run: "RunSettings") -> Iterator[str]:
    size, processes = getattr(run, part).batch_size, run.trainer.processes
    if part == "generator" and run.generator.is_spread(processes):
        return
    if size % processes:
        yield (
            f"Expected `{part}.batch_size` to be a multiple of the {processes} processes (trainer.devices x "
            f"trainer.num_nodes), but got {size}."
        )
    if part == "generator" and size < 2 * processes:  # batch norm
        yield f"Expected `generator.batch_size` to be a whole number of at least {2 * processes}, but got {size}."


def _check_clipping(run: "RunSettings") -> Iterator[str]:
    by_norm = run.trainer.gradient_clip_val is not None and run.trainer.gradient_clip_algorithm != "value"
    if run.generator.parallel == "vmap" and run.generator.count > 1 and by_norm:
        yield (
            "Expected `trainer.gradient_clip_algorithm` to be value with generator.parallel=vmap, since the norm would "
            "be that of all generators together. Set trainer.gradient_clip_algorithm=value, or "
            "generator.parallel=sequential."
        )


def _check_samples(run: "RunSettings") -> Iterator[str]:
    if {"kegnet": 1.0} not in run.sources:
        return
    names = ("samples", "validation_samples") if run.student.selection == "synthetic" else ("samples",)
    for name in names:
        value = getattr(run.student, name)
        if value % run.generator.count:
            yield (
                f"Expected `student.{name}` to be a multiple of generator.count={run.generator.count}, but got {value}."
            )


def _check_objective(run: "RunSettings") -> Iterator[str]:
    if run.objective != "accuracy" and run.agreement.sources == []:
        yield (
            f"Expected `agreement.sources` with at least one source for objective={run.objective}, but got none. Set "
            f"agreement.sources=null for the default sources."
        )
    if run.objective == "agreement_and_speed" and not run.latency.batch_sizes:
        yield (
            "Expected `latency.batch_sizes` with at least one size for objective=agreement_and_speed, but got none. "
            "Set 'latency.batch_sizes=[1,64]'."
        )


def _no_null(value: Any) -> Any:
    return {} if value is None else value


def _objects(group: str) -> Any:
    extra = explained("objects by name", f"Remove it with ~{group}.NAME.")
    return Field(default={}, json_schema_extra=extra)


class LatencySettings(Settings):
    """Measurement of the time of teacher and student for a batch."""

    batch_sizes: list[Count] = Field(
        default=[1, 64], json_schema_extra=explained("a list of whole numbers of at least 1")
    )
    """Batch sizes. With an empty list, nothing is measured."""
    seconds: Positive = 0.5
    """Measuring time per batch size, for 5 to 200 rounds."""


class AgreementSettings(Settings):
    """Measurement of the agreement of students and teacher on samples of sources. It needs no data."""

    sources: list[str] | None = Field(default=None, json_schema_extra=explained("a list of names of sources"))
    """Sources without generators and without real data. null: waves, procedural and fields for images and signals;
    procedural, fields, normal and uniform for rows of features and volumes. With an empty list, nothing is measured."""
    samples: Count = 2_000
    """Number of samples of each source."""


class RunSettings(Settings):
    """All settings of a run."""

    RULES = (
        _check_sources,
        _check_teacher,
        _check_selection,
        _check_plan,
        *(partial(_check_batches, part) for part in ("teacher", "generator", "student")),
        _check_clipping,
        _check_samples,
        _check_objective,
    )

    seed: Seed = 0
    """Seed from which all random numbers are derived."""
    preset: Literal["auto", "none"] = "auto"
    """auto: for a teacher with weights and without experiment=..., the command line chooses one of
    experiment=custom/... none: the command line keeps the default experiment."""
    recipe: str = Field(default="strict", json_schema_extra=explained("a name"))
    """Name of the recipe in tables. It has no other effect."""
    trial: bool = False
    """true (set by debug=fast): all results get a warning that they have no meaning. It has no other effect."""
    sources: Mixtures
    """Sources of samples: names of sources, or mixtures with shares. The run trains one student per entry."""
    source: dict[str, Object] = _objects("source")
    """Sources by name."""
    store: Annotated[str, Field(min_length=1)] = Field(default="outputs/store", json_schema_extra=explained("a folder"))
    """Folder of finished stages. All runs share it."""
    resume: Resume = "auto"
    """auto: finished stages are used, and interrupted ones are continued. never: all stages are built again. require: a
    missing stage is an error."""
    verify_store: Verify = "auto"
    """Check of finished stages. auto: files are compared with their SHA-256 once per process. always: they are compared
    each time a stage is found. never: only sizes are compared, but networks are checked as with auto when loaded."""
    objective: Literal["accuracy", "agreement", "agreement_and_speed"] = "accuracy"
    """Result of a run for hydra/sweeper=optuna: agreement of the last student with the teacher, or agreement and
    speed-up. With this sweeper, accuracy is an error, since test data must not select a student."""
    sweep: str | None = Field(default=None, json_schema_extra=explained("a name"))
    """Name of the sweep. null: the name is made from the settings that the sweep varies."""
    data: DataSettings
    """Real data."""
    teacher: TeacherSettings
    """The trained network."""
    generator: GeneratorSettings
    """The generators."""
    student: StudentSettings
    """The students."""
    compression: CompressionSettings
    """The compression of the teacher."""
    quantization: QuantizationSettings = QuantizationSettings()
    """The quantisation of finished networks."""
    latency: LatencySettings = LatencySettings()
    """Time of teacher and student for a batch."""
    agreement: AgreementSettings = AgreementSettings()
    """Agreement of students and teacher on synthetic samples."""
    trainer: TrainerSettings = TrainerSettings()
    """Device and precision of all training."""
    logger: Annotated[dict[str, Object], BeforeValidator(_no_null)] = _objects("logger")
    """Lightning loggers by name."""
    callbacks: dict[str, Object] = _objects("callbacks")
    """Lightning callbacks by name."""

    @classmethod
    def from_config(cls, plain: Mapping[str, Any]) -> Self:
        """Return the settings of a resolved, plain configuration, with the plan for the teacher.

        Raises:
            ConfigError: If settings are wrong. The message has a line for each, with the allowed and the given value.
        """
        if not isinstance(plain, Mapping):
            raise ConfigError(f"Expected settings by name, but got {plain!r:.100}.")
        try:
            settings = cls.model_validate(dict(plain))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, plain)) from error
        return settings.model_copy(update={"compression": settings.compression.plan_for(settings.teacher.name)})
