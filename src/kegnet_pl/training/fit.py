"""Fits: the protocol with which the engine trains a module, and the quiet fit of the library."""

import copy
import logging
import os
import signal
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args

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

LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")


def quiet_lightning() -> None:
    """Turn off Lightning's messages below warnings, which are about features that are not in use."""
    for name in LIGHTNING_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def run_fit(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None = None, begun: Path | None = None
) -> None:
    """Run a trainer without Lightning's warnings about intended choices.

    Modules that are not frozen are in training mode. ``begun`` is the checkpoint of an interrupted fit. Without data,
    the module draws its own batches.

    Raises:
        KeyboardInterrupt: If the user stopped it.
    """
    # Lightning keeps the mode of a module, and networks from disk are in evaluation mode. After this call, only frozen
    # networks, batch norm that keeps its statistics and idle dropout are in evaluation mode.
    module.train()
    try:
        with warnings.catch_warnings(), _quick_device_checks():
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode", PossibleUserWarning)
            # Lightning 2.6 uses a deprecated check of torch.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # A resumed fit starts from the checkpoints in that folder.
            warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
            # Modules sum their metrics over the processes themselves.
            warnings.filterwarnings("ignore", r"It is recommended to use `self\.log\(", PossibleUserWarning)
            # The data is in memory: workers would only copy it.
            warnings.filterwarnings("ignore", r"The '\w+' does not have many workers", PossibleUserWarning)
            trainer.fit(
                module, datamodule=datamodule, ckpt_path=None if begun is None else str(begun), weights_only=True
            )
    except SystemExit as stop:
        # Lightning exits at Ctrl-C, and ignores a second one.
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise stop.__context__ from None
        raise


@contextmanager
def _quick_device_checks() -> Iterator[None]:
    """Let torch look for a GPU through the CUDA runtime if there is none.

    Lightning selects NVML, whose library torch then tries to load at every optimiser step: on a CPU that costs as much
    as a layer of a small network.
    """
    before = os.environ.get(_NVML)
    if before is not None and not torch.cuda.is_available():
        os.environ[_NVML] = "0"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_NVML] = before


class Fit(Protocol):
    """A function that trains a module; the library and the command line each have one."""

    def __call__(
        self,
        module: LightningModule,
        data: LightningDataModule | None,
        *,
        name: str,
        epochs: int,
        callbacks: Sequence[Callback] = (),
    ) -> Metrics:
        """Train a module for at most ``epochs``, and return the metrics of the last one by name.

        The module is on the CPU afterwards. Without data, it draws its own batches. ``name`` is the name of the fit in
        its stage.
        """


@dataclass(frozen=True)
class QuietFit:
    """A fit with its own Lightning trainer that writes nothing and restores log levels.

    Attributes:
        device: Device of the training.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers.
        callbacks: Further callbacks of every fit; each fit starts with the state that they have now.

    Raises:
        ValueError: If the precision is unknown, or the device does not support it.
    """

    device: torch.device
    precision: Precision = "32-true"
    logger: Logger | Sequence[Logger] | bool = False
    callbacks: Sequence[Callback] = ()
    _states: list[dict[str, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        allowed = get_args(Precision)
        if self.precision not in allowed:
            raise ValueError(f"Expected `precision` to be one of {', '.join(allowed)}, but got {self.precision!r}.")
        if self.precision == "16-mixed" and self.device.type == "cpu":
            raise ValueError("Expected `precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed'.")
        object.__setattr__(self, "_states", [copy.deepcopy(callback.state_dict()) for callback in self.callbacks])

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
        all_callbacks = [*self.callbacks, *callbacks]
        for callback, state in zip(self.callbacks, self._states, strict=True):
            # Otherwise, early stopping of one fit would stop the next one. Lightning's checkpoints keep their state if
            # they have no folder before the first fit.
            if state and state.get("dirpath") == getattr(callback, "dirpath", None):
                callback.load_state_dict(copy.deepcopy(state))
        with seeded(0, "fit"), _quietly():
            trainer = Trainer(
                max_epochs=epochs,
                accelerator=self.device.type,
                devices=[self.device.index or 0] if self.device.type == "cuda" else 1,
                precision=self.precision,
                callbacks=all_callbacks,
                logger=list(self.logger) if isinstance(self.logger, Sequence) else self.logger,
                limit_val_batches=0,
                log_every_n_steps=1,
                num_sanity_val_steps=0,
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in all_callbacks),
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                # Under SLURM, Lightning loads any checkpoint of a requeued job that is in this folder.
                default_root_dir=str(Path(tempfile.gettempdir()) / f"kegnet_pl-{uuid.uuid4().hex}"),
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
