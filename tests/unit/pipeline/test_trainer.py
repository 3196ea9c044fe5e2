"""When a fit stops, what it keeps, and what a resumed one knows."""

import errno
import itertools
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.pipeline.trainer import ResumableFit, Selection, TrainerFactory
from kegnet_pl.reporting.figures import read_curves
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.training.checkpoints import WholeCheckpoints, read_checkpoint
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


class _StopInEpoch(Callback):
    """The power goes off in an epoch, from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise StoppedError


class _Kill(ModelCheckpoint):
    """The power goes off right after the checkpoint of an epoch: loggers write nothing any more."""

    def __init__(self, epoch: int) -> None:
        super().__init__("unused", monitor="kill")  # Lightning calls checkpoints last
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            for callback in trainer.checkpoint_callbacks:
                if callback is not self:
                    callback.on_train_epoch_end(trainer, pl_module)
            for logger in trainer.loggers:
                logger.save = logger.finalize = lambda *_: None  # type: ignore[method-assign]
            raise StoppedError


class _StopAfterTraining(Callback):
    """The power goes off when all epochs are made, and nothing is published yet."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise StoppedError


def _trainers(folder: Path, specifications: Any) -> TrainerFactory:
    def make_trainer(**options: Any) -> Trainer:
        return Trainer(
            accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, use_distributed_sampler=False, log_every_n_steps=1, **options,
        )  # fmt: skip

    def make_callbacks(checkpoints: Path) -> list[Callback]:
        return [make_checkpoint(checkpoints)]

    loggers = Loggers(specifications, folder, group="g", label="l", tags=[], hyperparameters={}, notify=print)
    return TrainerFactory(make_trainer, make_callbacks, loggers)


def _fit(
    folder: Path,
    module: LightningModule,
    data: Any,
    epochs: int,
    selection: Selection | None = None,
    callbacks: Sequence[Callback] = (),
    specifications: Any = None,
) -> dict[str, float]:
    fit = ResumableFit(
        _trainers(folder, specifications or {}), folder, "s", StageCosts(), "student_training", selection or Selection()
    )
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
    selection, accuracies = Selection(True, 3), [5, 4, 4, 4, 9, 9, 9, 9]
    with pytest.raises(StoppedError):
        _fit(tmp_path, _Scripted(accuracies), _Data(), 8, selection, [_StopInEpoch(2)])
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


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


SCORES = [5, 4, 6, 3, 7, 2, 1, 1]
CHECKPOINTS = [["resume"], ["best"], ["resume", "best"], ["resume", "resume.previous"]]


@pytest.mark.parametrize(
    ("names", "damage", "stop"),
    [
        *itertools.product(CHECKPOINTS, [_flip], [1, 3, None]),
        *itertools.product(CHECKPOINTS, [_cut, Path.unlink], [3]),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], damage: Any, stop: int | None
) -> None:
    selection = Selection(True)
    whole = _Scripted(SCORES)
    expected = _fit(tmp_path / "whole", whole, _Data(), 8, selection)
    with pytest.raises(StoppedError):
        power = _StopAfterTraining() if stop is None else _StopInEpoch(stop)
        _fit(tmp_path, _Scripted(SCORES), _Data(), 8, selection, [power])
    paths = [tmp_path / "checkpoints" / "n" / f"{name}.ckpt" for name in names]
    present = [path for path in paths if path.exists()]
    for path in present:
        damage(path)
    module = _Scripted(SCORES)
    assert _fit(tmp_path, module, _Data(), 8, selection) == expected
    assert torch.equal(module.weight, whole.weight)
    said = capsys.readouterr().out
    if "starts from its first epoch" in said:  # the best epoch comes again
        present = [path for path in present if "best" not in path.name]
    if damage is not Path.unlink:
        assert all(f"Warning: the checkpoint {path} is damaged" in said for path in present)
        assert all(path.with_name(f"{path.name}.damaged").exists() for path in present)


def test_a_moved_fit_keeps_the_same_epoch(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Its checkpoint names the file of the best epoch relative to itself."""
    with pytest.raises(StoppedError):
        _fit(tmp_path / "a" / "stage", _Scripted(SCORES), _Data(), 4, Selection(True), [_StopAfterTraining()])
    (tmp_path / "a").rename(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "b/stage/checkpoints/n/resume.ckpt").read_bytes().decode(errors="replace")
    module = _Scripted(SCORES)
    assert _fit(tmp_path / "b" / "stage", module, _Data(), 4, Selection(True))["epoch"] == module.weight.item() == 3
    assert not [warning for warning in recwarn if "dirpath has changed" in str(warning.message)]


def test_a_checkpoint_of_another_stage_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = _fit(tmp_path / "whole", _Scripted(SCORES), _Data(), 8, Selection(True))
    for stage in ("a", "b"):
        with pytest.raises(StoppedError):
            _fit(tmp_path / stage, _Scripted(SCORES[::-1]), _Data(), 8, Selection(True), [_StopInEpoch(3)])
    for path in (tmp_path / "b").rglob("*.ckpt"):
        path.write_bytes((tmp_path / "a" / path.relative_to(tmp_path / "b")).read_bytes())
    assert _fit(tmp_path / "b", _Scripted(SCORES), _Data(), 8, Selection(True)) == expected
    said = capsys.readouterr().out
    assert "is damaged (it is the checkpoint of a/n)" in said and "starts from its first epoch" in said


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They have no hash of their own, and absolute paths."""
    with pytest.raises(StoppedError):
        _fit(tmp_path / "a", _Scripted(SCORES), _Data(), 8, Selection(True), [_StopInEpoch(3)])
    for path in (tmp_path / "a").rglob("*.ckpt"):
        torch.save(read_checkpoint(path), path)
    (tmp_path / "a").rename(tmp_path / "b")
    metrics = _fit(tmp_path / "b", _Scripted(SCORES), _Data(), 4, Selection(True))
    assert (metrics["epochs"], metrics["epoch"]) == (4, 3)


class _Requeue(Callback):
    """SLURM says that the time is over, and ends the job."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            raise StoppedError


def test_a_job_that_slurm_requeues_goes_on_and_other_fits_do_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _Scripted(SCORES)
    _fit(tmp_path / "whole", whole, _Data(), 4, Selection(True))
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    scontrol.chmod(0o755)
    variables = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "12", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoppedError):
        _fit(tmp_path, _Scripted(SCORES), _Data(), 4, Selection(True), [_Requeue()])
    assert (tmp_path / "said").read_text() == "requeue 12\n"
    assert [path.parent.name for path in tmp_path.rglob("hpc_ckpt_*.ckpt")] == ["n"]
    other = _Scripted(SCORES)
    assert _fit(tmp_path / "other", other, _Data(), 1)["epochs"] == other.weight.item() == 1
    module = _Scripted(SCORES)
    assert _fit(tmp_path, module, _Data(), 4, Selection(True))["epochs"] == 4
    assert torch.equal(module.weight, whole.weight)
    assert not list(tmp_path.rglob("hpc_ckpt_*.ckpt"))


def test_a_checkpoint_is_a_file_of_torch(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        _fit(tmp_path, _Scripted(SCORES), _Data(), 2, Selection(True), [_StopAfterTraining()])
    files = sorted((tmp_path / "checkpoints" / "n").iterdir())
    assert [path.name for path in files] == ["best.ckpt", "resume.ckpt", "resume.previous.ckpt"]
    assert [torch.load(path, weights_only=True)["epoch"] for path in files] == [0, 1, 0]


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_full_disk_or_a_kill_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """The file system of TMPDIR has no part in it."""
    files, path = WholeCheckpoints(tmp_path), tmp_path / "resume.ckpt"
    monkeypatch.setattr(tempfile, "mkstemp", pytest.fail)
    for epoch in range(last):
        files.save_checkpoint({"epoch": epoch, "state_dict": {}}, path)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        """Fail as long as the previous checkpoint takes its room, or always."""
        if last < 3 or (tmp_path / "resume.previous.ckpt").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if last < 3:
        with pytest.raises(OSError, match="No space left") as caught:
            files.save_checkpoint({"epoch": last, "state_dict": {}}, path)
        assert caught.value.filename == str(path)
    else:
        files.save_checkpoint({"epoch": last, "state_dict": {}}, path)
    assert read_checkpoint(path)["epoch"] == (last if last == 3 else last - 1)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("names", [None, ["generator_0"]])
def test_curves_of_a_resumed_fit_lack_no_epoch(tmp_path: Path, names: list[str] | None) -> None:
    """Lightning keeps a hundred rows in memory, and logs an epoch after its checkpoint."""

    def make() -> LightningModule:
        module = make_generator_module()
        module.names = names
        return module

    def curves(folder: Path, *stops: Callback) -> dict[str, Any]:
        for stop in stops:
            with pytest.raises(StoppedError):
                _fit(folder, make(), None, 4, callbacks=[stop], specifications=csv)
        _fit(folder, make(), None, 4, specifications=csv)
        return read_curves(folder / "logs" / ("n" if names is None else "s"))

    csv = {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger"}}
    whole = curves(tmp_path / "whole")
    assert len(whole["train/loss" if names is None else "generator_0/train/loss"]) == 4
    assert curves(tmp_path / "parts", _Kill(1), _Kill(2)) == whole
    assert curves(tmp_path / "end", _Kill(3)) == whole


def test_a_checkpoint_that_memory_is_too_small_for_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resume.ckpt"
    torch.save({"epoch": 1, "state_dict": {}}, path)
    assert read_checkpoint(path)["epoch"] == 1
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(MemoryError("std::bad_alloc")))
    with pytest.raises(MemoryError):
        read_checkpoint(path)
