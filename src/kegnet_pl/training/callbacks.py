"""Callbacks of a fit: early stopping, last metrics, costs."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.trainer.states import TrainerFn

from kegnet_pl.runtime.costs import StageCosts, Work
from kegnet_pl.training.base import TrainingModule


class Patience(Callback):
    """Stops a fit after ``patience`` epochs without a higher ``val/accuracy``, but not before ``min_epochs``.

    Lightning's early stopping decides only once: if patience runs out before ``min_epochs``, it stops there, even if
    accuracy has risen since. Here both conditions must hold at the same time. A stopped fit that is resumed makes no
    further epoch.

    Args:
        patience: Epochs without a higher accuracy.
        min_epochs: Minimum number of epochs.

    Source:
        The authors' release: "stops 50 epochs after the best (100 at least)" (PAPER section 5).
    """

    def __init__(self, patience: int, min_epochs: int = 0) -> None:
        self.patience = patience
        self.min_epochs = min_epochs
        self.best = float("-inf")
        self.epochs = 0
        self.epochs_since_best = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count an epoch, and stop if both conditions hold."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        self.epochs += 1
        self.epochs_since_best = 0 if accuracy > self.best else self.epochs_since_best + 1
        self.best = max(accuracy, self.best)
        self._decide(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a resumed fit that was finished."""
        self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        if self.epochs_since_best >= self.patience and self.epochs >= self.min_epochs:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"best": self.best, "epochs": self.epochs, "epochs_since_best": self.epochs_since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        vars(self).update(state_dict)


class LastEpoch(Callback):
    """Keeps the metrics of the last epoch, also of a fit that is resumed after its last epoch.

    Attributes:
        metrics: All logged metrics by name.
        means: Training metrics of each network; see :class:`TrainingModule`.
        epoch: Its index, from 0.
        step: Index of its last step, from 0.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.means: list[dict[str, float]] = []
        self.epoch = self.step = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the epoch."""
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.means = pl_module.means if isinstance(pl_module, TrainingModule) else []
        self.epoch, self.step = trainer.current_epoch, trainer.global_step - 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"metrics": self.metrics, "means": self.means, "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        vars(self).update(state_dict)


class Curves(Callback):
    """Writes the rows of CSV loggers before every checkpoint, so that a crash loses no epoch of a curve.

    Lightning logs the metrics of an epoch after its checkpoint; a resumed fit logs them again.

    Args:
        last: Keeps the metrics of the last epoch.
    """

    def __init__(self, last: LastEpoch) -> None:
        self.last = last

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last epoch of a resumed fit."""
        names = pl_module.names if isinstance(pl_module, TrainingModule) else None
        # With names, loggers get those of each network alone.
        metrics = {key: value for key, value in self.last.metrics.items() if not names or key.split("/")[0] in names}
        for logger in trainer.loggers if metrics else ():
            if isinstance(logger, CSVLogger):
                logger.log_metrics({**metrics, "epoch": self.last.epoch}, self.last.step)
                logger.save()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows so far."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()


class Meter(Callback):
    """Adds the costs of a fit to the costs of a stage; validation counts as evaluation.

    Every training batch generates ``samples_per_step`` samples and passes them to the teacher.
    """

    def __init__(self, costs: StageCosts, work: Work, samples_per_step: int = 0) -> None:
        self.costs = costs
        self.work = work
        self.samples_per_step = samples_per_step
        self._since: float | None = None

    def _count(self, work: Work) -> None:
        """Add the seconds since the last call."""
        now = time.perf_counter()
        if self._since is not None:
            self.costs.seconds[work] += now - self._since
        self._since = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples of a batch."""
        self.costs.samples_made += self.samples_per_step
        self.costs.teacher_forwards += self.samples_per_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the costs so far, which a killed attempt then keeps."""
        self._count(self.work)
        self.costs.keep()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting as training."""
        self._count(self.work)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting as evaluation."""
        self._count("evaluation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._count(self.work)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock of an interrupted fit."""
        self._count(self.work)
