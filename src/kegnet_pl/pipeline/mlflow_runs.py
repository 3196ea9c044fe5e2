"""Runs of MLflow: one for the whole pipeline."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger

from kegnet_pl.pipeline.kept_runs import KeptRun
from kegnet_pl.pipeline.trackers import Namespaced, PipelineTracker, Result, RunInfo, build_logger
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import UserError, first_line


class MLflowTracker(PipelineTracker):
    """The run of MLflow."""

    def __init__(self, key: str, specification: Mapping[str, Any], info: RunInfo) -> None:
        super().__init__(key, specification, info)
        self._logger: MLFlowLogger | None = None
        try:
            import mlflow  # noqa: F401
        except ImportError as error:
            raise UserError(
                "Expected the package mlflow for its logger, but it is missing: pip install '.[mlflow]'"
            ) from error

    def start(self) -> None:
        """Open the run, or that of an interrupted pipeline.

        Raises:
            UserError: If the server refuses it or does not answer.
        """
        from mlflow.exceptions import MlflowException

        if rank() != 0:
            self._logger = self._build(None)
            return
        kept = self.info.kept
        self.kept = KeptRun(None if kept is None else kept / f"{self.info.pipeline}.mlflow.json")
        logger, start = self._build(os.environ.get("MLFLOW_RUN_ID") or self.kept.identifier), time.perf_counter()
        try:
            self._logger = self._open(logger)
        except MlflowException as error:
            raise UserError(
                f"Expected MLflow to start a run, but got: {first_line(error).rstrip('.')}. Check "
                f"logger.{self.key}.tracking_uri, or remove logger=mlflow."
            ) from error
        finally:
            self.waited += time.perf_counter() - start
        self.kept.start(self._logger.run_id)

    def _open(self, logger: MLFlowLogger) -> MLFlowLogger:
        from mlflow.exceptions import MlflowException

        lightning = logging.getLogger("pytorch_lightning.loggers.mlflow")
        lightning.setLevel(logging.ERROR)  # it warns about an experiment that it creates
        try:
            if logger._run_id is not None:
                try:
                    logger.experiment.update_run(logger._run_id, status="RUNNING")
                    return logger
                except MlflowException:  # deleted, or on another server
                    if logger._run_id != self.kept.identifier:
                        raise
                    logger = self._build(None)
            logger.log_hyperparams(dict(self.info.hyperparameters))
            return logger
        finally:
            lightning.setLevel(logging.NOTSET)

    def _build(self, run_id: str | None) -> MLFlowLogger:
        info = self.info
        tags = {
            "pipeline": info.pipeline,
            "tags": ", ".join(info.tags),
            **({"sweep": info.sweep} if info.sweep else {}),
        }
        logger: MLFlowLogger = build_logger(
            self.key,
            self.specification,
            run_name=info.label,
            tags={**tags, **(self.specification.get("tags") or {})},
            run_id=run_id,
        )
        return logger

    def open(self, namespace: str) -> Logger:
        """Return the logger of a namespace."""
        assert self._logger is not None
        return Namespaced(self._logger, namespace)

    def finish(self, result: Result | None) -> None:
        """Log the result, and set the state of the run to FINISHED or FAILED."""
        if self._logger is not None and rank() == 0:
            if result is not None:
                numbers = {
                    name.replace("+", "_"): value for name, value in result.items() if not isinstance(value, str)
                }
                self._logger.log_metrics(numbers)
            self._logger.finalize("failed" if result is None else "success")
        self._logger = None
        self.kept.close(success=result is not None)
