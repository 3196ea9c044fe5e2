"""Tiny networks and trainers."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kegnet_pl.api.engine import GeneratorTask
from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DiversityLoss, GeneratorObjective, StatisticsLoss
from kegnet_pl.networks import Decoder, DenseGenerator, StackedModule
from kegnet_pl.settings import GeneratorTrainingSettings
from kegnet_pl.training import GeneratorModule

FEATURES, CLASSES, NOISE = 6, 3, 4

QUIET = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

adam = functools.partial(torch.optim.Adam, lr=1e-2)

State = dict[str, Tensor]


def make_classifier(seed: int = 0, dropout: float = 0.3) -> nn.Module:
    """Return a network with batch norm, whose statistics have moved, and dropout; in training mode."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    network(torch.randn(64, FEATURES) * 2 + 1)
    return network


class Branching(nn.Module):
    """A classifier with batch norm that torch cannot vectorise."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x)
        return logits if x.abs().max() < 1000 else logits * 0


def make_objective(
    classifier: float = 1.0, decoder: float = 0.5, diversity: float = 2.0, statistics: float = 0.0
) -> GeneratorObjective:
    terms = {
        "classifier": ClassifierLoss(), "decoder": DecoderLoss(), "diversity": DiversityLoss(),
        "statistics": StatisticsLoss(),
    }  # fmt: skip
    weights = {"classifier": classifier, "decoder": decoder, "diversity": diversity, "statistics": statistics}
    return GeneratorObjective(terms, weights)


def make_generator_module(
    init: int = 0, teacher: nn.Module | None = None, count: int = 1, **options: Any
) -> GeneratorModule:
    """Return a module of two steps of 12 samples an epoch; ``init`` is the seed of the networks' weights."""
    teacher = make_classifier() if teacher is None else teacher
    torch.manual_seed(init)
    generators = [DenseGenerator(FEATURES, CLASSES, NOISE, blocks=1, width=8) for _ in range(count)]
    decoders = [Decoder((FEATURES,), NOISE, blocks=1, width=8) for _ in range(count)]
    return GeneratorModule(
        StackedModule(generators) if count > 1 else generators[0],
        StackedModule(decoders) if count > 1 else decoders[0],
        teacher,
        options.pop("objective", None) or make_objective(),
        options.pop("optimizer", adam),
        **({"batch_size": 12, "steps_per_epoch": 2} | options),
    )


def make_trainer(epochs: int, folder: Path, callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator=options.pop("accelerator", "cpu"),
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )


class StoppedError(Exception):
    """The power went off."""


class StopAt(Callback):
    """Stops a fit in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise StoppedError


def make_checkpoint(folder: Path) -> ModelCheckpoint:
    """Return the callback that conf/callbacks/default.yaml describes."""
    return ModelCheckpoint(
        folder, filename="resume", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )


def fit_in_two_sittings(
    make: Any, data: Any, folder: Path, epochs: int = 4, stop: int = 2
) -> tuple[LightningModule, Trainer]:
    """Train until the middle of epoch ``stop``, then go on in new objects from the checkpoint of the epoch before.

    Args:
        make: Called with the seed of the initial weights, returns a module.
        data: Called without arguments, returns a data module or None.
        folder: Where checkpoints go.
        epochs: Epochs in all.
        stop: Epoch that is broken off.
    """
    try:
        make_trainer(epochs, folder, [make_checkpoint(folder), StopAt(stop)]).fit(make(0), datamodule=data())
    except StoppedError:
        pass
    else:
        raise AssertionError("the first sitting was not broken off")
    torch.manual_seed(12345)
    module, trainer = make(1), make_trainer(epochs, folder, [make_checkpoint(folder)])
    trainer.fit(module, datamodule=data(), ckpt_path=str(folder / "resume.ckpt"), weights_only=True)
    return module, trainer


def fit_at_once(make: Any, data: Any, folder: Path, epochs: int = 4, **options: Any) -> tuple[LightningModule, Trainer]:
    torch.manual_seed(54321)
    module, trainer = make(0), make_trainer(epochs, folder, **options)
    datamodule: LightningDataModule | None = data()
    trainer.fit(module, datamodule=datamodule)
    return module, trainer


def snapshot(module: nn.Module) -> State:
    """Return copies of all parameters and buffers, also those that a state dict leaves out."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def changed(before: State, module: nn.Module) -> set[str]:
    """Return the names of tensors that are not what they were, to the bit."""
    after = snapshot(module)
    assert set(after) == set(before)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def make_task(settings: GeneratorTrainingSettings) -> GeneratorTask:
    """Return the task of tiny generators for rows."""
    return GeneratorTask(
        make_classifier(),
        (FEATURES,),
        torch.device("cpu"),
        lambda: DenseGenerator(FEATURES, CLASSES, NOISE, blocks=1, width=8),
        lambda: Decoder((FEATURES,), NOISE, blocks=1, width=8),
        make_objective,
        adam,
        settings,
    )
