"""Fits: the contract between the engine and whoever trains, and the quiet fit of the library."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Protocol, get_args

import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger

from kegnet_pl.runtime.seeds import seeded
from kegnet_pl.settings import Precision

Metrics = dict[str, float]
"""Name of a metric -> its value."""

_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"

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
        begun: Checkpoint of an interrupted fit.

    Raises:
        KeyboardInterrupt: If the user stopped it.
    """
    # Lightning trains in whatever mode it is given, and networks come from disk in evaluation mode. What is in that
    # mode after this stays in it on purpose: frozen networks, batch norm that keeps its statistics, idle dropout.
    module.train()
    try:
        with warnings.catch_warnings(), _quick_device_checks():
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode", PossibleUserWarning)
            # Lightning 2.6 asks torch in an old way.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # Our own checkpoints are there on purpose: they are what a resumed fit starts from.
            warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
            # Our data is in memory already: workers would only copy it.
            warnings.filterwarnings("ignore", r"The '\w+' does not have many workers", PossibleUserWarning)
            trainer.fit(
                module, datamodule=datamodule, ckpt_path=None if begun is None else str(begun), weights_only=True
            )
    except SystemExit as stop:
        # Lightning answers Ctrl-C by leaving the program, deaf to a second one.
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _quick_device_checks() -> Iterator[None]:
    """Let torch look for a GPU through the CUDA runtime where there is none.

    Lightning selects NVML, whose library torch then tries to load at every step of an optimiser: on a CPU that costs as
    much as a layer of a small network.
    """
    before = os.environ.get(_NVML)
    if before is None or torch.cuda.is_available():
        yield
        return
    os.environ[_NVML] = "0"
    try:
        yield
    finally:
        os.environ[_NVML] = before


class Fit(Protocol):
    """Trains a module: the contract that joins the library and the command line."""

    def __call__(
        self,
        module: LightningModule,
        data: LightningDataModule | None,
        *,
        name: str,
        epochs: int,
        callbacks: Sequence[Callback] = (),
    ) -> Metrics:
        """Train a module.

        Args:
            module: What is trained; on the CPU afterwards.
            data: Its data; None for a module that draws its own.
            name: Name of the fit in its stage.
            epochs: Epochs at most.
            callbacks: Callbacks of this fit.

        Returns:
            Metrics of the last epoch by name.
        """


@dataclass(frozen=True)
class QuietFit:
    """A fit with a Lightning trainer of its own that writes nothing and leaves log levels as they were.

    Attributes:
        device: Device of the training.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers.
        callbacks: Further callbacks of every fit.

    Raises:
        ValueError: If the precision is unknown, or the device does not support it.
    """

    device: torch.device
    precision: Precision = "32-true"
    logger: Logger | Sequence[Logger] | bool = False
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        allowed = get_args(Precision)
        if self.precision not in allowed:
            raise ValueError(f"Expected `precision` to be one of {', '.join(allowed)}, but got {self.precision!r}.")
        if self.precision == "16-mixed" and self.device.type == "cpu":
            raise ValueError("Expected `precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed'.")

    def __call__(
        self,
        module: LightningModule,
        data: LightningDataModule | None,
        *,
        name: str,
        epochs: int,
        callbacks: Sequence[Callback] = (),
    ) -> Metrics:
        """Train a module; see :class:`Fit`."""
        every = [*self.callbacks, *callbacks]
        with seeded(0, "fit"), _quietly():
            trainer = Trainer(
                max_epochs=epochs,
                accelerator={"cuda": "gpu"}.get(self.device.type, self.device.type),
                devices=[self.device.index or 0] if self.device.type == "cuda" else 1,
                precision=self.precision,
                callbacks=every,
                logger=list(self.logger) if isinstance(self.logger, Sequence) else self.logger,
                limit_val_batches=0,
                log_every_n_steps=1,
                num_sanity_val_steps=0,
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in every),
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            run_fit(trainer, module, data)
        module.to("cpu")
        return {name: float(value) for name, value in trainer.callback_metrics.items()}


@contextmanager
def _quietly() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LIGHTNING_LOGGERS}
    quiet_lightning()
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def to_shape(input_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample.

    Raises:
        ValueError: If it is none.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if not shape or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise ValueError(
            f"Expected `input_shape` as (channels, height, width) or a number of features, but got {input_shape!r}."
        )
    return tuple(int(size) for size in shape)
