"""Runs of Weights & Biases: one for the whole pipeline, or one for each stage."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger, WandbLogger

from kegnet_pl.pipeline.kept_runs import KeptRun
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trackers import (
    Namespaced,
    PipelineTracker,
    Result,
    RunInfo,
    build_logger,
    check_names,
    namespace_of,
)
from kegnet_pl.pipeline.wandb_artifacts import ARTIFACTS, record_artifact
from kegnet_pl.reporting.names import name_network
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import ConfigError, UserError, first_line
from kegnet_pl.runtime.secrets import conceal

_RUN_FILE = "wandb.json"
"""File with the identifier of a stage's W&B run, which a resumed stage continues."""

_OFFLINE = {"offline": True, "mode": "offline"}

_OURS = ("artifacts", "runs", "settings")
"""Settings that are not passed on as they are."""

PIPELINE = "pipeline"
"""Key of the run of the whole pipeline among open runs."""


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


class WandbCurves(Namespaced):
    """Logger of a stage in the pipeline's run; every namespace counts its own steps, as ``teacher/step``."""

    def __init__(self, base: WandbLogger, namespace: str) -> None:
        super().__init__(base, namespace)
        self._defined: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics over the steps of the namespace."""
        if rank() != 0:
            return
        step_metric = f"{self.namespace}/step"
        named = {f"{self.namespace}/{name}": value for name, value in metrics.items()}
        if step is not None:
            if not self._defined:
                self.experiment.define_metric(step_metric, hidden=True)
            for name in named.keys() - self._defined:
                self.experiment.define_metric(name, step_metric=step_metric)
            self._defined |= named.keys()
            named[step_metric] = step
        self.experiment.log(named)


class WandbTracker(PipelineTracker):
    """Runs of W&B; ``logger.wandb.runs`` is ``pipeline`` or ``stages``."""

    def __init__(self, key: str, specification: Mapping[str, Any], info: RunInfo) -> None:
        super().__init__(key, specification, info)
        self.runs = specification.get("runs", "pipeline")
        self._open: dict[str, WandbLogger] = {}
        self._curves: dict[str, WandbCurves] = {}
        self._unreachable = False
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(
                "Expected the package wandb for its logger, but it is missing: pip install wandb"
            ) from error
        try:
            Path.home()
        except RuntimeError as error:
            raise UserError(
                "Expected a home folder for the logger wandb, which keeps its settings there, but this user has none "
                "and HOME is not set. Set HOME to a writable folder, or remove logger=wandb."
            ) from error
        if self.runs not in ("pipeline", "stages"):
            raise ConfigError(f"Expected `logger.{key}.runs` to be pipeline or stages, but got {self.runs!r}.")
        if self.runs == "stages" and os.environ.get("WANDB_SWEEP_ID"):
            raise ConfigError(
                f"Expected `logger.{key}.runs` to be pipeline in a W&B sweep, whose agent has one run for this "
                f"process, but got stages. Set logger.{key}.runs=pipeline."
            )

    def start(self) -> None:
        """Check the settings, and open the run of the pipeline.

        Raises:
            ConfigError: If settings are wrong.
            UserError: If W&B refuses the run.
        """
        import wandb

        check_names(self.key, self._build({})._wandb_init, wandb.init)
        if self.runs == "stages":
            return
        kept = self.info.kept
        self.kept = KeptRun(kept / f"{self.info.pipeline}.wandb.json" if kept is not None and rank() == 0 else None)
        given = os.environ.get("WANDB_RUN_ID")
        if given and self.info.sweep and not os.environ.get("WANDB_SWEEP_ID"):
            given = f"{given}-{self.info.pipeline}"  # the jobs of a Hydra sweep share the variable
        self.info.folder.mkdir(parents=True, exist_ok=True)
        self._begin(
            PIPELINE,
            {
                "name": self.info.label,
                "group": os.environ.get("WANDB_RUN_GROUP") or self.info.sweep,
                "job_type": "pipeline",
                "id": self.kept.start(given) if rank() == 0 else None,
            },
            lambda: KeptRun(None).start(),
        ).log_hyperparams(dict(self.info.hyperparameters))

    def open(self, namespace: str) -> Logger:
        """Return the logger of a namespace in the run of the pipeline."""
        if namespace not in self._curves:
            self._curves[namespace] = WandbCurves(self._open[PIPELINE], namespace)
        return self._curves[namespace]

    def make(self, stage: str, name: str, folder: Path) -> Logger | None:
        """Return the logger of a fit."""
        return super().make(stage, name, folder) if self.runs == "pipeline" else self._of_stage(stage, name, folder)

    def show(self, stage: str, name: str, folder: Path, make: Callable[[], Mapping[str, Any]]) -> None:
        """Log tables, pictures or histograms; the objects of a report have no namespace."""
        if rank() != 0:
            return
        if self.runs == "stages":
            self._of_stage(stage, name, folder).experiment.log(dict(make()))
            return
        prefix = {"report": "", "evaluation": f"{name}/"}.get(stage, f"{namespace_of(stage, name)}/")
        self._open[PIPELINE].experiment.log({f"{prefix}{key}": value for key, value in make().items()})

    def finish_stage(self, stage: Stage, parents: Sequence[Stage]) -> None:
        """Log the files of a stage as an artifact; close its run if it has one."""
        if self.runs == "pipeline":
            super().finish_stage(stage, parents)
        if not self._open or rank() != 0:
            return
        (logger,) = self._open.values()
        run = logger.experiment
        read = {parent.name: parent.fingerprint for parent in parents}
        if self.runs == "stages":
            run.config.update({"fingerprint": stage.fingerprint, "parents": read}, allow_val_change=True)
            run.summary.update({"seconds": stage.seconds})
        elif stage.name in ARTIFACTS:
            names = sorted(path.name for path in (stage.folder / "logs").glob("*")) or [stage.name]
            for namespace in {namespace_of(stage.name, name) for name in names}:
                run.config.update({f"{namespace}/fingerprint": stage.fingerprint}, allow_val_change=True)
                run.summary.update({f"{namespace}/seconds": stage.seconds})
        if self.specification.get("artifacts", True) and stage.name in ARTIFACTS:
            record_artifact(run, stage, parents, used=self.runs == "pipeline" and stage.found)
        if self.runs == "stages":
            self._close(0)

    def finish(self, result: Result | None) -> None:
        """Log the result to the summary of the run, and close it."""
        if result is not None and rank() == 0:
            for logger in self._open.values():
                logger.experiment.summary.update(dict(result))
        self._close(1 if result is None else 0)
        self.kept.close(success=result is not None)

    def _close(self, code: int) -> None:
        self._curves.clear()
        while self._open:
            _, logger = self._open.popitem()
            if rank() == 0:
                logger.experiment.finish(exit_code=code)

    def _of_stage(self, stage: str, name: str, folder: Path) -> WandbLogger:
        """Return the logger of a stage that has its own run."""
        if stage in self._open:
            return self._open[stage]
        title = stage if stage == name else f"{stage} {name_network(name)}"
        options = {
            "name": f"{title} · {self.info.label}",
            "group": os.environ.get("WANDB_RUN_GROUP") or self.info.sweep or self.info.pipeline,
            "job_type": stage,
            "id": run_id(folder, stage) if rank() == 0 else None,
        }

        def renew() -> str:
            (folder / _RUN_FILE).unlink(missing_ok=True)
            return run_id(folder, None)

        logger = self._begin(stage, options, renew)
        logger.log_hyperparams({**self.info.hyperparameters, "stage": stage, "network": name})
        return logger

    def _build(self, options: Mapping[str, Any]) -> WandbLogger:
        # A secret in another form would be resolved again; the settings hold the key.
        given = conceal({name: value for name, value in self.specification.items() if name not in _OURS}, "${}")
        settings = {"settings": self.specification["settings"]} if "settings" in self.specification else {}
        logger: WandbLogger = build_logger(self.key, {**given, **settings, **options})
        if isinstance(logger, WandbLogger):
            logger._wandb_init.pop("anonymous", None)  # Lightning always passes it, and the client warns about it
        return logger

    def _begin(self, key: str, options: Mapping[str, Any], renew: Callable[[], str]) -> WandbLogger:
        """Start a run; if the server does not answer, keep this run and all later ones offline.

        ``renew`` returns another identifier, as the client reserves that of a run that has failed.
        """
        from wandb.errors import AuthenticationError, CommError, UsageError

        # Without a key the client would prompt for one; an explicit mode of the user has precedence.
        explicit = "WANDB_MODE" in os.environ or "offline" in self.specification
        offline = self._unreachable or (not explicit and not has_wandb_key())
        options = {
            **options,
            "save_dir": str(self.info.folder),
            "tags": [*self.info.tags, *(self.specification.get("tags") or [])],
            "reinit": "create_new",  # leaves a run open that the user has started
            **(_OFFLINE if offline else {}),
        }
        mode, arguments = os.environ.get("WANDB_MODE"), sys.argv
        sys.argv = conceal(arguments)  # the client records them
        start = time.perf_counter()
        logger = self._build(options)
        try:
            _ = logger.experiment
        except UsageError as error:
            raise UserError(
                f"Expected a W&B run to start, but got: {error} Or set neither WANDB_MODE nor logger.wandb.offline: "
                f"runs are kept offline if there is no key."
            ) from error
        except (CommError, AuthenticationError) as error:
            self._unreachable = True
            self.info.notify(
                f"W&B does not respond ({first_line(error)}): runs are kept offline in "
                f"{self.info.folder}/wandb; later: wandb sync FOLDER/wandb/offline-run-*"
            )
            logger = self._build({**options, **_OFFLINE, "id": renew()})
            _ = logger.experiment
        finally:
            sys.argv = arguments
            self.waited += time.perf_counter() - start
            if mode is None:  # Lightning sets the variable for the whole process
                os.environ.pop("WANDB_MODE", None)
            else:
                os.environ["WANDB_MODE"] = mode
        self._open[key] = logger
        return logger


def run_id(folder: Path, stage: str | None) -> str:
    """Return the identifier of a stage's W&B run: that of the interrupted build, or a new one.

    A new one is ``WANDB_RUN_ID`` and the name of the ``stage``, if the variable is set: each stage has its own W&B run.
    """
    kept = KeptRun(folder / _RUN_FILE)
    given = os.environ.get("WANDB_RUN_ID")
    found = kept.start(kept.identifier or (f"{given}-{stage}" if given and stage else None))
    kept.close(success=False)
    return found
