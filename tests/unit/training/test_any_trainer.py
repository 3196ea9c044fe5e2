"""The modules in anybody's trainer: ordinary loaders, callbacks, clipping, accumulation, profiler, LightningCLI."""

import csv
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import StudentModule, TeacherModule
from kegnet_pl.training.base import TrainingModule
from tests.unit.training.tiny import (
    CLASSES,
    FEATURES,
    NOISE,
    QUIET,
    adam,
    changed,
    make_classifier,
    make_generator_module,
    make_trainer,
    snapshot,
)

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You requested to overfit"),
]

STEPS = 6
BATCH = 8


def _rows(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=BATCH)


def _inputs() -> Tensor:
    return torch.randn(STEPS * BATCH, FEATURES, generator=torch.Generator().manual_seed(0))


def _classes() -> DataLoader[Any]:
    return _rows(_inputs(), torch.arange(STEPS * BATCH) % CLASSES)


def _answers() -> DataLoader[Any]:
    return _rows(_inputs(), make_classifier().eval()(_inputs()).detach())


def _noise() -> DataLoader[Any]:
    z = torch.randn(STEPS * BATCH, NOISE, generator=torch.Generator().manual_seed(0))
    return _rows(z, functional.one_hot(torch.arange(STEPS * BATCH) % CLASSES, CLASSES).float())


def _teacher(optimizer: Any = adam, **options: Any) -> TeacherModule:
    return TeacherModule(make_classifier(100, dropout=0.0), optimizer, **options)


def _student(optimizer: Any = adam, **options: Any) -> StudentModule:
    return StudentModule(make_classifier(100, dropout=0.0), DistillationLoss(), optimizer, **options)


def _generator(optimizer: Any = adam, **options: Any) -> TrainingModule:
    return make_generator_module(optimizer=optimizer, batch_size=BATCH, steps_per_epoch=STEPS, **options)


MODULES: dict[str, tuple[Callable[..., TrainingModule], Callable[[], DataLoader[Any]], DataLoader[Any] | None]] = {
    "teacher": (_teacher, _classes, _classes()),
    "student": (_student, _answers, _classes()),
    "generator": (_generator, _noise, None),
}

SHARES = {"teacher": "train/accuracy", "student": "train/agreement", "generator": "train/accuracy"}

each_module = pytest.mark.parametrize("kind", MODULES)
sgd = functools.partial(torch.optim.SGD, lr=0.1)


@each_module
def test_ordinary_loaders_and_the_loggers_of_lightning(kind: str, tmp_path: Path) -> None:
    make, train, validation = MODULES[kind]
    module = make()
    before = snapshot(module)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=True, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.loggers = [CSVLogger(tmp_path, name="curves")]
    trainer.fit(module, train(), validation)
    assert changed(before, module)
    assert trainer.global_step == 2 * STEPS
    assert list(tmp_path.rglob("*.ckpt")), "of Lightning's own ModelCheckpoint"
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = {"train/loss", SHARES[kind], "train/grad_norm"}
    names |= set() if validation is None else {"val/accuracy"} | ({"val/loss"} if kind == "teacher" else set())
    for name in names:
        assert [row["epoch"] for row in rows if row[name]] == ["0", "1"], name
        assert name in trainer.callback_metrics


@each_module
def test_a_loader_is_what_is_trained_on(kind: str, tmp_path: Path) -> None:
    """One step by SGD is the gradient of the module's loss, for a batch of the user's loader."""
    make, train, _ = MODULES[kind]
    module, other = make(sgd), make(sgd)
    other.load_state_dict(module.state_dict())
    make_trainer(1, tmp_path, limit_train_batches=1).fit(module, train())
    other.train()
    loss, _ = other.step(next(iter(train())))
    loss.backward()
    for (name, value), moved in zip(other.named_parameters(), module.parameters(), strict=True):
        if value.grad is not None:
            torch.testing.assert_close(moved, value - 0.1 * value.grad, msg=name)


@each_module
def test_the_trainer_clips_gradients(kind: str, tmp_path: Path) -> None:
    make, train, _ = MODULES[kind]
    module = make(functools.partial(torch.optim.SGD, lr=1.0))
    before = snapshot(module)
    make_trainer(1, tmp_path, gradient_clip_val=1e-3, limit_train_batches=1).fit(module, train())
    moved = torch.cat([(value.detach() - before[name]).flatten() for name, value in module.named_parameters()])
    assert 1e-4 < moved.norm() < 1e-3 * 1.001


@each_module
def test_gradients_are_accumulated(kind: str, tmp_path: Path) -> None:
    make, train, _ = MODULES[kind]
    module, other = make(sgd), make(sgd)
    other.load_state_dict(module.state_dict())
    trainer = make_trainer(1, tmp_path, accumulate_grad_batches=2, limit_train_batches=2)
    trainer.fit(module, train())
    assert trainer.global_step == 1
    other.train()
    batches = iter(train())
    losses = [other.step(next(batches))[0] for _ in range(2)]
    (sum(losses) / 2).backward()  # type: ignore[union-attr]
    for (name, value), moved in zip(other.named_parameters(), module.parameters(), strict=True):
        if value.grad is not None:
            torch.testing.assert_close(moved, value - 0.1 * value.grad, msg=name)
    mean = float(sum(loss.detach() for loss in losses) / 2)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(mean, rel=1e-5), "not divided"


@pytest.mark.parametrize("kind", ["student", "generator"])
def test_the_learning_rate_is_monitored(kind: str, tmp_path: Path) -> None:
    make, train, _ = MODULES[kind]
    trainer = make_trainer(4, tmp_path, [LearningRateMonitor()], log_every_n_steps=1)
    trainer.loggers = [CSVLogger(tmp_path, name="rates")]
    trainer.fit(make(lr_scheduler="cosine"), train())
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rates = [float(row["lr-Adam"]) for row in csv.DictReader(file) if row["lr-Adam"]]
    assert rates == pytest.approx([1e-2 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)])


@pytest.mark.parametrize("kind", ["student", "generator"])
@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_steps": 5}, {"max_epochs": None, "max_steps": 5}])
def test_a_cosine_needs_a_last_epoch(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    make, train, _ = MODULES[kind]
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False, barebones=False,
        enable_checkpointing=False, enable_model_summary=False, **options,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"`max_epochs` to be at least 1 .*but got -1.*lr_scheduler='constant'"):
        trainer.fit(make(lr_scheduler="cosine"), train())
    trainer.fit(make(), train())
    assert trainer.global_step == 5, "without it, steps are enough"
    assert "train/loss" in trainer.callback_metrics, "of the epoch that was cut short"


@pytest.mark.parametrize(
    ("kind", "monitor"),
    [(kind, "train/loss") for kind in MODULES] + [("teacher", "val/loss"), ("student", "val/loss")],
)
def test_early_stopping(kind: str, monitor: str, tmp_path: Path) -> None:
    make, train, validation = MODULES[kind]
    seen: list[float] = []

    class Watch(EarlyStopping):
        def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
            seen.append(float(current))
            return super()._evaluate_stopping_criteria(current)

    stop = Watch(monitor, patience=2, min_delta=1e9)
    trainer = make_trainer(50, tmp_path, [stop])
    trainer.fit(make(), train(), train() if validation is not None else None)
    assert trainer.current_epoch == 3 and stop.stopped_epoch == 2, "the first, and two that are no better"
    assert len(set(seen)) == 3, "each epoch has its own"


@each_module
def test_a_profiler_sees_the_steps(kind: str, tmp_path: Path) -> None:
    make, train, _ = MODULES[kind]
    trainer = make_trainer(1, tmp_path, profiler="simple")
    trainer.fit(make(), train())
    durations = trainer.profiler.recorded_durations  # type: ignore[attr-defined]
    steps = next(times for name, times in durations.items() if name.endswith("Strategy.training_step"))
    optimised = next(times for name, times in durations.items() if name.endswith("optimizer_step"))
    assert len(steps) == len(optimised) == STEPS


@each_module
def test_validation_within_an_epoch_and_loaders_without_a_length(kind: str, tmp_path: Path) -> None:
    make, train, validation = MODULES[kind]

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(list(train()))

    options: dict[str, Any] = {} if validation is None else {"val_check_interval": 2}
    expected = make_trainer(2, tmp_path)
    expected.fit(make(), train(), validation)
    trainer = make_trainer(2, tmp_path, **options)
    trainer.fit(make(), DataLoader(Stream(), batch_size=None), validation)
    for name in ("train/loss", SHARES[kind]):
        assert torch.equal(trainer.callback_metrics[name], expected.callback_metrics[name]), name


class _Plain(LightningModule):
    """Somebody's own student."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_classifier(5)
        self.shapes: list[tuple[int, ...]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, logits = batch
        self.shapes.append((*x.shape, *logits.shape))
        return functional.mse_loss(self.network(x), logits)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, logits = batch
        self.log("loss", functional.mse_loss(self.network(x), logits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _synthetic(**options: Any) -> SyntheticDataModule:
    return SyntheticDataModule(
        NoiseSource("normal", (FEATURES,)), make_classifier(), samples=40, validation_samples=16, batch_size=BATCH,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"resample_each_epoch": True}, {"shuffle": False}])
def test_synthetic_data_for_any_module(options: dict[str, Any], tmp_path: Path) -> None:
    module, trainer = _Plain(), make_trainer(2, tmp_path)
    data: LightningDataModule = _synthetic(**options)
    trainer.fit(module, data)
    assert module.shapes == [(BATCH, FEATURES, BATCH, CLASSES)] * 10
    assert trainer.callback_metrics["loss"] > 0
    assert isinstance(data.train_dataloader(), DataLoader)


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_lightning_cli_trains_a_student(tmp_path: Path) -> None:
    network = {"class_path": "kegnet_pl.networks.MLP", "init_args": {"features": FEATURES, "classes": CLASSES}}
    config = {
        "trainer": {
            "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(tmp_path),
        },
        "model": {
            "network": network, "distillation": {"temperature": 2.0}, "lr_scheduler": "cosine",
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        },
        "data": {
            "source": {
                "class_path": "kegnet_pl.sources.NoiseSource",
                "init_args": {"distribution": "normal", "input_shape": [FEATURES]},
            },
            "teacher": network, "samples": 40, "batch_size": BATCH, "validation_samples": 16,
        },
    }  # fmt: skip
    cli = LightningCLI(
        StudentModule, SyntheticDataModule, args={"fit": config, "subcommand": "fit"}, save_config_callback=None
    )
    assert cli.trainer.global_step == 10
    assert cli.trainer.optimizers[0].defaults["lr"] == 0.1
    assert isinstance(cli.model, StudentModule) and isinstance(cli.model.network, nn.Module)
    assert {"train/loss", "val/loss"} <= set(cli.trainer.callback_metrics)


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_lightning_cli_makes_a_teacher(tmp_path: Path) -> None:
    args = [
        f"--trainer.default_root_dir={tmp_path}",
        "--model.network=kegnet_pl.networks.MLP", f"--model.network.features={FEATURES}",
        f"--model.network.classes={CLASSES}", "--model.optimizer=Adam", "--model.optimizer.lr=0.01",
    ]  # fmt: skip
    cli = LightningCLI(TeacherModule, run=False, args=args, save_config_callback=None)
    assert isinstance(cli.model, TeacherModule)
    before = snapshot(cli.model)
    make_trainer(1, tmp_path).fit(cli.model, _classes())
    assert changed(before, cli.model)
