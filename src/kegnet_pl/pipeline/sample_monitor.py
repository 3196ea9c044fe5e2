"""Monitoring of generators while they train: their samples, and the teacher's confidence in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from kegnet_pl.api.sampling import class_confidence
from kegnet_pl.networks import FrozenModule, StackedModule
from kegnet_pl.networks.execution import eval_mode
from kegnet_pl.networks.handling import move
from kegnet_pl.reporting.images import grid, sheet_rows, write_grid
from kegnet_pl.reporting.wandb import histogram, picture_of
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.training import GeneratorModule

SAMPLES = 16
"""Samples of each class that the teacher classifies."""

ROWS = 4
"""Samples of each class on a sheet."""


class SampleMonitor(Callback):
    """Makes samples of the same noise after every epoch, and lets the teacher classify them in evaluation mode.

    Logs ``samples/confidence`` (the teacher's mean probability of the intended class, in [0, 1]), the same for every
    class (``samples/confidence_3``), and ``samples/entropy`` (of the teacher's answers, mean, in nats). If the module
    has ``names``, the name of the generator comes first: ``generator_0/samples/confidence``. Every logger that takes
    images gets a sheet of samples; a file gets it after the epochs 1, 2, 5, 10, 20, 50, ... and the last.

    Its noise has a seed of its own and statistics stay as they are: training is the same without it.

    Args:
        teacher: Returns logits. It is copied and frozen.
        spare: A network of the generators' structure, for the values of one of several that train together.
        names: Names of the generators that train, in order.
        folder: Folder of the sheets, ``folder/NAME/epoch_0010.png``.
        seed: Seed of the noise.
        costs: Costs of the stage.
    """

    def __init__(
        self, teacher: nn.Module, spare: nn.Module, names: Sequence[str], folder: Path, seed: int, costs: StageCosts
    ) -> None:
        self.teacher = FrozenModule(teacher)
        self.spare = spare
        self.names = list(names)
        self.folder = folder
        self.seed = seed
        self.costs = costs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log samples of all generators."""
        assert isinstance(pl_module, GeneratorModule)
        if not trainer.is_global_zero:
            return
        move(self.teacher, pl_module.device)
        epoch, step = trainer.current_epoch + 1, trainer.global_step - 1  # as Lightning counts at the end of an epoch
        keep = epoch == trainer.max_epochs or str(epoch).rstrip("0") in ("1", "2", "5")
        for index, name in enumerate(self.names):
            samples, logits = self._sample(pl_module, index)
            metrics, entropies = describe_answers(logits)
            rows = sheet_rows(samples, ROWS)
            if keep:
                write_grid(rows, self.folder / name / f"epoch_{epoch:04d}.png")
            prefix = "" if pl_module.names is None else f"{name}/"
            for logger in trainer.loggers:
                more = log_sheet(logger, prefix, rows, entropies, step)
                named = {f"{prefix}{key}": value for key, value in (metrics | more).items()}
                logger.log_metrics(named | {"epoch": trainer.current_epoch}, step=step)
        count = SAMPLES * pl_module.classes * len(self.names)
        self.costs.samples_made += count
        self.costs.teacher_forwards += count

    @torch.no_grad()
    def _sample(self, module: GeneratorModule, index: int) -> tuple[list[Tensor], Tensor]:
        """Return samples of every class, and the teacher's logits ``(classes, SAMPLES, C)``."""
        network = module.generator
        if isinstance(network, StackedModule):
            network = network.take(index, self.spare.to(module.device))
        z = torch.randn(SAMPLES, module.noise_dim, generator=stream(self.seed, "watch")).to(module.device)
        labels = torch.eye(module.classes, device=module.device)
        with eval_mode(network):
            x = network(z.repeat(module.classes, 1), labels.repeat_interleave(SAMPLES, dim=0))
        return list(x.split(SAMPLES)), self.teacher(x).float().view(module.classes, SAMPLES, -1)


def describe_answers(logits: Tensor) -> tuple[dict[str, float], Tensor]:
    """Return a teacher's confidence in samples that were made for each class.

    Args:
        logits: ``(classes, N, classes)``; the first dimension is the class that samples were made for.

    Returns:
        Metrics by name, and the entropy of every answer ``(classes * N,)``, in nats, on the CPU.
    """
    answers = torch.distributions.Categorical(logits=logits)
    confidence = class_confidence(logits).tolist()
    entropies = answers.entropy().flatten().cpu()
    metrics = {"samples/confidence": sum(confidence) / len(confidence), "samples/entropy": float(entropies.mean())}
    return metrics | {f"samples/confidence_{label}": value for label, value in enumerate(confidence)}, entropies


def log_sheet(
    logger: Logger, prefix: str, rows: Sequence[Sequence[Tensor]], entropies: Tensor, step: int
) -> dict[str, Any]:
    """Log a sheet of samples, and the entropies of the teacher's answers, to a logger that takes images.

    Returns:
        Objects that the logger takes as metrics, by name without prefix.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(f"{prefix}samples/sheet", grid(rows)[..., :3], step, dataformats="HWC")
        logger.experiment.add_histogram(f"{prefix}samples/entropies", entropies, step)
    if isinstance(logger, WandbLogger):
        return {"samples/sheet": picture_of(grid(rows)), "samples/entropies": histogram(entropies)}
    return {}
