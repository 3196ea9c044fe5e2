"""Loggers of a stage, from the ``logger`` group of the configuration; one Weights & Biases run per stage."""

import csv
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.utils import instantiate
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import UserError, first_line
from kegnet_pl.runtime.secrets import conceal

_RUN_FILE = "wandb.json"
"""File with the identifier of a stage's W&B run, which a resumed stage continues."""

_OF_FILES = (CSVLogger.__name__, TensorBoardLogger.__name__)
"""Loggers that write to files in the folder of the stage."""

_CURVES = "metrics.csv"
"""File of a CSV logger."""

_OFFLINE = {"offline": True, "mode": "offline"}

ARTIFACTS = ("teacher", "compression", "generators", "student")
"""Stages whose files become W&B artifacts."""


def has_wandb_key() -> bool:
    """Return True if Weights & Biases can log in without a prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


@dataclass
class Loggers:
    """Factory of the loggers of all stages of a run.

    Attributes:
        specifications: Logger name -> ``_target_`` and arguments.
        run_folder: Folder of the run, for W&B files.
        group: W&B group: the sweep, or otherwise the pipeline.
        label: Suffix of the names of W&B runs: data and student.
        tags: Tags of all W&B runs.
        hyperparameters: Resolved configuration to log.
        notify: Called with messages for the user.
        waited: Seconds spent on starting W&B runs and waiting for servers, which count for no stage.
    """

    specifications: Mapping[str, Mapping[str, Any]]
    run_folder: Path
    group: str
    label: str
    tags: Sequence[str]
    hyperparameters: Mapping[str, Any]
    notify: Callable[[str], object]
    waited: float = 0.0
    _wandb: dict[str, WandbLogger] = field(default_factory=dict)
    _unreachable: bool = False

    def __post_init__(self) -> None:
        if not self._wandb_keys:
            return
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(
                "Expected the package wandb for logger=wandb, but it is not installed. Run: pip install wandb"
            ) from error
        try:
            Path.home()
        except RuntimeError as error:
            raise UserError(
                "Expected a home folder for the logger wandb, which keeps its settings there, but this user has none, "
                "and HOME is not set. Set HOME to a writable folder, or remove logger=wandb."
            ) from error

    @property
    def _wandb_keys(self) -> list[str]:
        return [key for key, s in self.specifications.items() if s["_target_"].endswith(f".{WandbLogger.__name__}")]

    def of_files(self) -> "Loggers":
        """Return the loggers that write to files of their own: several processes can use them at once."""
        kept = {key: s for key, s in self.specifications.items() if _target(s) in _OF_FILES}
        return replace(self, specifications=kept)

    def pass_on(self, stage: str, folder: Path, names: Sequence[str]) -> None:
        """Give the curves of networks that other processes have trained to the loggers that only rank 0 has."""
        others = {key: s for key, s in self.specifications.items() if _target(s) not in _OF_FILES}
        if rank() != 0 or not others:
            return
        loggers = replace(self, specifications=others).make(stage, stage, folder)
        for path in (path for name in names for path in sorted(folder.glob(f"logs/{name}/*/{_CURVES}"))):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    metrics = {key: float(value) for key, value in row.items() if value and key != "step"}
                    for logger in loggers:
                        logger.log_metrics(metrics, int(row["step"]))

    def make(self, stage: str, name: str, folder: Path, files: str | None = None) -> list[Logger]:
        """Make the loggers of one fit, one for each specification.

        Args:
            stage: Name of the stage, the W&B job type.
            name: Name of the fit, or of the stage where its fits are logged together.
            folder: Folder of the stage, for csv and TensorBoard files.
            files: Name of the folder of csv and TensorBoard files; None for ``name``.
        """
        loggers: list[Logger] = []
        for key, specification in self.specifications.items():
            target = _target(specification)
            if target == WandbLogger.__name__:
                loggers.append(self._make_wandb(key, specification, stage, name, folder))
                continue
            options = {"save_dir": str(folder), "name": f"logs/{files or name}"} if target in _OF_FILES else {}
            loggers.append(_build(specification, **options))
            if target != CSVLogger.__name__:  # the manifest has them already
                loggers[-1].log_hyperparams(dict(self.hyperparameters))
        return loggers

    def _make_wandb(
        self, key: str, specification: Mapping[str, Any], stage: str, name: str, folder: Path
    ) -> WandbLogger:
        if key in self._wandb:
            return self._wandb[key]
        # Without a key the client would prompt for one; an explicit mode of the user has precedence.
        explicit = "WANDB_MODE" in os.environ or "offline" in specification
        offline = self._unreachable or (not explicit and not has_wandb_key())
        title = stage if stage == name else f"{stage} {name}"
        given = {name: value for name, value in specification.items() if name not in ("artifacts", "settings")}
        settings = {"settings": specification["settings"]} if "settings" in specification else {}  # they hold the key
        options = (
            conceal(given, "${}")
            | settings
            | {  # another form would be resolved again
                "save_dir": str(self.run_folder),
                "name": f"{title} · {self.label}",
                "group": os.environ.get("WANDB_RUN_GROUP") or self.group,
                "job_type": stage,
                "tags": [*self.tags, *(specification.get("tags") or [])],
                "id": _run_id(folder, stage) if rank() == 0 else None,
                "reinit": "create_new",  # leaves a run open that the user has started
                **(_OFFLINE if offline else {}),
            }
        )
        logger = self._open(_build(options), options, folder)
        logger.log_hyperparams({**self.hyperparameters, "stage": stage, "network": name})
        self._wandb[key] = logger
        return logger

    def _open(self, logger: WandbLogger, options: Mapping[str, Any], folder: Path) -> WandbLogger:
        """Start the run; if the server does not answer, keep this run and all later ones offline."""
        from wandb.errors import AuthenticationError, CommError, UsageError

        mode, arguments = os.environ.get("WANDB_MODE"), sys.argv
        sys.argv = conceal(arguments)  # the client records them
        start = time.perf_counter()
        try:
            _ = logger.experiment
        except UsageError as error:
            raise UserError(
                f"Expected a W&B run to start, but got: {error} Or unset WANDB_MODE and logger.wandb.offline: without "
                f"a key, runs are stored offline."
            ) from error
        except (CommError, AuthenticationError) as error:
            self._unreachable = True
            self.notify(
                f"W&B does not respond ({first_line(error)}). Runs are stored offline in "
                f"{self.run_folder}/wandb; later: wandb sync FOLDER/wandb/offline-run-*"
            )
            (folder / _RUN_FILE).unlink(missing_ok=True)  # the client reserves the identifier of the failed run
            logger = _build({**options, **_OFFLINE, "id": _run_id(folder, None)})
            _ = logger.experiment
        finally:
            sys.argv = arguments
            self.waited += time.perf_counter() - start
            if mode is None:  # Lightning sets the variable for the whole process
                os.environ.pop("WANDB_MODE", None)
            else:
                os.environ["WANDB_MODE"] = mode
        return logger

    def show(self, stage: str, folder: Path, make: Callable[[], Mapping[str, Any]]) -> None:
        """Log tables, pictures or histograms to the W&B runs of a stage.

        ``make`` returns wandb objects by name; it is only called if there is a W&B logger.
        """
        if rank() != 0:
            return
        for key in self._wandb_keys:
            self._make_wandb(key, self.specifications[key], stage, stage, folder).experiment.log(dict(make()))

    def finish(self, stage: Stage | None, parents: Sequence[Stage] = (), *, done: bool = False) -> None:
        """Close the W&B runs of a stage when it ends.

        Args:
            stage: The finished stage, whose files become an artifact; None if there is none.
            parents: The stages that it read, whose artifacts it used.
            done: True if the run succeeded without a stage; otherwise it failed or was stopped.
        """
        while self._wandb:
            key, logger = self._wandb.popitem()
            if rank() != 0:
                continue
            run = logger.experiment
            if stage is not None:
                read = {parent.name: parent.fingerprint for parent in parents}
                run.config.update({"fingerprint": stage.fingerprint, "parents": read}, allow_val_change=True)
                run.summary.update({"seconds": stage.seconds})
                if self.specifications[key].get("artifacts", True) and stage.name in ARTIFACTS:
                    _record_artifact(run, stage, parents)
            run.finish(exit_code=0 if stage is not None or done else 1)


def _target(specification: Mapping[str, Any]) -> str:
    """Return the name of the class of a logger."""
    return str(specification["_target_"]).rsplit(".", 1)[-1]


def _build(specification: Mapping[str, Any], **options: Any) -> Any:
    logger = instantiate(dict(specification), **options, _convert_="all")
    if isinstance(logger, WandbLogger):
        logger._wandb_init.pop("anonymous", None)  # Lightning always passes it, and the client warns about it
    return logger


def _run_id(folder: Path, stage: str | None) -> str:
    """Return the identifier of a stage's W&B run: that of the interrupted build, or a new one.

    A new one is ``WANDB_RUN_ID`` and the name of the ``stage``, if the variable is set: each stage has its own W&B run.
    """
    path = folder / _RUN_FILE
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: a new W&B run
        return str(json.loads(path.read_text())["id"])
    given = os.environ.get("WANDB_RUN_ID")
    identifier = f"{given}-{stage}" if given and stage else secrets.token_hex(4)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({"id": identifier}) + "\n")
    return identifier


def _record_artifact(run: Any, stage: Stage, parents: Sequence[Stage]) -> None:
    """Log a stage's files as an artifact, with the artifacts of its parents.

    The client refuses ``use_artifact`` offline; the artifact's metadata and the run's configuration name the parents.
    """
    import wandb

    used = {parent.name: f"{parent.name}-{parent.fingerprint}" for parent in parents if parent.name in ARTIFACTS}
    if not run.offline:
        for name in used.values():
            run.use_artifact(f"{name}:latest")
    artifact = wandb.Artifact(
        f"{stage.name}-{stage.fingerprint}",
        type=stage.name,
        metadata={
            "fingerprint": stage.fingerprint, "parents": used, "metrics": stage.metrics, "seconds": stage.seconds,
            "command": stage.manifest["command"],
        },
    )  # fmt: skip
    for path in sorted(path for path in stage.folder.iterdir() if path.is_file()):
        # Finished stages do not change, so wandb need not copy the file to a folder outside the run's.
        artifact.add_file(str(path), policy="immutable")
    run.log_artifact(artifact)
