"""What the three modules have in common."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from kegnet_pl.runtime.errors import ConfigError, DivergedError
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.training.cuda_graphs import GraphedStep
from kegnet_pl.training.optimizers import OptimizerFactory, compiled, fused, gradient_norm

LRSchedulerName = Literal["constant", "cosine"]
"""How the learning rate goes on from epoch to epoch."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share, in [0, 1], of rows of logits ``(B, C)`` whose largest one is at the label ``(B,)``."""
    return (logits.argmax(dim=1) == labels).float().mean()


class SeededModule(LightningModule):
    """A module whose epochs draw from streams of their own, so that a resumed run equals an unbroken one.

    Args:
        seed: The run's seed.
    """

    index = 0
    """Tells modules of one seed apart, where there are several."""

    networks = 1
    """How many networks are trained together; metrics are ``(networks,)`` where it is more than one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def on_train_epoch_start(self) -> None:
        """Seed what draws from torch's global stream (dropout) by the epoch, the rank and the module's index."""
        torch.manual_seed(derive_seed(self.seed, "dropout", self.index, self.global_rank, self.current_epoch))

    @torch.no_grad()
    def check_weights(self, parameters: Iterable[Tensor]) -> None:
        """Stop a fit that has diverged: what came out of it would be of no use.

        Raises:
            DivergedError: If a weight is NaN or infinite.
        """
        finite = [parameter.isfinite().all() for parameter in parameters]
        if finite and not bool(torch.stack(finite).all()):
            raise DivergedError(
                f"Expected finite weights, but some are NaN or infinite: training diverged in epoch "
                f"{self.current_epoch + 1}. Lower the learning rate (optimizer.lr of the teacher, the generator or the "
                f"student), set trainer.gradient_clip_val=1, or train in trainer.precision=32-true; and see that the "
                f"samples, and the weights of the teacher, are finite."
            )

    @torch.no_grad()
    def count(self, metrics: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add metrics of one batch to the sums of the epoch, on their device."""
        for name, value in metrics.items():
            value = value * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0) + weight

    def take_means(self) -> tuple[list[str], Tensor]:
        """Return the names of what was counted, and its means over all processes: ``(networks, names)``.

        Something must have been counted since the last call.
        """
        names = list(self._sums)
        sums = torch.stack([value.expand(self.networks) for value in self._sums.values()]).T
        weights = sums.new_tensor([self._weights[name] for name in names])
        self._sums, self._weights = {}, {}
        # Each by itself: Lightning's own means take all processes for equal.
        sums, weights = (self.trainer.strategy.reduce(part, reduce_op="sum") for part in (sums, weights))
        return names, sums / weights

    def report(self) -> None:
        """Log the means of what was counted, and forget the sums."""
        if self._sums:
            names, values = self.take_means()
            means = dict(zip(names, values.mean(dim=0), strict=True))
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Log what the validation steps have counted."""
        self.report()

    def on_test_epoch_end(self) -> None:
        """Log what the test steps have counted."""
        self.report()

    @property
    def _distributed(self) -> bool:
        return self.trainer.world_size > 1


class SteppedModule(SeededModule):
    """A module that makes several optimiser steps of one Lightning batch.

    Lightning's own work a batch (hooks, progress, loggers) costs about as much as a step of a small network; so its
    batches are lists of ours. Metrics are summed where they are computed and leave the device once an epoch. They are
    logged there, too: with the number of optimiser steps as ``step``, and to a group of loggers for each network where
    several are trained together.

    Gradients are clipped as ``trainer.gradient_clip_val`` and ``trainer.gradient_clip_algorithm`` say.

    Args:
        seed: The run's seed.
        optimizer: Takes parameters, returns an optimiser. A fused one is made where torch has it.
        lr_scheduler: ``"constant"``, or ``"cosine"``: from epoch to epoch down to zero after the last one.
        compile: Whether to train compiled by ``torch.compile`` the network that :meth:`step_by` is given.
        cuda_graphs: Whether one GPU records a step and plays it again; see :class:`GraphedStep`. Not where the network
            is compiled, which does the same with its own kernels, nor with the scaled gradients of float16.
    """

    prefixes: Sequence[str] | None = None
    """For each network what the names of its metrics begin with, where every logger is given all of them; None where
    each network has a group of loggers of its own."""

    means: list[dict[str, float]]
    """Metrics of the last epoch that was reported, for each network; on rank 0."""

    def __init__(
        self,
        seed: int,
        optimizer: OptimizerFactory,
        lr_scheduler: LRSchedulerName = "constant",
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__(seed)
        self.automatic_optimization = False
        self.optimizer_of = optimizer
        if lr_scheduler not in get_args(LRSchedulerName):
            raise ValueError(
                f"Expected `lr_scheduler` to be one of {get_args(LRSchedulerName)}, but got {lr_scheduler!r}."
            )
        self.lr_scheduler = lr_scheduler
        self._compile = compile
        self._cuda_graphs = cuda_graphs
        self._graphed: GraphedStep | None = None
        self._clip: tuple[float | None, str | None] = (None, None)
        self.means: list[dict[str, float]] = []

    def step_by(self, network: nn.Module) -> None:
        """Name the network that a step calls, as ``self.run``."""
        # In tuples, so that nothing of it is registered twice.
        self._eager = (network,)
        self._run: tuple[Callable[..., Any]] = self._eager

    @property
    def run(self) -> Callable[..., Any]:
        """The network that a step calls, compiled where asked to."""
        return self._run[0]

    def on_fit_start(self) -> None:
        """Compile or record steps where asked to, now that the network is on its device."""
        self._run = (compiled(self._eager[0], self.device),) if self._compile else self._eager
        wanted = self._cuda_graphs and not self._compile and self.device.type == "cuda"
        if wanted and not self._distributed and self.trainer.precision != "16-mixed":
            self._graphed = GraphedStep(self.differentiate, self.trained_parameters())

    def on_fit_end(self) -> None:
        """Give back the memory of recorded steps."""
        self._graphed = None

    @abstractmethod
    def step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, a scalar, and the metrics of one optimiser step."""

    @abstractmethod
    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what is optimised."""

    def batches(self, batch: Any) -> Iterable[Any]:
        """Return the batches of the optimiser steps to make of one Lightning batch."""
        return batch if isinstance(batch, list) else [batch]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser of the trained parameters."""
        return fused(self.optimizer_of, self.trainer.precision)(self.trained_parameters())

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """Return the optimiser, and its scheduler where the learning rate changes."""
        optimizer = self.make_optimizer()
        if self.lr_scheduler == "constant":
            return {"optimizer": optimizer}
        assert self.trainer.max_epochs is not None
        return {"optimizer": optimizer, "lr_scheduler": CosineAnnealingLR(optimizer, self.trainer.max_epochs)}

    def on_train_epoch_end(self) -> None:
        """Go on with the learning rate."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LRScheduler):
            scheduler.step()

    def take_clipping(self, trainer: Trainer) -> None:
        """Clip gradients as a trainer says, in its place: Lightning does where it calls the optimiser itself alone.

        Raises:
            ConfigError: If gradients are scaled by float16 training.
        """
        if trainer.gradient_clip_val is None:
            return
        if trainer.precision == "16-mixed":
            raise ConfigError(
                "Expected trainer.precision=bf16-mixed or 32-true beside trainer.gradient_clip_val, but got 16-mixed, "
                "whose gradients are scaled when they would be clipped."
            )
        self._clip = float(trainer.gradient_clip_val), trainer.gradient_clip_algorithm
        trainer.gradient_clip_val = None

    @property
    def fitted_optimizer(self) -> LightningOptimizer:
        """The one optimiser, as Lightning counts its steps."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def differentiate(self, batch: Any) -> dict[str, Tensor]:
        """Write the gradients of a batch of one optimiser step; return its metrics. What it does may be recorded."""
        loss, metrics = self.step(batch)
        with torch.autocast(self.device.type, enabled=False):
            self.fitted_optimizer.zero_grad()
            self.manual_backward(loss)
        # Not with the graph of autograd, which would keep what it knows of this step's stream for the next.
        return {name: value.detach() for name, value in metrics.items()}

    def account(self, batch: Any) -> None:
        """Count what a step of a batch costs; called for every step, recorded or not."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make the optimiser steps of one Lightning batch."""
        optimizer = self.fitted_optimizer
        differentiate = self.differentiate if self._graphed is None else self._graphed
        for number, part in enumerate(self.batches(batch)):
            metrics = differentiate(part)
            self.account(part)
            with torch.autocast(self.device.type, enabled=False):
                if number == 0:  # of every so many steps one: it is to be seen, not to cost
                    self.count({"train/grad_norm": self.gradient_norm()})
                if self._clip[0] is not None:
                    self.clip_gradients(optimizer.optimizer, *self._clip)
                optimizer.step()
                self.count(metrics)
            # Lightning holds autocast open over all steps, which would go on with its copies of the old weights.
            torch.clear_autocast_cache()
        if batch_idx + 1 == self.trainer.num_training_batches:
            self.check_weights(self.trained_parameters())
            self.report()

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the Euclidean norm of all gradients before clipping: a scalar, ``(networks,)`` where several train."""
        gradients = [p.grad for p in self.trained_parameters() if p.grad is not None]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        return gradient_norm(gradients, self.networks) / scale

    def report(self) -> None:
        """Log the means over an epoch and over all processes, and forget the sums."""
        if not self._sums:
            return
        names, values = self.take_means()
        together = dict(zip(names, values.mean(dim=0), strict=True))
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(together, logger=not fitting, on_epoch=True, on_step=False, batch_size=1)
        if not fitting or self.trainer.sanity_checking or self.global_rank != 0:
            return
        self.means = [dict(zip(names, row, strict=True)) for row in values.tolist()]
        for index, logger in enumerate(self.trainer.loggers):
            if self.prefixes is None:
                mine = self.means[index * self.networks // len(self.trainer.loggers)]
            else:
                named = zip(self.prefixes, self.means, strict=True)
                mine = {f"{prefix}{name}": value for prefix, means in named for name, value in means.items()}
            logger.log_metrics(mine | {"epoch": self.current_epoch}, step=self.global_step)
            logger.save()


def frozen_keys_left_out(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return a state dict without the entries of a frozen submodule."""
    return {key: value for key, value in state.items() if not key.startswith(prefix)}
