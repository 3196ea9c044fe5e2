"""Training of generators against a frozen teacher."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from kegnet_pl.data.loading import NoiseLoader, local_batch_size
from kegnet_pl.losses import GeneratedBatch, GeneratorObjective, NormStatistics
from kegnet_pl.networks import BatchNormMoments, FrozenModule, StackedModule, TeacherNorm, over_stack
from kegnet_pl.networks.execution import at_least_float32
from kegnet_pl.networks.handling import freeze
from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.settings import LRSchedulerName, Parallel
from kegnet_pl.sources import sample_labels_and_noise
from kegnet_pl.training.base import TrainingModule, accuracy
from kegnet_pl.training.optimizers import OptimizerFactory

Moments = list[tuple[Tensor, Tensor]]
"""Mean and variance ``(C,)`` of the input of every batch-norm layer of the teacher."""

_ELEMENTWISE = frozenset(
    {"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}
)
"""Elementwise optimisers of torch, which train stacked weights as separate ones."""


class GeneratorModule(TrainingModule):
    """Generators and their decoders, trained so that the teacher recognises the generated samples.

    The module trains one generator, or K stacked generators (:class:`StackedModule`). With K, the computation, the
    noise and the labels equal those of K modules with one generator each. Only the masks of active dropout of the
    teacher differ.

    Logs ``train/loss``, ``train/loss_<term>`` for every term of the objective (nats, unweighted) and
    ``train/accuracy``, the share of samples that the teacher classifies as their label. If ``names`` is set, loggers
    get the metrics of each generator, as ``NAME/train/loss``, and callbacks their means.

    The module draws new noise and labels for every step; a trainer may also be given a loader of them.

    Args:
        generator: Called with noise ``(B, Z)`` and one-hot labels ``(B, C)``; has ``noise_dim`` and ``classes``; or K
            of them, stacked.
        decoder: Predicts the noise of samples; it is not trained if no term uses it. Stacked like the generator.
        teacher: Returns logits. It is copied and frozen.
        objective: The weighted sum of losses.
        batch_size: Samples of one step and generator, over all processes.
        steps_per_epoch: Steps of an epoch.
        teacher_norm: Statistics of the teacher's batch norm; see :class:`FrozenModule`. With stacked generators
            ``"batch"`` means each generator's own batch.
        teacher_dropout: True for active dropout of the teacher; see :class:`FrozenModule`.
        index: Index of the generator among those of one seed; of the first one if they are stacked.
        optimizer, lr_scheduler, seed, compile, cuda_graphs: See :class:`TrainingModule`.

    Raises:
        ValueError: If generators are stacked and decoders are not.

    Shapes:
        Batches ``(z, y)``: noise ``(B, Z)`` and one-hot labels ``(B, C)``; ``(K, B, Z)`` and ``(K, B, C)`` with K
        stacked generators.
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
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(seed, optimizer, lr_scheduler, compile, cuda_graphs)
        self.save_hyperparameters("batch_size", "steps_per_epoch", "teacher_norm", "teacher_dropout", "seed", "index")
        self.networks = generator.count if isinstance(generator, StackedModule) else 1
        if self.networks != (decoder.count if isinstance(decoder, StackedModule) else 1):
            raise ValueError("Expected as many decoders as generators: stack both, or neither.")
        self.generator = generator
        self.decoder = decoder if objective.uses_decoder else freeze(decoder)
        self.teacher = FrozenModule(teacher, teacher_norm, teacher_dropout)
        self.objective = objective
        single = generator.structure if isinstance(generator, StackedModule) else generator
        self.noise_dim, self.classes = int(single.noise_dim), int(single.classes)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.index = index
        self.step_by(GeneratorAnswer(self.generator, self.decoder, self.teacher, objective))

    def train_dataloader(self) -> NoiseLoader:
        """Return a loader of noise and labels, a batch for each step of an epoch."""
        return NoiseLoader(
            self.steps_per_epoch, local_batch_size(self.batch_size, self.trainer), self.noise_dim, self.classes,
            self.noise_streams, stacked=self.networks > 1,
        )  # fmt: skip

    def noise_streams(self, epoch: int) -> list[torch.Generator]:
        """Return the random generators of an epoch's noise; they differ by generator, rank and epoch."""
        indices = range(self.index, self.index + self.networks)
        return [stream(self.seed, "noise", i, self.global_rank, epoch, device=self.device) for i in indices]

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return samples ``(B, *input_shape)``, ``(K, B, *input_shape)`` if stacked."""
        x: Tensor = self.generator(z, y)
        return x

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective, summed over generators, and the metrics of each."""
        loss, parts, right = self.run(*batch)
        metrics = {f"loss_{name}": part for name, part in parts.items()}
        return loss.sum(), metrics | {"loss": loss, "accuracy": right}

    def sample_count(self, batch: tuple[Tensor, Tensor]) -> int:
        """Return the number of samples that each generator makes of a batch."""
        return batch[0].shape[-2]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the generator, and of the decoder if a term uses it."""
        trained = [*self.generator.parameters(), *self.decoder.parameters()]
        return [parameter for parameter in trained if parameter.requires_grad]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser of the generators, and of the decoders if a term uses them.

        Raises:
            ValueError: If generators are stacked and the optimiser, or clipping by norm, combines several weights.
        """
        optimizer = super().make_optimizer()
        if self.networks > 1:
            check_separable(optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)
        return optimizer

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state without the teacher, which is stored elsewhere."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith("teacher.")}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state without the teacher; other missing or unknown keys are errors."""
        frozen = {f"teacher.{key}": value for key, value in self.teacher.state_dict().items()}
        return super().load_state_dict({**state_dict, **frozen}, strict=strict, assign=assign)


def check_separable(optimizer: torch.optim.Optimizer, clip: float | None, algorithm: str | None) -> None:
    """Check that training several generators together does not mix their weights.

    Raises:
        ValueError: If the optimiser, or clipping by norm, reads several weights for the update of one.
    """
    name = type(optimizer).__name__
    if type(optimizer).__module__.split(".")[0] != "torch" or name not in _ELEMENTWISE:
        raise ValueError(
            f"Expected an optimiser that updates every weight independently ({', '.join(sorted(_ELEMENTWISE))}) for "
            f"generators that are trained together, but got {name}. Set generator.parallel=sequential."
        )
    if clip is not None and algorithm != "value":
        raise ValueError(
            "Expected trainer.gradient_clip_algorithm=value for generators that are trained together, since the norm "
            "would be that of all generators together, but got norm. Set it, or generator.parallel=sequential."
        )


def should_vectorize(training: str, count: int, device: torch.device, input_shape: Sequence[int]) -> bool:
    """Return True if generators or students should be trained together, provided that torch can vectorise them.

    ``"auto"`` trains them together on a GPU and for feature rows. One network for images already uses the whole CPU.
    ``python -m benchmarks.bench --choices`` measures both on a device; a GPU has not been measured yet.
    """
    faster = device.type == "cuda" or len(input_shape) == 1
    return count > 1 and (training == "vmap" or (training == "auto" and faster))


def find_failure(attempt: Callable[[], object]) -> str | None:
    """Return the reason why an attempt with a network fails, None if it succeeds; the global random state is kept."""
    try:
        with torch.random.fork_rng([]):
            attempt()
    except FORWARD_ERRORS as error:
        return first_line(error)
    return None


def can_vectorize(parallel: Parallel, obstacle: str | None, what: str) -> bool:
    """Return True if there is no obstacle to training several networks together.

    Args:
        parallel: The setting.
        obstacle: Reason why torch cannot vectorise the networks; None if it can.
        what: Names of the networks and their parts, for the message.

    Raises:
        ValueError: If ``parallel="vmap"`` is set and there is an obstacle.
    """
    if obstacle is not None and parallel == "vmap":
        raise ValueError(
            f"Expected {what} that torch can vectorise with parallel='vmap', but got: {obstacle.rstrip('.')}. Use "
            f"parallel='sequential'."
        )
    return obstacle is None


def vectorization_error(
    make_module: Callable[[], GeneratorModule], clip: float | None = None, algorithm: str | None = None
) -> str | None:
    """Return the reason why torch cannot make a step of two stacked generators on the CPU, None if it can.

    ``clip`` and ``algorithm`` are the trainer's ``gradient_clip_val`` and ``gradient_clip_algorithm``.
    """

    def make_step() -> None:
        module = make_module()
        check_separable(module.optimizer_of(module.trained_parameters()), clip, algorithm)
        draws = [sample_labels_and_noise(4, module.classes, module.noise_dim, stream(i, "trial")) for i in range(2)]
        z, y = (torch.stack(part) for part in zip(*draws, strict=True))
        module.step((z, y))[0].backward()

    return find_failure(make_step)


class GeneratorAnswer(nn.Module):
    """Generator, teacher, decoder and losses as one function, which is compiled as one.

    Shapes:
        Noise ``(B, Z)`` and labels ``(B, C)``; output the loss, its terms by name, and the accuracy, scalars. All of
        them have a leading dimension of K for K stacked generators.
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
        logits, moments = self._teacher_outputs(x)
        decoded = at_least_float32(self.decoder(x)) if self.objective.uses_decoder else None
        # Exponentials and means in bfloat16 would be too coarse for the losses.
        with torch.autocast(x.device.type, enabled=False):
            inputs = (z, y, at_least_float32(x), at_least_float32(logits), decoded, moments)
            losses = vmap(self._losses, in_dims=(0, 0, 0, 0, None if decoded is None else 0, 0))
            loss, parts, right = losses(*inputs) if self.stacked else self._losses(*inputs)
        return loss, parts, right

    def _teacher_outputs(self, x: Tensor) -> tuple[Tensor, Moments]:
        """Return the teacher's logits, and the moments of the inputs of its batch norm if a term uses them."""
        if not self.stacked:
            return self._call_teacher(x)
        if self.teacher.looks_at_the_batch or self.watch is not None:
            if torch.is_autocast_enabled(x.device.type):
                # Half precision is in channels_last, which torch's vectorised layers do not support, or copy.
                outputs = [self._call_teacher(samples) for samples in x.unbind()]
                return tree_map(lambda *each: torch.stack(each), *outputs)  # type: ignore[no-any-return]
            return over_stack(self._call_teacher, x)  # type: ignore[no-any-return]
        return self.teacher(x.flatten(0, 1)).unflatten(0, x.shape[:2]), []

    def _call_teacher(self, x: Tensor) -> tuple[Tensor, Moments]:
        return (self.teacher(x), []) if self.watch is None else self.watch(x)

    def _losses(
        self, z: Tensor, y: Tensor, x: Tensor, logits: Tensor, decoded: Tensor | None, moments: Moments
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        stored = self.watch.stored() if self.watch is not None else []
        statistics = [NormStatistics(*batch, *running) for batch, running in zip(moments, stored, strict=True)]
        loss, parts = self.objective(GeneratedBatch(z, y, x, logits, decoded, statistics))
        return loss, parts, accuracy(logits, y.argmax(dim=1))
