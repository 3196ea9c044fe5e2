"""Callbacks of a fit: when it stops, its last metrics, its costs."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from kegnet_pl.runtime.costs import StageCosts, Work
from kegnet_pl.training.base import TrainingModule


class Patience(Callback):
    """Stops a fit so many epochs after the one with the highest ``val/accuracy``, but not before it made the least.

    Lightning's own early stopping decides once and for all: patience that ran out before ``min_epochs`` stops there,
    even if accuracy has risen since. Here both must hold at the same time; and a fit that is resumed after it stopped
    makes no further epoch.

    Args:
        patience: Epochs without a better one.
        min_epochs: Epochs at least.

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
        """Count an epoch, and decide."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        self.epochs += 1
        self.epochs_since_best = 0 if accuracy > self.best else self.epochs_since_best + 1
        self.best = max(accuracy, self.best)
        self._decide(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide again where a fit is resumed."""
        self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        if self.epochs_since_best >= self.patience and self.epochs >= self.min_epochs:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit has to know."""
        return {"best": self.best, "epochs": self.epochs, "epochs_since_best": self.epochs_since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        vars(self).update(state_dict)


class LastEpoch(Callback):
    """Keeps the metrics of the last epoch, also for a fit that is resumed with nothing left to do.

    Attributes:
        metrics: All that was logged, by name.
        means: The training metrics of each network; see :class:`TrainingModule`.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.means: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the epoch."""
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.means = pl_module.means if isinstance(pl_module, TrainingModule) else []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit has to know."""
        return {"metrics": self.metrics, "means": self.means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self.metrics, self.means = state_dict["metrics"], state_dict["means"]


class Meter(Callback):
    """Adds what a fit costs to the costs of a stage; validation counts as evaluation.

    Args:
        costs: The costs.
        work: What to count training as.
        samples_per_step: Samples that a training batch makes and shows to the teacher.
    """

    def __init__(self, costs: StageCosts, work: Work, samples_per_step: int = 0) -> None:
        self.costs = costs
        self.work = work
        self.samples_per_step = samples_per_step
        self._since: float | None = None
        self._batches = 0

    def _count(self, work: Work | None) -> None:
        now = time.perf_counter()
        if work is not None and self._since is not None:
            self.costs.seconds[work] += now - self._since
        self._since = now
        made = self._batches * self.samples_per_step
        self._batches = 0
        self.costs.samples_made += made
        self.costs.teacher_forwards += made

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._batches = 0
        self._count(None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        self._batches += 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what has been counted: an attempt that is killed has cost something, too."""
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
