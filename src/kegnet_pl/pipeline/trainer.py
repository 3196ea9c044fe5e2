"""Running Lightning: one trainer a fit, resumable, selected as the user says, and quiet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.runtime.costs import StageCosts, Work
from kegnet_pl.training.base import TrainingModule
from kegnet_pl.training.callbacks import LastEpoch, Meter, Patience
from kegnet_pl.training.fit import run_fit


@dataclass(frozen=True)
class Schedule:
    """How long to train, and which epoch to keep.

    Attributes:
        epochs: Epochs at most.
        select_best: Keep the epoch with the highest ``val/accuracy`` instead of the last.
        patience: Stop so many epochs after the best; None never stops early. Needs ``select_best``.
        min_epochs: Epochs at least; see :class:`Patience`.
    """

    epochs: int
    select_best: bool = False
    patience: int | None = None
    min_epochs: int | None = None


@dataclass(frozen=True)
class Training:
    """What all stages train with.

    Attributes:
        make_trainer: Returns a trainer for given ``max_epochs``, ``callbacks``, ``logger`` and ``limit_val_batches``.
        make_callbacks: Returns the user's callbacks for a checkpoint folder.
        loggers: Makes the user's loggers.
    """

    make_trainer: Callable[..., Trainer]
    make_callbacks: Callable[[Path], list[Callback]]
    loggers: Loggers

    def fit(
        self,
        module: LightningModule,
        datamodule: LightningDataModule | None,
        schedule: Schedule,
        folder: Path,
        *,
        stage: str,
        names: Sequence[str],
        costs: StageCosts,
        work: Work,
        samples_per_step: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> dict[str, float]:
        """Train a module, from where an interrupted fit stopped if there was one.

        Args:
            module: What to train; holds the selected weights afterwards.
            datamodule: Its data, None where the module has its own.
            schedule: How long, and which epoch to keep.
            folder: The stage's hidden folder; checkpoints and curves go there.
            stage: Job type for loggers.
            names: Names of the networks that are trained. Curves are kept under the name of the stage where the module
                has ``names``, else under this one.
            costs: The stage's costs.
            work: What to count the training as.
            samples_per_step: Samples that a step of the module makes and shows to the teacher.
            callbacks: Further callbacks.

        Returns:
            The metrics of the last epoch, ``epochs`` trained, and the ``epoch`` that is kept, counted from 1.

        Raises:
            KeyboardInterrupt: If the user stopped it.
        """
        checkpoints = folder / "checkpoints" / "-".join(names)
        separate = isinstance(module, TrainingModule) and module.names is not None
        best: ModelCheckpoint | None = None
        selecting: list[Callback] = []
        if schedule.select_best:
            best = ModelCheckpoint(
                dirpath=checkpoints, filename="best", monitor="val/accuracy", mode="max", enable_version_counter=False
            )
            selecting.append(best)
            if schedule.patience is not None:
                selecting.append(Patience(schedule.patience, schedule.min_epochs or 0))
        last = LastEpoch()
        trainer = self.make_trainer(
            max_epochs=schedule.epochs,
            callbacks=[
                Meter(costs, work, samples_per_step),
                last,
                *callbacks,
                *selecting,
                *self.make_callbacks(checkpoints),
            ],
            logger=self.loggers.make(stage, stage if separate else names[0], folder),
            limit_val_batches=None if schedule.select_best else 0,
        )
        begun = checkpoints / "resume.ckpt"
        run_fit(trainer, module, datamodule, begun if begun.exists() else None)
        metrics, kept = dict(last.metrics), trainer.current_epoch
        if isinstance(module, TrainingModule):
            module.means = last.means
        if best is not None and best.best_model_path:
            content = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            module.load_state_dict(content["state_dict"])
            metrics["val/accuracy"] = float(best.best_model_score)  # type: ignore[arg-type]
            kept = content["epoch"] + 1
        module.to("cpu")
        return metrics | {"epochs": trainer.current_epoch, "epoch": kept}
