"""Training generators against a frozen teacher."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from kegnet_pl.data.loading import STEPS_PER_BATCH, local_batch_size
from kegnet_pl.losses import GeneratedBatch, GeneratorObjective, NormStatistics
from kegnet_pl.networks import BatchNormMoments, FrozenModule, StackedModule, TeacherNorm, over_stack
from kegnet_pl.networks.execution import at_least_float32
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources import sample_labels_and_noise
from kegnet_pl.training.base import LRSchedulerName, SteppedModule, accuracy, frozen_keys_left_out
from kegnet_pl.training.optimizers import OptimizerFactory

Moments = list[tuple[Tensor, Tensor]]
"""Mean and variance ``(C,)`` of what enters every batch-norm layer of the teacher."""

_ELEMENTWISE = frozenset(
    {"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}
)
"""Optimisers of torch that treat every weight by itself, so that stacked weights are trained as separate ones."""


class GeneratorModule(SteppedModule):
    """Generators and their decoders, trained so that the teacher recognises what the generators make.

    One generator, or K that are stacked (:class:`StackedModule`) and trained together: the same mathematics as K
    modules of one generator each, with the same draws of noise and labels; where the teacher's dropout is on, masks are
    other ones.

    Logs ``train/loss``, ``train/loss_<term>`` for every term of the objective (nats, unweighted) and
    ``train/accuracy``, the share of samples that the teacher puts into the class they were made for: each generator's
    to its group of loggers, their means to callbacks.

    Args:
        generator: Called with noise ``(B, Z)`` and one-hot labels ``(B, C)``; has ``noise_dim`` and ``classes``; or K
            of them, stacked.
        decoder: Reads the noise from samples; it is left untrained where no term uses it. Stacked like the generator.
        teacher: Returns logits. It is copied and frozen.
        objective: The weighted sum of losses.
        optimizer: Takes parameters, returns an optimiser.
        batch_size: Samples of one step and generator, over all processes.
        steps_per_epoch: Steps of an epoch.
        teacher_norm: Whose statistics the teacher's batch norm uses; see :class:`FrozenModule`. With stacked
            generators ``"batch"`` means each generator's own batch.
        teacher_dropout: Whether the teacher's dropout stays on; see :class:`FrozenModule`.
        lr_scheduler: ``"constant"``, or ``"cosine"``: from epoch to epoch down to zero after the last one.
        seed: The run's seed.
        index: Tells the generators of one run apart; the first one's where they are stacked.
        compile: Whether to train the networks compiled by ``torch.compile``.
        cuda_graphs: Whether one GPU records a step and plays it again.

    Raises:
        ValueError: If generators are stacked and decoders are not, or the optimiser does not treat every weight by
            itself.
    """

    def __init__(
        self,
        generator: nn.Module,
        decoder: nn.Module,
        teacher: nn.Module,
        objective: GeneratorObjective,
        optimizer: OptimizerFactory,
        *,
        batch_size: int = 256,
        steps_per_epoch: int = 100,
        teacher_norm: TeacherNorm = "batch",
        teacher_dropout: bool = False,
        lr_scheduler: LRSchedulerName = "constant",
        seed: int = 0,
        index: int = 0,
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__(seed, optimizer, lr_scheduler, compile, cuda_graphs)
        self.save_hyperparameters("batch_size", "steps_per_epoch", "teacher_norm", "teacher_dropout", "seed", "index")
        self.networks = generator.count if isinstance(generator, StackedModule) else 1
        if self.networks != (decoder.count if isinstance(decoder, StackedModule) else 1):
            raise ValueError("Expected as many decoders as generators: stack both, or neither.")
        self.generator = generator
        self.decoder = decoder.requires_grad_(objective.uses_decoder)
        self.teacher = FrozenModule(teacher, teacher_norm, teacher_dropout)
        self.objective = objective
        single = generator.structure if isinstance(generator, StackedModule) else generator
        self.noise_dim, self.classes = int(single.noise_dim), int(single.classes)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.index = index
        self._chances: Sequence[torch.Generator] = ()
        self.step_by(GeneratorAnswer(self.generator, self.decoder, self.teacher, objective))

    def on_train_epoch_start(self) -> None:
        """Open the epoch's streams of noise; they differ by generator, rank and epoch."""
        super().on_train_epoch_start()
        self._chances = [
            stream(self.seed, "noise", self.index + i, self.global_rank, self.current_epoch, device=self.device)
            for i in range(self.networks)
        ]

    def train_dataloader(self) -> list[int]:
        """Return how many steps to make of each Lightning batch; what they look at is drawn in the training step."""
        whole, rest = divmod(self.steps_per_epoch, STEPS_PER_BATCH)
        return [STEPS_PER_BATCH] * whole + [rest] * (rest > 0)

    def batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield noise ``(B, Z)`` and one-hot labels ``(B, C)`` for so many steps, ``(K, B, ...)`` if stacked."""
        if not self._chances:
            raise RuntimeError("Expected the epoch to be started before its first step: run the module in a Trainer.")
        size = local_batch_size(self.batch_size, self.trainer)
        drawn = [sample_labels_and_noise(batch * size, self.classes, self.noise_dim, c) for c in self._chances]
        z, y = (
            torch.stack([tensor.unflatten(0, (batch, size)) for tensor in part], dim=1)
            for part in zip(*drawn, strict=True)
        )
        return zip(*((z, y) if self.networks > 1 else (z[:, 0], y[:, 0])), strict=True)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return samples ``(B, *input_shape)``, ``(K, B, *input_shape)`` if stacked."""
        x: Tensor = self.generator(z, y)
        return x

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective, summed over generators, and the metrics of each."""
        loss, parts, right = self.run(*batch)
        metrics = {f"train/loss_{name}": part for name, part in parts.items()}
        return loss.sum(), metrics | {"train/loss": loss, "train/accuracy": right}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the generator, and of the decoder where a term uses it."""
        trained = [*self.generator.parameters(), *self.decoder.parameters()]
        return [parameter for parameter in trained if parameter.requires_grad]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser of the generators, and of the decoders where a term uses them.

        Raises:
            ValueError: If generators are stacked and the optimiser, or clipping by norm, looks at several weights.
        """
        optimizer = super().make_optimizer()
        if self.networks > 1:
            check_separable(optimizer, *self._clip)
        return optimizer

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return everything but the teacher, which is not this module's to save."""
        return frozen_keys_left_out(super().state_dict(*args, **kwargs), "teacher.")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load everything but the teacher; other missing or unknown keys are errors."""
        frozen = {f"teacher.{key}": value for key, value in self.teacher.state_dict().items()}
        return super().load_state_dict({**state_dict, **frozen}, strict=strict, assign=assign)


def check_separable(optimizer: torch.optim.Optimizer, clip: float | None, algorithm: str | None) -> None:
    """See that generators that are trained together do not look at each other's weights.

    Args:
        optimizer: Of all of them.
        clip: The trainer's ``gradient_clip_val``.
        algorithm: Its ``gradient_clip_algorithm``.

    Raises:
        ValueError: If the optimiser, or clipping by norm, looks at several weights.
    """
    name = type(optimizer).__name__
    if type(optimizer).__module__.split(".")[0] != "torch" or name not in _ELEMENTWISE:
        raise ValueError(
            f"Expected an optimiser that treats every weight by itself ({', '.join(sorted(_ELEMENTWISE))}) for "
            f"generators that are trained together, but got {name}. Set generator.parallel=sequential."
        )
    if clip is not None and algorithm != "value":
        raise ValueError(
            "Expected trainer.gradient_clip_algorithm=value for generators that are trained together, as a norm would "
            "be taken over all of them, but got norm. Set it, or generator.parallel=sequential."
        )


class GeneratorAnswer(nn.Module):
    """What a batch of noise comes to: generator, teacher, decoder and losses as one function, to be compiled as one.

    Args:
        generator: One generator, or K that are stacked.
        decoder: Its decoder, or K that are stacked.
        teacher: The frozen teacher.
        objective: The weighted sum of losses.

    Shapes:
        Noise ``(B, Z)`` and labels ``(B, C)``; output the loss, its terms by name, and the accuracy, scalars. With K
        stacked generators all of them have a dimension of K in front.
    """

    def __init__(
        self, generator: nn.Module, decoder: nn.Module, teacher: FrozenModule, objective: GeneratorObjective
    ) -> None:
        super().__init__()
        self.generator = generator
        self.decoder = decoder
        self.teacher = teacher
        self.objective = objective
        self.watch = BatchNormMoments(teacher) if objective.uses_statistics else None
        self.stacked = isinstance(generator, StackedModule)

    def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return loss, terms and accuracy."""
        x = self.generator(z, y)
        logits, moments = self._teach(x)
        decoded = at_least_float32(self.decoder(x)) if self.objective.uses_decoder else None
        # Exponentials and means of bfloat16 would lose what the losses differ in.
        with torch.autocast(x.device.type, enabled=False):
            seen = (z, y, at_least_float32(x), at_least_float32(logits), decoded, moments)
            judge = vmap(self._judge, in_dims=(0, 0, 0, 0, None if decoded is None else 0, 0))
            loss, parts, right = judge(*seen) if self.stacked else self._judge(*seen)
        return loss, parts, right

    def _teach(self, x: Tensor) -> tuple[Tensor, Moments]:
        """Return the teacher's answer, and what enters its batch norm if a term asks for it."""
        if not self.stacked:
            return self._ask(x)
        if self.teacher.looks_at_the_batch or self.watch is not None:
            if torch.is_autocast_enabled(x.device.type):
                # Half precision is in channels_last, which torch's vectorised layers do not know, or copy from and to.
                answers = [self._ask(mine) for mine in x.unbind()]
                return tree_map(lambda *each: torch.stack(each), *answers)  # type: ignore[no-any-return]
            return over_stack(self._ask, x)  # type: ignore[no-any-return]
        return self.teacher(x.flatten(0, 1)).unflatten(0, x.shape[:2]), []

    def _ask(self, x: Tensor) -> tuple[Tensor, Moments]:
        return (self.teacher(x), []) if self.watch is None else self.watch(x)

    def _judge(
        self, z: Tensor, y: Tensor, x: Tensor, logits: Tensor, decoded: Tensor | None, moments: Moments
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        stored = self.watch.stored() if self.watch is not None else []
        statistics = [NormStatistics(*mine, *theirs) for mine, theirs in zip(moments, stored, strict=True)]
        loss, parts = self.objective(GeneratedBatch(z, y, x, logits, decoded, statistics))
        return loss, parts, accuracy(logits, y.argmax(dim=1))
