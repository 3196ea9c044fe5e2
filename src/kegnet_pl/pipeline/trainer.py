"""The resumable fit: Lightning trainers of the configuration, checkpoints, loggers and costs."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.runtime.costs import StageCosts, Work
from kegnet_pl.runtime.distributed import distributed, meet, rank
from kegnet_pl.runtime.errors import StoreError
from kegnet_pl.runtime.manifests import DamagedError
from kegnet_pl.training import GeneratorModule
from kegnet_pl.training.base import TrainingModule
from kegnet_pl.training.callbacks import Curves, LastEpoch, Meter, Patience
from kegnet_pl.training.checkpoints import BEST, WholeCheckpoints, read_checkpoint
from kegnet_pl.training.fit import Metrics, run_fit


@dataclass(frozen=True)
class Selection:
    """Selection of the epoch of a fit that is kept.

    Attributes:
        best: Keep the epoch with the highest ``val/accuracy`` instead of the last.
        patience: Stop this many epochs after the best; None never stops early. Needs ``best``.
        min_epochs: Minimum number of epochs; see :class:`Patience`.
    """

    best: bool = False
    patience: int | None = None
    min_epochs: int | None = None


@dataclass(frozen=True)
class TrainerFactory:
    """Makes the trainer, the callbacks and the loggers of every fit of a run.

    Attributes:
        make_trainer: Returns a trainer for given ``max_epochs``, ``callbacks``, ``logger`` and ``limit_val_batches``.
        make_callbacks: Returns the user's callbacks for a checkpoint folder.
        loggers: Makes the user's loggers.
    """

    make_trainer: Callable[..., Trainer]
    make_callbacks: Callable[[Path], list[Callback]]
    loggers: Loggers

    def apart(self, device: torch.device) -> "TrainerFactory":
        """Return a factory for fits of this process, while other processes run other fits of the stage.

        Only rank 0 has the loggers that do not write to files of their own.
        """
        devices = 1 if device.type == "cpu" else [device.index or 0]
        make_trainer = functools.partial(self.make_trainer, devices=devices, num_nodes=1, strategy="auto")
        return replace(
            self, make_trainer=make_trainer, loggers=self.loggers if rank() == 0 else self.loggers.of_files()
        )


def join_processes(make_trainer: Callable[..., Trainer]) -> None:
    """Start the other processes of the run, or wait for those that a launcher has started.

    It returns at once if the run has one process, or if its processes have met.
    """
    if distributed():
        return
    strategy = make_trainer(logger=False, enable_checkpointing=False).strategy
    if strategy.launcher is not None:
        strategy.launcher.launch(strategy.setup_environment)
        meet()


@dataclass(frozen=True)
class ResumableFit:
    """Trains the modules of a stage from where an interrupted run stopped; see :class:`kegnet_pl.training.fit.Fit`.

    A fit that was finished in an interrupted stage is loaded from its checkpoint and not trained again.

    Attributes:
        trainers: Makes the trainer, callbacks and loggers of every fit.
        folder: The stage's hidden folder, for checkpoints and curves.
        stage: Name of the stage, the job type of loggers.
        costs: Costs of the stage.
        work: Kind of work that training counts as.
        selection: Selection of the epoch that is kept.
        apart: True if other processes run other fits of the stage. Log files of this fit then have their own folder.
    """

    trainers: TrainerFactory
    folder: Path
    stage: str
    costs: StageCosts
    work: Work
    selection: Selection = Selection()
    apart: bool = False

    def __call__(
        self,
        module: LightningModule,
        data: LightningDataModule | None,
        *,
        name: str,
        epochs: int,
        callbacks: Sequence[Callback] = (),
    ) -> Metrics:
        """Train a module; it holds the weights of the selected epoch afterwards.

        Returns:
            The metrics of the last epoch, the number of ``epochs`` trained, and the ``epoch`` that is kept, from 1.

        Raises:
            KeyboardInterrupt: If the user stopped it.
        """
        checkpoints = self.folder / "checkpoints" / name
        # Samples that a step draws and the teacher answers to.
        drawn = module.batch_size * module.networks if isinstance(module, GeneratorModule) else 0
        last, best = LastEpoch(), None
        selecting: list[Callback] = []
        if self.selection.best:
            best = ModelCheckpoint(
                dirpath=checkpoints,
                filename=Path(BEST).stem,
                monitor="val/accuracy",
                mode="max",
                enable_version_counter=False,
            )
            selecting.append(best)
        if self.selection.best and self.selection.patience is not None:
            selecting.append(Patience(self.selection.patience, self.selection.min_epochs or 0))
        shared = isinstance(module, TrainingModule) and module.names is not None
        own = self.trainers.make_callbacks(checkpoints)
        trainer = self.trainers.make_trainer(
            max_epochs=epochs,
            callbacks=[Meter(self.costs, self.work, drawn), last, *callbacks, Curves(last), *selecting, *own],
            logger=self.trainers.loggers.make(
                self.stage,
                self.stage if shared else name,
                self.folder,
                files=name.split("-")[0] if self.apart else None,
            ),
            limit_val_batches=None if self.selection.best else 0,
            default_root_dir=str(checkpoints),  # Lightning loads SLURM's checkpoints in it into any fit
        )
        files = WholeCheckpoints(checkpoints)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # another one is the user's
            trainer.strategy.checkpoint_io = files
        run_fit(trainer, module, data, files.find(best, self.trainers.loggers.notify))
        self.costs.keep(files=True)  # a later attempt writes none of them again
        metrics, kept = dict(last.metrics), trainer.current_epoch
        if isinstance(module, TrainingModule):
            module.means = last.means
        if best is not None and best.best_model_path:
            content = _read_best(Path(best.best_model_path))
            module.load_state_dict(content["state_dict"])
            metrics["val/accuracy"] = float(best.best_model_score)  # type: ignore[arg-type]
            kept = content["epoch"] + 1
        module.to("cpu")
        return metrics | {"epochs": trainer.current_epoch, "epoch": kept}


def _read_best(path: Path) -> dict[str, Any]:
    """Read the checkpoint of the best epoch.

    Raises:
        StoreError: If it was damaged or deleted since it was written.
    """
    try:
        return read_checkpoint(path)
    except (DamagedError, FileNotFoundError) as error:
        raise StoreError(
            f"Expected the checkpoint of the best epoch at {path}, but it was damaged or deleted while the stage was "
            f"built. Run the command again; it continues from the last complete checkpoint."
        ) from error
