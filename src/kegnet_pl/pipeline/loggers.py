"""Loggers of a stage, from the configuration's ``logger`` group; Weights & Biases has one run a stage."""

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.utils import instantiate
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.atomic_files import write_whole
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import UserError, first_line

_RUN_FILE = "wandb.json"
"""Where a stage remembers its W&B run: one that was broken off goes on with it."""


_OFFLINE = {"offline": True, "mode": "offline"}

ARTIFACTS = ("teacher", "compression", "generators", "student")
"""Stages whose files become W&B artifacts."""


def has_wandb_key() -> bool:
    """Whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL") or _default_server()).hostname or ""
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _default_server() -> str:
    import wandb

    return str(wandb.Settings().base_url)


@dataclass
class Loggers:
    """Makes the loggers of all stages of a run.

    Attributes:
        specifications: Logger name -> ``_target_`` and arguments.
        run_folder: The run's folder: W&B files go there.
        group: W&B group: the sweep, or else the pipeline.
        label: What the W&B runs' names end with: data and student.
        tags: Of all W&B runs.
        hyperparameters: Resolved configuration to log.
        tell: Shows a message to the user.
        waited: Seconds spent on starting W&B runs, and on servers that did not answer: no work of any stage.
    """

    specifications: Mapping[str, Mapping[str, Any]]
    run_folder: Path
    group: str
    label: str
    tags: Sequence[str]
    hyperparameters: Mapping[str, Any]
    tell: Callable[[str], object]
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
                "Expected the package wandb for its logger, but it is missing: pip install wandb"
            ) from error

    @property
    def _wandb_keys(self) -> list[str]:
        return [key for key, s in self.specifications.items() if s["_target_"].endswith(f".{WandbLogger.__name__}")]

    def make(self, stage: str, name: str, folder: Path) -> list[Logger]:
        """Make the loggers of one fit.

        Args:
            stage: Stage, the W&B job type.
            name: Name of the fit, the stage's where its fits are logged together; the folder of csv files.
            folder: The stage's folder: csv and TensorBoard files go there.

        Returns:
            One logger for each specification.
        """
        loggers: list[Logger] = []
        for key, specification in self.specifications.items():
            target = specification["_target_"].rsplit(".", 1)[-1]
            if target == WandbLogger.__name__:
                logger: Logger = self._make_wandb(key, specification, stage, name, folder)
            elif target in (CSVLogger.__name__, TensorBoardLogger.__name__):
                logger = _build(specification, save_dir=str(folder), name=f"logs/{name}")
            else:
                logger = _build(specification)
            if target not in (CSVLogger.__name__, WandbLogger.__name__):  # the manifest has them already
                logger.log_hyperparams(dict(self.hyperparameters))
            loggers.append(logger)
        return loggers

    def _make_wandb(
        self, key: str, specification: Mapping[str, Any], stage: str, name: str, folder: Path
    ) -> WandbLogger:
        first = self._wandb.get(key)
        options = {name: value for name, value in specification.items() if name != "artifacts"}
        if first is None:
            # Without a key the client would ask for one; with WANDB_MODE the user has decided.
            decided = "WANDB_MODE" in os.environ or "offline" in specification
            offline = self._unreachable or (not decided and not has_wandb_key())
            title = stage if stage == name else f"{stage} {name}"
            options |= {
                "save_dir": str(self.run_folder),
                "name": f"{title} · {self.label}",
                "group": self.group,
                "job_type": stage,
                "tags": [*self.tags, *(specification.get("tags") or [])],
                "id": _run_id(folder) if rank() == 0 else None,
                "reinit": "create_new",  # a run of the user's own stays what it is
                **(_OFFLINE if offline else {}),
            }
            first = self._open(_build(options), options, folder)
            first.log_hyperparams({**self.hyperparameters, "stage": stage, "network": name})
            self._wandb[key] = first
        return first

    def _open(self, logger: WandbLogger, options: Mapping[str, Any], folder: Path) -> WandbLogger:
        """Start the run; without an answer from the server it is kept offline, like all that follow."""
        from wandb.errors import AuthenticationError, CommError, UsageError

        mode = os.environ.get("WANDB_MODE")
        start = time.perf_counter()
        try:
            _ = logger.experiment
        except UsageError as error:
            raise UserError(
                f"Expected a W&B run to start, but: {error} Or do without WANDB_MODE and logger.wandb.offline: "
                f"runs are kept offline where there is no key."
            ) from error
        except (CommError, AuthenticationError) as error:
            self._unreachable = True
            self.tell(
                f"W&B does not answer ({first_line(error)}): runs are kept offline in "
                f"{self.run_folder}/wandb; later: wandb sync FOLDER/wandb/offline-run-*"
            )
            (folder / _RUN_FILE).unlink(missing_ok=True)  # the client holds on to the identifier
            logger = _build({**options, **_OFFLINE, "id": _run_id(folder)})
            _ = logger.experiment
        finally:
            self.waited += time.perf_counter() - start
            # Lightning turns the whole process offline.
            if mode is None:
                os.environ.pop("WANDB_MODE", None)
        return logger

    def show(self, stage: str, folder: Path, make: Callable[[], Mapping[str, Any]]) -> None:
        """Log tables, pictures or histograms into the W&B runs of a stage.

        Args:
            stage: The stage.
            folder: Its folder.
            make: Returns what to show by name, objects of wandb; called where there is a W&B logger alone.
        """
        if rank() != 0:
            return
        for key in self._wandb_keys:
            logger = self._wandb.get(key) or self._make_wandb(key, self.specifications[key], stage, stage, folder)
            logger.experiment.log(dict(make()))

    def finish(self, stage: Stage | None, parents: Sequence[Stage] = (), *, done: bool = False) -> None:
        """Close the W&B runs of a stage: they end with it, not with the program.

        Args:
            stage: The finished stage, whose files become an artifact; None where there is none.
            parents: The stages it was made from: the artifacts it has used.
            done: Whether all went well without a stage; else it failed, or was stopped.
        """
        while self._wandb:
            key, logger = self._wandb.popitem()
            if rank() != 0:
                continue
            run = logger.experiment
            if stage is not None:
                known = {
                    "fingerprint": stage.fingerprint,
                    "parents": {parent.name: parent.fingerprint for parent in parents},
                }
                run.config.update(known, allow_val_change=True)
                run.summary.update({"seconds": stage.seconds})
                if self.specifications[key].get("artifacts", True) and stage.name in ARTIFACTS:
                    _record_artifact(run, stage, parents)
            run.finish(exit_code=0 if stage is not None or done else 1)


def _build(specification: Mapping[str, Any], **options: Any) -> Any:
    logger = instantiate(dict(specification), **options, _convert_="all")
    if isinstance(logger, WandbLogger):
        logger._wandb_init.pop("anonymous", None)  # Lightning always passes it, and the client warns of it
    return logger


def _run_id(folder: Path) -> str:
    """Return the identifier of a stage's W&B run: a new one, or that of the build that was broken off."""
    path = folder / _RUN_FILE
    if path.exists():
        return str(json.loads(path.read_text())["id"])
    identifier = secrets.token_hex(4)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"id": identifier}) + "\n")
    return identifier


def artifact_name(stage: Stage) -> str:
    """Return the name of a stage's artifact: that of its folder."""
    return f"{stage.name}-{stage.fingerprint}"


def _record_artifact(run: Any, stage: Stage, parents: Sequence[Stage]) -> None:
    """Log a stage's files, and which artifacts it was made from.

    Offline the client refuses ``use_artifact``; the artifact's metadata and the run's configuration name the parents.
    """
    import wandb

    used = [parent for parent in parents if parent.name in ARTIFACTS]
    if not run.offline:
        for parent in used:
            run.use_artifact(f"{artifact_name(parent)}:latest")
    manifest = stage.manifest
    artifact = wandb.Artifact(
        artifact_name(stage),
        type=stage.name,
        metadata={
            "fingerprint": stage.fingerprint, "parents": {parent.name: artifact_name(parent) for parent in used},
            "metrics": manifest["metrics"], "seconds": stage.seconds, "command": manifest["command"],
        },
    )  # fmt: skip
    for path in sorted(path for path in stage.folder.iterdir() if path.is_file()):
        # Finished stages do not change: no copy is made, which would lie outside the run's folder.
        artifact.add_file(str(path), policy="immutable")
    run.log_artifact(artifact)
