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
from kegnet_pl.pipeline.trackers import Namespaced
from kegnet_pl.reporting.classes import shown_classes
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
    """Callback that generates samples from the same noise after every epoch and classifies them with the teacher.

    It logs ``samples/confidence`` (the teacher's mean probability of the intended class, in [0, 1]), the same for every
    class (``samples/confidence_3``), and ``samples/entropy`` (mean entropy of the teacher's predictions, in nats). With
    more than 50 classes, it logs 24 at equal distances. If the module has ``names``, the name of the generator comes
    first: ``generator_0/samples/confidence``. Every logger that takes images gets a sheet of samples; a file gets it
    after the epochs 1, 2, 5, 10, 20, 50, ... and the last.

    Generators and teacher are in evaluation mode. The noise has its own seed, and the statistics of batch norm do not
    change. So training is the same without this callback.

    Args:
        teacher: Returns logits. It is copied and frozen.
        spare: A network with the structure of the generators. It gets the weights of one generator if several train
            together.
        names: Names of the generators that train, in order.
        folder: Folder of the sheets, ``folder/NAME/epoch_0010.png``.
        seed: Seed of the noise.
        costs: Costs of the stage.
        batch_size: Samples of a forward pass; None for all at once.
    """

    def __init__(
        self,
        teacher: nn.Module,
        spare: nn.Module,
        names: Sequence[str],
        folder: Path,
        seed: int,
        costs: StageCosts,
        batch_size: int | None = None,
    ) -> None:
        self.teacher = FrozenModule(teacher)
        self.spare = spare
        self.names = list(names)
        self.folder = folder
        self.seed = seed
        self.costs = costs
        self.batch_size = batch_size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log samples of all generators."""
        assert isinstance(pl_module, GeneratorModule)
        if not trainer.is_global_zero:
            return
        move(self.teacher, pl_module.device)
        epoch, step = trainer.current_epoch + 1, trainer.global_step - 1  # as Lightning counts at the end of an epoch
        keep = epoch == trainer.max_epochs or str(epoch).rstrip("0") in ("1", "2", "5")
        labels = shown_classes(pl_module.classes)
        count = SAMPLES if len(labels) == pl_module.classes else ROWS
        for index, name in enumerate(self.names):
            samples, logits = self._sample(pl_module, index, labels, count)
            metrics, entropies = describe_answers(logits, labels)
            rows = sheet_rows(samples, ROWS)
            if keep:
                write_grid(rows, self.folder / name / f"epoch_{epoch:04d}.png")
            prefix = "" if pl_module.names is None else f"{name}/"
            for logger in trainer.loggers:
                more = log_sheet(logger, prefix, rows, entropies, step)
                named = {f"{prefix}{key}": value for key, value in (metrics | more).items()}
                logger.log_metrics(named | {"epoch": trainer.current_epoch}, step=step)
        made = count * len(labels) * len(self.names)
        self.costs.samples_made += made
        self.costs.teacher_forwards += made

    @torch.no_grad()
    def _sample(
        self, module: GeneratorModule, index: int, labels: Sequence[int], count: int
    ) -> tuple[list[Tensor], Tensor]:
        """Return some samples of every class, and the teacher's logits ``(classes, count, C)`` of ``count`` each."""
        network = module.generator
        if isinstance(network, StackedModule):
            network = network.take(index, self.spare.to(module.device))
        z = torch.randn(count, module.noise_dim, generator=stream(self.seed, "watch")).to(module.device)
        one_hot = torch.eye(module.classes, device=module.device)[list(labels)]
        z, y = z.repeat(len(labels), 1), one_hot.repeat_interleave(count, dim=0)
        size = self.batch_size or len(z)
        kept, logits = [], []
        with eval_mode(network):
            for noise, targets in zip(z.split(size), y.split(size), strict=True):
                x = network(noise, targets)
                logits.append(self.teacher(x).float())
                kept.append(x)
        samples = [part[:ROWS].clone() for part in torch.cat(kept).split(count)]
        return samples, torch.cat(logits).view(len(labels), count, -1)


def describe_answers(logits: Tensor, classes: Sequence[int] | None = None) -> tuple[dict[str, float], Tensor]:
    """Return a teacher's confidence in samples that were generated for each class.

    Args:
        logits: ``(K, N, C)``; the first dimension is the intended class.
        classes: These classes; None for all C.

    Returns:
        Metrics by name, and the entropy of every answer ``(K * N,)``, in nats, on the CPU.
    """
    answers = torch.distributions.Categorical(logits=logits)
    confidence = class_confidence(logits, classes).tolist()
    labels = range(len(confidence)) if classes is None else classes
    entropies = answers.entropy().flatten().cpu()
    metrics = {"samples/confidence": sum(confidence) / len(confidence), "samples/entropy": float(entropies.mean())}
    return metrics | {
        f"samples/confidence_{label}": value for label, value in zip(labels, confidence, strict=True)
    }, entropies


def log_sheet(
    logger: Logger, prefix: str, rows: Sequence[Sequence[Tensor]], entropies: Tensor, step: int
) -> dict[str, Any]:
    """Log a sheet of samples, and the entropies of the teacher's answers, to a logger that accepts images.

    Returns:
        Objects that the logger takes as metrics, by name without prefix.
    """
    base = logger.base if isinstance(logger, Namespaced) else logger
    if isinstance(base, TensorBoardLogger):
        base.experiment.add_image(f"{prefix}samples/sheet", grid(rows)[..., :3], step, dataformats="HWC")
        base.experiment.add_histogram(f"{prefix}samples/entropies", entropies, step)
    if isinstance(base, WandbLogger):
        return {"samples/sheet": picture_of(grid(rows)), "samples/entropies": histogram(entropies)}
    return {}
