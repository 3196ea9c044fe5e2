"""The base class of the LightningModules: random streams, optimiser, training step, metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.handling import set_mode
from kegnet_pl.runtime.errors import ConfigError, DivergedError
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.settings import LRSchedulerName
from kegnet_pl.training.cuda_graphs import GraphedModule
from kegnet_pl.training.optimizers import OptimizerFactory, compiled, fused, gradient_norm

Phase = Literal["train", "val", "test"]

GRAD_NORM_EVERY = 10
"""The norm of gradients is computed at every tenth optimiser step: it costs as much as all other metrics."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share, in [0, 1], of rows of logits ``(B, C)`` whose largest one is at the label ``(B,)``."""
    return (logits.argmax(dim=1) == labels).float().mean()


class MetricSums(dict[str, tuple[Tensor, int]]):
    """Weighted sums of metrics and their weights, by name; the GPU is synchronised only when means are taken.

    Metrics are scalars, or ``(K,)`` if K networks are trained in one module.
    """

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add the metrics of one batch, which are means over ``weight`` samples."""
        for name, value in metrics.items():
            total, total_weight = self.get(name, (0, 0))
            # The product is a copy: the next step may overwrite the metrics of a recorded one.
            self[name] = (value * weight + total, total_weight + weight)

    def take_means(self, networks: int, reduce: Callable[..., Any]) -> tuple[list[str], Tensor]:
        """Return the names of the metrics and their means ``(networks, names)`` over all processes, and drop the sums.

        A metric of all networks together counts for each network. ``reduce`` is ``Strategy.reduce`` of Lightning.
        """
        names = list(self)
        sums = torch.stack([total.expand(networks) for total, _ in self.values()]).T
        weights = sums.new_tensor([weight for _, weight in self.values()])
        self.clear()
        # Processes may have had different numbers of samples: sums and weights are added up one by one.
        return names, reduce(sums, reduce_op="sum") / reduce(weights, reduce_op="sum")


class FiniteSteps:
    """Counter of the steps of an epoch before a metric is NaN or infinite; it stays on the GPU until it is read."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a new epoch."""
        self._names: list[str] = []
        self._finite = self._steps = torch.empty(0)
        self._taken = 0

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of a step, which have the same names in every step."""
        values = torch.stack([value.float() for value in metrics.values()]).isfinite()
        finite = values.flatten(1).all(dim=1) if values.dim() > 1 else values
        if self._taken == 0:
            self._names, self._finite, self._steps = list(metrics), finite, finite.int()
        else:
            self._finite = self._finite & finite
            self._steps = self._steps + self._finite
        self._taken += 1

    def first_failure(self) -> tuple[int, list[str]] | None:
        """Return the first step (from 1) with metrics that are not finite, and their names; None if all are finite."""
        steps = self._steps.tolist()
        first = min(steps, default=self._taken)
        if first == self._taken:
            return None
        return first + 1, [name for name, count in zip(self._names, steps, strict=True) if count == first]


class TrainingModule(GraphedModule):
    """A LightningModule with automatic optimisation. Its metrics leave the device once per epoch.

    Each epoch has its own random stream. So a resumed fit equals an uninterrupted one. ``train/loss``, the other
    metrics of :meth:`step`, and ``train/grad_norm`` (before clipping) are logged at the end of an epoch as means over
    its samples.

    Args:
        seed: Seed of the run.
        optimizer: Takes parameters, returns an optimiser.
        lr_scheduler: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        compile: True to train the network of :meth:`step_by` compiled by ``torch.compile``.
        cuda_graphs: True to record a step on a single GPU and replay it; see :class:`GraphedStep`.
    """

    index = 0
    """Index of the module among the modules of one seed."""

    networks = 1
    """Number of networks that are trained together; metrics are ``(networks,)`` if it is more than one."""

    names: Sequence[str] | None = None
    """Names of the networks if a stage trains several: loggers get ``NAME/train/loss``, callbacks the mean
    ``train/loss``. None: both get ``train/loss``."""

    means: list[dict[str, float]]
    """Metrics of the last training epoch of each network; on rank 0."""

    def __init__(
        self,
        seed: int,
        optimizer: OptimizerFactory,
        lr_scheduler: LRSchedulerName = "constant",
        compile: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(cuda_graphs and not compile)
        if lr_scheduler not in get_args(LRSchedulerName):
            raise ValueError(
                f"Expected `lr_scheduler` to be one of {get_args(LRSchedulerName)}, but got {lr_scheduler!r}."
            )
        self.seed = seed
        self.optimizer_of = optimizer
        self.lr_scheduler = lr_scheduler
        self.means = []
        self._compile = compile
        self._sums: dict[Phase, MetricSums] = {"train": MetricSums(), "val": MetricSums(), "test": MetricSums()}
        self._finite = FiniteSteps()
        self._steps = 0

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this name some forty times a step; torch's look-up of parameters costs more than its hooks.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all networks."""
        self.training = mode
        for network in self.children():
            set_mode(network, mode)
        return self

    def step_by(self, network: nn.Module) -> None:
        """Set the network that a step calls as ``self.run``."""
        # In tuples, so that the network is not registered twice.
        self._eager = (network,)
        self._run: tuple[Callable[..., Any]] = self._eager

    @property
    def run(self) -> Callable[..., Any]:
        """The network that a step calls, compiled if ``compile`` is set."""
        return self._run[0]

    def on_fit_start(self) -> None:
        """Compile the network on its device if ``compile`` is set."""
        self._run = (compiled(self._eager[0], self.device),) if self._compile else self._eager
        super().on_fit_start()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser of the trained parameters, a fused one if torch has it."""
        parameters = self.trained_parameters()
        return fused(self.optimizer_of, self.trainer.precision, parameters)(parameters)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and its scheduler if the learning rate changes."""
        optimizer = self.make_optimizer()
        if self.lr_scheduler == "constant":
            return optimizer
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ConfigError(
                f"Expected the trainer's `max_epochs` to be at least 1 for lr_scheduler='cosine', which ends with the "
                f"last epoch, but got {epochs}. Set Trainer(max_epochs=...), or lr_scheduler='constant'."
            )
        scheduler = CosineAnnealingLR(optimizer, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def sample_count(self, batch: Any) -> int:
        """Return the number of samples of a training batch, of each network."""
        return len(batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss, metrics = self.compute(batch)
        self._finite.add(metrics)
        self.count("train", metrics, self.sample_count(batch))
        return loss

    def on_train_epoch_start(self) -> None:
        """Seed torch's global stream (dropout) by epoch, rank and index of the module."""
        torch.manual_seed(derive_seed(self.seed, "dropout", self.index, self.global_rank, self.current_epoch))
        self._sums["train"].clear()
        self._finite.clear()
        self._steps = 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the norm of the gradients: a scalar, ``(networks,)`` if several are trained."""
        if self._steps % GRAD_NORM_EVERY == 0:
            gradients = [value.grad for value in self.trained_parameters() if value.grad is not None]
            self.count("train", {"grad_norm": gradient_norm(gradients, self.networks)})
        self._steps += 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report the epoch after its last batch: validation and callbacks then find its metrics."""
        if self.trainer.is_last_batch:
            self._finish_epoch()

    def on_train_epoch_end(self) -> None:
        """Report an epoch that ended before its last batch (``max_steps``)."""
        self._finish_epoch()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        self._report("test")

    def count(self, phase: Phase, metrics: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add metrics of a batch, means over ``weight`` samples, to those of the epoch."""
        self._sums[phase].add(metrics, weight)

    def _finish_epoch(self) -> None:
        if self._sums["train"]:
            self._check_finite()
            self._report("train")

    @torch.no_grad()
    def _check_finite(self) -> None:
        found = self._finite.first_failure()
        finite = [parameter.isfinite().all() for parameter in self.trained_parameters()]
        layers = [layer for layer in norm_layers(self).values() if layer.training]
        statistics = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
        finite += [value.isfinite().all() for value in statistics if value is not None]
        weights = not finite or bool(torch.stack(finite).all())
        # A step in float16 whose gradients overflow changes no weights. Processes have the same weights, but different
        # losses, and must stop together.
        if weights and (found is None or self.trainer.precision == "16-mixed" or self.trainer.world_size > 1):
            return
        epoch = f"epoch {self.current_epoch + 1}"
        what = "some weights or batch-norm statistics are NaN or infinite"
        if found is not None:
            step, names = found
            epoch = f"step {step} of {epoch}"
            what = f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} NaN or infinite"
        raise DivergedError(
            f"Expected finite weights and losses, but {what}: training diverged in {epoch}. Lower the learning rate "
            f"(optimizer.lr of the teacher, the generator or the student), set trainer.gradient_clip_val=1, or train "
            f"in trainer.precision=32-true; and check that the samples and the weights of the teacher are finite."
        )

    def _report(self, phase: Phase) -> None:
        if not self._sums[phase]:
            return
        names, values = self._sums[phase].take_means(self.networks, self.trainer.strategy.reduce)
        names = [f"{phase}/{name}" for name in names]
        by_name = phase == "train" and self.names is not None
        mean = dict(zip(names, values.mean(dim=0), strict=True))
        # Not True, which warns without a logger.
        self.log_dict(mean, logger=False if by_name else None, on_step=False, on_epoch=True, batch_size=1)
        if phase != "train" or self.global_rank != 0:
            return
        self.means = [dict(zip(names, row, strict=True)) for row in values.tolist()]
        if self.names is not None:
            named = zip(self.names, self.means, strict=True)
            metrics = {f"{network}/{name}": value for network, means in named for name, value in means.items()}
            for logger in self.trainer.loggers:  # at the step that Lightning logs an epoch at
                logger.log_metrics(metrics | {"epoch": self.current_epoch}, step=self.global_step - 1)
                logger.save()


class ClassifierModule(TrainingModule):
    """A LightningModule that trains ``network``, which returns logits ``(B, C)``."""

    network: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        logits: Tensor = self.network(x)
        return logits

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the network's parameters, without frozen ones."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count accuracy on the test split."""
        x, y = batch
        self.count("test", {"accuracy": accuracy(self(x), y)}, len(x))
