"""Training a generator against a frozen teacher."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kegnet_pl.data.loading import local_batch_size
from kegnet_pl.data.synthetic import draw_labels_and_noise
from kegnet_pl.losses import GeneratedBatch, GeneratorObjective
from kegnet_pl.modules.base import OptimizerFactory, SeededModule, accuracy, frozen_keys_left_out
from kegnet_pl.networks import FrozenModule, TeacherNorm
from kegnet_pl.networks.precision import at_least_float32
from kegnet_pl.seeds import stream


class GeneratorModule(SeededModule):
    """One generator and its decoder, trained so that the teacher recognises what the generator makes.

    Logs ``train/loss``, ``train/loss_<term>`` for every term of the objective (nats, unweighted) and
    ``train/accuracy``, the share of samples that the teacher puts into the class they were made for.

    Args:
        generator: Called with noise ``(B, Z)`` and one-hot labels ``(B, C)``; has ``noise_dim`` and ``classes``.
        decoder: Reads the noise from samples; it is left untrained where no term uses it.
        teacher: Returns logits. It is copied and frozen.
        objective: The weighted sum of losses.
        optimizer: Takes parameters, returns an optimiser.
        batch_size: Samples of one step, over all processes.
        steps_per_epoch: Steps of an epoch.
        teacher_norm: Whose statistics the teacher's batch norm uses; see :class:`FrozenModule`.
        seed: The run's seed.
        index: Tells the generators of one run apart.
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
        seed: int = 0,
        index: int = 0,
    ) -> None:
        super().__init__(seed)
        self.save_hyperparameters("batch_size", "steps_per_epoch", "teacher_norm", "seed", "index")
        self.generator = generator
        self.decoder = decoder.requires_grad_(objective.uses_decoder)
        self.teacher = FrozenModule(teacher, teacher_norm)
        self.objective = objective
        self._optimizer = optimizer
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.index = index
        self._noise: torch.Generator | None = None

    def on_train_epoch_start(self) -> None:
        """Open the epoch's stream of noise; it differs by generator, rank and epoch."""
        super().on_train_epoch_start()
        self._noise = stream(self.seed, "noise", self.index, self.global_rank, self.current_epoch, device=self.device)

    def train_dataloader(self) -> range:
        """Count the steps of an epoch: batches are drawn in the training step."""
        return range(self.steps_per_epoch)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return samples ``(B, *input_shape)``."""
        x: Tensor = self.generator(z, y)
        return x

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Draw labels and noise, return the objective."""
        if self._noise is None:
            raise RuntimeError("Expected the epoch to be started before its first step: run the module in a Trainer.")
        size = local_batch_size(self.batch_size, self.trainer)
        z, y = draw_labels_and_noise(size, int(self.generator.classes), int(self.generator.noise_dim), self._noise)  # type: ignore[arg-type]
        x = self(z, y)
        logits = self.teacher(x)
        decoded = at_least_float32(self.decoder(x)) if self.objective.uses_decoder else None
        # Exponentials and means of bfloat16 would lose what the losses differ in.
        with torch.autocast(self.device.type, enabled=False):
            seen = GeneratedBatch(z, y, at_least_float32(x), at_least_float32(logits), decoded)
            loss: Tensor
            parts: dict[str, Tensor]
            loss, parts = self.objective(seen)
        metrics = {f"train/loss_{name}": part.detach() for name, part in parts.items()}
        metrics |= {"train/loss": loss.detach(), "train/accuracy": accuracy(logits, y.argmax(dim=1))}
        self.log_epoch(metrics, size)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimise the generator, and the decoder where a term uses it."""
        trained = [*self.generator.parameters(), *self.decoder.parameters()]
        return self._optimizer([parameter for parameter in trained if parameter.requires_grad])

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return everything but the teacher, which is not this module's to save."""
        return frozen_keys_left_out(super().state_dict(*args, **kwargs), "teacher.")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load everything but the teacher; other missing or unknown keys are errors."""
        frozen = {f"teacher.{key}": value for key, value in self.teacher.state_dict().items()}
        return super().load_state_dict({**state_dict, **frozen}, strict=strict, assign=assign)
