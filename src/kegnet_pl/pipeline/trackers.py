"""Trackers: the output of one logger of the configuration over all stages of a pipeline."""

import csv
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from kegnet_pl.pipeline.kept_runs import KeptRun
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.attempts import find_tables
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import ConfigError, first_line

Result = Mapping[str, float | str]
"""Name of a result of a pipeline -> its value, see :func:`kegnet_pl.reporting.results.summarize`."""

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard files in the folder of a run."""


@dataclass(frozen=True)
class RunInfo:
    """Description of a run for trackers.

    Attributes:
        folder: Folder of the run.
        pipeline: Name of the pipeline; runs with the same settings share it.
        label: Name of the run: data, student and seed.
        tags: Tags of the run.
        hyperparameters: Resolved configuration to log.
        notify: Called with messages for the user.
        sweep: Name of the sweep; None if there is none.
        kept: Folder for the identifiers of interrupted runs; None keeps none.
    """

    folder: Path
    pipeline: str
    label: str
    tags: Sequence[str]
    hyperparameters: Mapping[str, Any]
    notify: Callable[[str], object]
    sweep: str | None = None
    kept: Path | None = None


class Namespaced(Logger):
    """Logger of a stage that writes to the run of the whole pipeline: ``train/loss`` is ``teacher/train/loss`` there.

    Args:
        base: Logger of the pipeline's run, which stays open after the stage.
        namespace: Prefix of metrics.
    """

    def __init__(self, base: Logger, namespace: str) -> None:
        super().__init__()
        self.base = base
        self.namespace = namespace

    @property
    def name(self) -> str | None:
        """Name of the pipeline's logger."""
        return self.base.name

    @property
    def version(self) -> int | str | None:
        """Version of the pipeline's logger."""
        return self.base.version

    @property
    def experiment(self) -> Any:
        """The run of the pipeline, as its client has it."""
        return self.base.experiment  # type: ignore[attr-defined]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics with the namespace."""
        if rank() == 0:
            self.base.log_metrics({f"{self.namespace}/{name}": value for name, value in metrics.items()}, step)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Log nothing: the run has the settings of the whole pipeline."""

    def save(self) -> None:
        """Write buffered values."""
        self.base.save()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Pass a checkpoint on, for loggers that store checkpoints."""
        self.base.after_save_checkpoint(checkpoint_callback)


def namespace_of(stage: str, name: str) -> str:
    """Return the namespace of a fit in the run of a pipeline: ``teacher``, ``generators`` or ``student/kegnet``."""
    return f"student/{name}" if stage == "student" else stage


def build_logger(key: str, specification: Mapping[str, Any], **options: Any) -> Any:
    """Build a logger of the configuration.

    Raises:
        ConfigError: If the settings do not fit its class.
    """
    try:
        return instantiate(dict(specification), **options, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"Expected `logger.{key}` to be built from its settings, but got: {first_line(cause).rstrip('.')}. See the "
            f"arguments of {specification['_target_']}."
        ) from error


def check_names(key: str, names: Iterable[str], function: Callable[..., Any]) -> None:
    """Check that a function has arguments of these names.

    Raises:
        ConfigError: If it has not.
    """
    known = set(inspect.signature(function).parameters)
    unknown = ", ".join(name for name in names if name not in known)
    if unknown:
        raise ConfigError(
            f"Expected arguments of {function.__module__}.{function.__qualname__} in `logger.{key}`, but got "
            f"{unknown}. Remove it, or correct its name."
        )


@dataclass
class Tracker:
    """A logger that is built for every fit, such as the user's own.

    Attributes:
        key: Name of the logger in the group ``logger``.
        specification: ``_target_`` and arguments.
        info: Description of the run.
        waited: Seconds spent on starting runs and waiting for servers, which count for no stage.
    """

    key: str
    specification: Mapping[str, Any]
    info: RunInfo
    waited: float = 0.0

    def start(self) -> None:
        """Check the settings, and open the run of the pipeline if there is one; nothing has been trained yet.

        Raises:
            ConfigError: If settings are wrong.
        """
        try:
            target = get_object(self.specification["_target_"])
        except Exception as error:  # any, as it may be the user's module
            raise ConfigError(
                f"Expected `logger.{self.key}._target_` to be a Lightning logger, but "
                f"{self.specification['_target_']} cannot be imported: {first_line(error).rstrip('.')}. Check its name "
                f"and PYTHONPATH."
            ) from error
        given = {name: value for name, value in self.specification.items() if not name.startswith("_")}
        try:
            inspect.signature(target).bind(**given)
        except TypeError as error:
            raise ConfigError(
                f"Expected `logger.{self.key}` to have the arguments of {self.specification['_target_']}, but got: "
                f"{error}. Correct its settings."
            ) from error

    def make(self, stage: str, name: str, folder: Path) -> Logger | None:
        """Return the logger of a fit; see :meth:`kegnet_pl.pipeline.loggers.Loggers.make`."""
        logger: Logger = build_logger(self.key, self.specification)
        logger.log_hyperparams(dict(self.info.hyperparameters))
        return logger

    def show(self, stage: str, name: str, folder: Path, make: Callable[[], Mapping[str, Any]]) -> None:
        """Log W&B objects, if this is W&B."""

    def finish_stage(self, stage: Stage, parents: Sequence[Stage]) -> None:
        """Log a finished stage."""

    def finish(self, result: Result | None) -> None:
        """Close open runs; ``result`` is None if the run failed."""


class CSVTracker(Tracker):
    """``metrics.csv`` in the folder of a stage."""

    def start(self) -> None:
        """Check the settings."""
        self.make("", "", self.info.folder)

    def make(self, stage: str, name: str, folder: Path) -> Logger:
        """Return the logger of a fit."""
        logger: CSVLogger = build_logger(self.key, self.specification, save_dir=str(folder), name=f"logs/{name}")
        return logger  # the manifest has the settings already


@dataclass
class PipelineTracker(Tracker):
    """A logger with one run for the whole pipeline, in which every fit has a namespace.

    Curves of stages that were trained before are copied from their CSV files, so the run has all curves.
    """

    kept: KeptRun = field(default_factory=lambda: KeptRun(None))

    def open(self, namespace: str) -> Logger:
        """Return the logger that takes the metrics of a namespace."""
        raise NotImplementedError

    def make(self, stage: str, name: str, folder: Path) -> Logger | None:
        """Return the logger of a fit, which continues the curves of an interrupted one."""
        if stage == "evaluation":  # in the result of the run
            return None
        namespace = namespace_of(stage, name)
        logger = self.open(namespace)
        self._copy_curves(logger, namespace, [folder / "logs" / name])
        return logger

    def finish_stage(self, stage: Stage, parents: Sequence[Stage]) -> None:
        """Copy the curves of a stage that was trained before."""
        if rank() != 0 or stage.name == "evaluation":
            return
        logs = sorted((stage.folder / "logs").glob("*"))
        for namespace in dict.fromkeys(namespace_of(stage.name, path.name) for path in logs):
            # Processes that train generators of their own have a folder each.
            together = [path for path in logs if namespace_of(stage.name, path.name) == namespace]
            self._copy_curves(self.open(namespace), namespace, together)

    def _copy_curves(self, logger: Logger, namespace: str, logs: Sequence[Path]) -> None:
        if rank() == 0 and self.kept.begin(namespace):
            copy_curves(logger, logs)


class TensorBoardTracker(PipelineTracker):
    """TensorBoard files in the folder of the run: one TensorBoard run per fit, and one for the result."""

    def __init__(self, key: str, specification: Mapping[str, Any], info: RunInfo) -> None:
        super().__init__(key, specification, info)
        self._open: dict[str, TensorBoardLogger] = {}

    def start(self) -> None:
        """Check the settings."""
        from torch.utils.tensorboard import SummaryWriter

        check_names(self.key, self._build("result")._kwargs, SummaryWriter)

    def open(self, namespace: str) -> Logger:
        """Return the logger of a namespace."""
        if namespace not in self._open:
            self._open[namespace] = self._build(namespace)
            self._open[namespace].hparams.update(self.info.hyperparameters)  # for hparams.yaml
        return self._open[namespace]

    def _build(self, namespace: str) -> TensorBoardLogger:
        logger: TensorBoardLogger = build_logger(
            self.key,
            self.specification,
            save_dir=str(self.info.folder),
            name=TENSORBOARD,
            version=namespace,
            default_hp_metric=False,
            purge_step=0,  # an earlier attempt in the same folder: its curves are copied
        )
        return logger

    def finish(self, result: Result | None) -> None:
        """Log settings and result, from which TensorBoard makes its table HPARAMS."""
        if rank() == 0 and result is not None:
            numbers = {name: value for name, value in result.items() if "/" not in name and not isinstance(value, str)}
            logger = self._build("result")
            logger.log_hyperparams(dict(self.info.hyperparameters), numbers, step=0)
            self._open["result"] = logger
        while self._open:
            self._open.popitem()[1].finalize("success")


def copy_curves(logger: Logger, logs: Iterable[Path]) -> None:
    """Log the curves in the folders of CSV loggers to another logger."""
    for path in logs:
        for step, metrics in read_metrics(path).items():
            logger.log_metrics(metrics, step)


def read_metrics(logs: Path) -> dict[int, dict[str, float]]:
    """Read what a CSV logger has written, also in several attempts: step -> metrics by name."""
    rows: dict[int, dict[str, float]] = {}
    for path in find_tables(logs):
        with suppress(OSError, ValueError), path.open(newline="") as file:
            for line in csv.DictReader(file):
                step = int(line.pop("step"))
                rows.setdefault(step, {}).update({name: float(value) for name, value in line.items() if value})
    return dict(sorted(rows.items()))
