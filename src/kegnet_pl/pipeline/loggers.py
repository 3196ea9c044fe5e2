"""Loggers of a run, from the ``logger`` group of the configuration."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from kegnet_pl.pipeline.mlflow_runs import MLflowTracker
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trackers import CSVTracker, Result, RunInfo, TensorBoardTracker, Tracker, copy_curves
from kegnet_pl.pipeline.wandb_runs import WandbTracker
from kegnet_pl.runtime.distributed import rank

_TRACKERS: Mapping[str, type[Tracker]] = {
    CSVLogger.__name__: CSVTracker,
    TensorBoardLogger.__name__: TensorBoardTracker,
    WandbLogger.__name__: WandbTracker,
    MLFlowLogger.__name__: MLflowTracker,
}
"""Name of a class of loggers -> its tracker; all others are made for every fit."""


class Loggers:
    """Factory of the loggers of all stages of a run.

    Args:
        specifications: Logger name -> ``_target_`` and arguments.
        info: Description of the run.
    """

    def __init__(self, specifications: Mapping[str, Mapping[str, Any]], info: RunInfo) -> None:
        self.notify = info.notify
        self._trackers = [
            _TRACKERS.get(specification["_target_"].rsplit(".", 1)[-1], Tracker)(key, specification, info)
            for key, specification in specifications.items()
        ]

    @property
    def waited(self) -> float:
        """Seconds spent on starting runs and waiting for servers, which count for no stage."""
        return sum(tracker.waited for tracker in self._trackers)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Check all loggers and open the runs of trackers; close them as failed if there is no result at the end.

        Raises:
            UserError: If a setting is wrong, or a server refuses the run.
        """
        try:
            for tracker in self._trackers:
                tracker.start()
            yield
        finally:
            self.finish(None)

    def of_files(self) -> "Loggers":
        """Return the loggers that write to the folder of a stage: several processes can use them at the same time."""
        loggers = copy.copy(self)
        loggers._trackers = [tracker for tracker in self._trackers if isinstance(tracker, CSVTracker)]
        return loggers

    def pass_on(self, stage: str, folder: Path, names: Sequence[str]) -> None:
        """Log curves of networks that other processes have trained to the loggers that only rank 0 has."""
        others = [tracker for tracker in self._trackers if not isinstance(tracker, CSVTracker)] if rank() == 0 else []
        for logger in filter(None, [tracker.make(stage, stage, folder) for tracker in others]):
            copy_curves(logger, [folder / "logs" / name for name in names])

    def make(self, stage: str, name: str, folder: Path, files: str | None = None) -> list[Logger]:
        """Make the loggers of one fit.

        Args:
            stage: Name of the stage.
            name: Name of the fit, or of the stage where its fits are logged together.
            folder: Folder of the stage, for csv files.
            files: Name of the folder of csv files; None for ``name``.
        """
        made = [
            tracker.make(stage, files or name if isinstance(tracker, CSVTracker) else name, folder)
            for tracker in self._trackers
        ]
        return [logger for logger in made if logger is not None]

    def show(self, stage: str, name: str, folder: Path, make: Callable[[], Mapping[str, Any]]) -> None:
        """Log tables, pictures or histograms to W&B.

        ``make`` returns wandb objects by name; it is only called if there is a W&B logger.
        """
        for tracker in self._trackers:
            tracker.show(stage, name, folder, make)

    def finish_stage(self, stage: Stage, parents: Sequence[Stage]) -> None:
        """Log a finished stage.

        Args:
            stage: The stage, whose files become an artifact.
            parents: The stages that it read, whose artifacts it used.
        """
        for tracker in self._trackers:
            tracker.finish_stage(stage, parents)

    def finish(self, result: Result | None) -> None:
        """Log the result of the run and close all loggers; ``result`` is None if the run failed or was stopped."""
        for tracker in self._trackers:
            tracker.finish(result)
