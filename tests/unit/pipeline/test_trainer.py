"""When a fit stops, what it keeps, and what a resumed one knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.pipeline.trainer import ResumableFit, Selection, TrainerFactory
from kegnet_pl.runtime.costs import StageCosts
from tests.unit.training.tiny import QUIET, StoppedError, make_checkpoint, make_generator_module

pytestmark = QUIET


class _Scripted(LightningModule):
    """Its only weight is the number of epochs it was trained; its accuracies are given."""

    def __init__(self, accuracies: Sequence[float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accuracies = accuracies
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.weight.grad = -torch.ones(())
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", self.accuracies[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class _Data(LightningDataModule):
    def train_dataloader(self) -> TensorLoader:
        return TensorLoader(torch.zeros(1), batch_size=1)

    val_dataloader = train_dataloader


class _StopAfterTraining(Callback):
    """The power goes off when all epochs are made, and nothing is published yet."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise StoppedError


def _trainers(folder: Path) -> TrainerFactory:
    def make_trainer(**options: Any) -> Trainer:
        return Trainer(
            accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, use_distributed_sampler=False, **options,
        )  # fmt: skip

    def make_callbacks(checkpoints: Path) -> list[Callback]:
        return [make_checkpoint(checkpoints)]

    loggers = Loggers({}, folder, group="g", label="l", tags=[], hyperparameters={}, notify=print)
    return TrainerFactory(make_trainer, make_callbacks, loggers)


def _fit(
    folder: Path,
    module: LightningModule,
    data: Any,
    epochs: int,
    selection: Selection | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, float]:
    fit = ResumableFit(_trainers(folder), folder, "s", StageCosts(), "student_training", selection or Selection())
    return fit(module, data, name="n", epochs=epochs, callbacks=callbacks)


@pytest.mark.parametrize(
    ("accuracies", "patience", "min_epochs", "made", "best"),
    [
        ([5, 4, 4, 4, 9, 9, 9, 9], 2, None, 3, 1),  # two epochs after the best
        ([5, 4, 6, 4, 4, 9, 9, 9], 2, None, 5, 3),  # patience begins anew with every best
        ([1, 2, 3, 4, 5, 6, 7, 8], 2, None, 8, 8),  # it never runs out
        ([5, 4, 4, 4, 4, 4, 4, 4], 2, 6, 6, 1),  # not before the least
        ([5, 4, 4, 4, 6, 7, 8, 9], 2, 5, 8, 8),  # it ran out before the least, but not in the end
        ([5, 4, 4, 4, 6, 4, 4, 9], 2, 5, 7, 5),
        ([5, 5, 5, 5, 9, 9, 9, 9], 3, None, 4, 1),  # as good is no better
    ],
)
def test_stops_so_many_epochs_after_the_best(
    tmp_path: Path, accuracies: list[float], patience: int, min_epochs: int | None, made: int, best: int
) -> None:
    module = _Scripted(accuracies)
    metrics = _fit(tmp_path, module, _Data(), len(accuracies), Selection(True, patience, min_epochs))
    assert (metrics["epochs"], metrics["epoch"]) == (made, best)
    assert module.weight.item() == best
    assert metrics["val/accuracy"] == accuracies[best - 1]


def test_without_selection_the_last_epoch_is_kept(tmp_path: Path) -> None:
    module = _Scripted([3, 2, 1])
    metrics = _fit(tmp_path, module, _Data(), 3)
    assert (metrics["epochs"], metrics["epoch"]) == (3, 3)
    assert module.weight.item() == 3


def test_a_fit_that_had_stopped_early_is_not_trained_on(tmp_path: Path) -> None:
    selection, accuracies = Selection(True, 2), [5, 4, 4, 9, 9, 9, 9, 9]
    with pytest.raises(StoppedError):
        _fit(tmp_path, _Scripted(accuracies), _Data(), 8, selection, [_StopAfterTraining()])
    module = _Scripted(accuracies)
    metrics = _fit(tmp_path, module, _Data(), 8, selection)
    assert (metrics["epochs"], metrics["epoch"], metrics["val/accuracy"], module.weight.item()) == (3, 1, 5, 1)


def test_a_fit_resumed_in_the_middle_stops_where_it_would_have(tmp_path: Path) -> None:
    class StopInEpoch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 2:
                raise StoppedError

    selection, accuracies = Selection(True, 3), [5, 4, 4, 4, 9, 9, 9, 9]
    with pytest.raises(StoppedError):
        _fit(tmp_path, _Scripted(accuracies), _Data(), 8, selection, [StopInEpoch()])
    assert _fit(tmp_path, _Scripted(accuracies), _Data(), 8, selection)["epochs"] == 4


def test_metrics_of_the_last_epoch_survive(tmp_path: Path) -> None:
    def fit(folder: Path, callbacks: Sequence[Callback] = ()) -> tuple[dict[str, float], list[dict[str, float]]]:
        module = make_generator_module()
        return _fit(folder, module, None, 2, callbacks=callbacks), module.means

    whole = fit(tmp_path / "whole")
    with pytest.raises(StoppedError):
        fit(tmp_path / "parts", [_StopAfterTraining()])
    assert fit(tmp_path / "parts") == whole
    assert {"train/loss", "train/accuracy", "epochs"} <= set(whole[0])
    assert [set(means) for means in whole[1]] == [set(whole[0]) - {"epochs", "epoch"}]
