"""Running Lightning: one trainer a fit, resumable, selected as the user says, and quiet."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from kegnet_pl.callbacks import LastEpoch, Meter, Patience
from kegnet_pl.costs import Costs, Work
from kegnet_pl.errors import ConfigError
from kegnet_pl.loggers import Loggers
from kegnet_pl.modules.base import SteppedModule


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


LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")


def quiet_lightning() -> None:
    """Turn off what Lightning tells about features that are not in use, at its loggers; warnings still come through."""
    for name in LIGHTNING_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def run_fit(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None = None, begun: Path | None = None
) -> None:
    """Run a trainer without the warnings that are about what we do on purpose.

    Args:
        trainer: Runs the fit.
        module: What to train; all that is not frozen is trained in training mode.
        datamodule: Its data; None for a module that makes its own.
        begun: Checkpoint of a fit that was broken off.

    Raises:
        KeyboardInterrupt: If the user stopped it.
    """
    if isinstance(module, SteppedModule):
        module.take_clipping(trainer)
    # Lightning trains in whatever mode it is given, and networks come from disk in evaluation mode. What is in that
    # mode after this stays in it on purpose: frozen networks, batch norm that keeps its statistics, idle dropout.
    module.train()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode", PossibleUserWarning)
            # Lightning 2.6 asks torch in an old way.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # Our own checkpoints are there on purpose: they are what a resumed fit starts from.
            warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
            if isinstance(module, SteppedModule):
                # It is told of the end of an epoch in its last training step, which returns no loss.
                warnings.filterwarnings("ignore", r".*`training_step` returned `None`")
            trainer.fit(
                module, datamodule=datamodule, ckpt_path=None if begun is None else str(begun), weights_only=True
            )
    except SystemExit as stop:
        # Lightning answers Ctrl-C by leaving the program, deaf to a second one.
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise


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
        costs: Costs,
        work: Work,
        samples_per_step: int = 0,
        callbacks: Sequence[Callback] = (),
        prefixed: bool = False,
    ) -> dict[str, float]:
        """Train a module, from where an interrupted fit stopped if there was one.

        Args:
            module: What to train; holds the selected weights afterwards.
            datamodule: Its data, None where the module has its own.
            schedule: How long, and which epoch to keep.
            folder: The stage's hidden folder; checkpoints and curves go there.
            stage: Job type for loggers.
            names: Tells the fits of a stage apart: a name for each network that is trained, each with its own curves.
            costs: The stage's cost ledger.
            work: What to count the training as.
            samples_per_step: Samples that a step of the module makes and shows to the teacher.
            callbacks: Further callbacks.
            prefixed: Whether other fits of the stage are logged to the same W&B run: names of metrics then begin with
                the network's.

        Returns:
            The metrics of the last epoch, ``epochs`` trained, and the ``epoch`` that is kept, counted from 1.

        Raises:
            KeyboardInterrupt: If the user stopped it.
        """
        checkpoints = folder / "checkpoints" / "-".join(names)
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
            logger=[
                logger
                for name in names
                for logger in self.loggers.make(stage, name, folder, prefix=name if prefixed else "")
            ],
            limit_val_batches=None if schedule.select_best else 0,
        )
        begun = checkpoints / "resume.ckpt"
        run_fit(trainer, module, datamodule, begun if begun.exists() else None)
        metrics, kept = dict(last.metrics), trainer.current_epoch
        if isinstance(module, SteppedModule):
            module.means = last.means
        if best is not None and best.best_model_path:
            content = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            module.load_state_dict(content["state_dict"])
            metrics["val/accuracy"] = float(best.best_model_score)  # type: ignore[arg-type]
            kept = content["epoch"] + 1
        module.to("cpu")
        return metrics | {"epochs": trainer.current_epoch, "epoch": kept}


def device_of(trainer_config: dict[str, Any], gpu: int | None = None) -> torch.device:
    """Return where drawing and evaluation compute: the GPU of this process if trainers use one, else the CPU.

    Args:
        trainer_config: The configuration's ``trainer``.
        gpu: Number of the GPU that this process has to itself; None for the one that Lightning takes.

    Raises:
        ConfigError: If trainers shall use a GPU and there is none.
    """
    if trainer_config.get("accelerator") in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise ConfigError("Expected a GPU for trainer.accelerator=gpu, but torch finds none here. Use trainer=cpu.")
        # Lightning tells the processes it starts which GPU is theirs, before they choose it.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if gpu is None else gpu)
    return torch.device("cpu")
