"""What the functions of the library have in common: where they run, their numbers, and one fit that leaves no trace."""

import copy
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from torch import nn

from kegnet_pl.schema import PRECISION

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


def fit_quietly(
    module: LightningModule,
    data: LightningDataModule | None,
    epochs: int,
    device: torch.device,
    precision: Any,
    callbacks: Sequence[Callback],
    logger: Logger | Sequence[Logger] | bool,
) -> None:
    """Fit a module with a Lightning trainer of its own, which writes nothing and leaves log levels as they were.

    Args:
        module: What is trained; on the CPU afterwards.
        data: Its data, None where it draws its own.
        epochs: How long.
        device: Where.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        callbacks: Of the trainer.
        logger: Lightning loggers.
    """
    with seeded(0), _quietly():
        trainer = Trainer(
            max_epochs=epochs,
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=precision,
            callbacks=list(callbacks),
            logger=list(logger) if isinstance(logger, Sequence) else logger,
            limit_val_batches=0,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        run_fit(trainer, module, data)
    module.to("cpu")


@contextmanager
def _quietly() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LIGHTNING_LOGGERS}
    quiet_lightning()
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's global random numbers come from a seed for a while."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed % 2**32)
        yield


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode, without gradients of its weights."""
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)


def check_counts(**at_least: tuple[int, int]) -> None:
    """Check whole numbers that a user has typed.

    Args:
        at_least: Name of an argument -> its value, and the smallest that is allowed.

    Raises:
        ValueError: If a value is too small, or no whole number.
    """
    for name, (value, least) in at_least.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"Expected `{name}` to be a whole number of at least {least}, but got {value!r}.")


def check_numbers(precision: Any, device: torch.device, **at_least: tuple[float, float]) -> None:
    """Check what a user has typed, before anything takes time.

    Args:
        precision: Of the training.
        device: Where it will be.
        at_least: Name of an argument -> its value, and what it must not be below.

    Raises:
        ValueError: If something is out of range.
    """
    for name, (value, least) in at_least.items():
        if not value >= least:
            raise ValueError(f"Expected `{name}` of at least {least}, but got {value}.")
    if precision not in PRECISION:
        raise ValueError(f"Expected `precision` to be one of {', '.join(PRECISION)}, but got {precision!r}.")
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("Expected `precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed'.")


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
