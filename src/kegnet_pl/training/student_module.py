"""Training of a student on the teacher's logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.dropout import _DropoutNd

from kegnet_pl.losses import DistillationLoss, FeatureLoss
from kegnet_pl.networks import FeatureExtractor, StackedModule, norm_layers
from kegnet_pl.networks.handling import move
from kegnet_pl.networks.kept import kept_channels
from kegnet_pl.settings import LRSchedulerName
from kegnet_pl.training.base import ClassifierModule, accuracy
from kegnet_pl.training.optimizers import OptimizerFactory

StudentNorm = Literal["batch", "frozen"]


@dataclass(frozen=True)
class FeatureDistillation:
    """Layers of the student that learn from the teacher's layers.

    Attributes:
        teacher: In evaluation mode, on the student's device; it is called at every step.
        layers: Names of layers that both networks have, with outputs of the same shapes; a pruned student learns from
            the channels that it has kept.
        weight: Weight of :class:`FeatureLoss`; the distillation loss has weight 1.
    """

    teacher: nn.Module
    layers: Sequence[str]
    weight: float


class StudentModule(ClassifierModule):
    """A student that learns the teacher's logits of synthetic samples.

    The module trains one student, or K stacked students (:class:`StackedModule`). With K, the computation equals that
    of K modules with one student each. Only the masks of active dropout differ. Stacked students have no validation.

    Logs ``train/loss`` (nats) and ``train/agreement`` with the teacher; ``val/loss`` and ``val/accuracy``
    on the validation data (teacher's logits or true classes); ``test/accuracy``. With feature distillation,
    ``train/loss`` is the sum of both losses. ``train/loss_features`` is the feature loss without its weight.

    Args:
        network: A student that returns logits ``(B, C)``; or K stacked students.
        distillation: The loss.
        norm: Statistics of the student's batch norm. ``"batch"``: those of the synthetic batches, which also update the
            stored statistics, as in the release. ``"frozen"``: the stored statistics, which never change.
        dropout: False to turn the student's dropout off in training.
        feature_distillation: Layers that learn from the teacher's; None for none.
        optimizer, seed, lr_scheduler, compile, cuda_graphs: See :class:`TrainingModule`.

    Raises:
        ValueError: If ``norm`` is unknown, a network lacks a layer of the feature distillation, or stacked students
            have feature distillation.

    Shapes:
        Training batches are ``(x, teacher_logits)`` of ``(B, *input_shape)`` and ``(B, C)``; with K stacked students,
        they have a leading dimension of K. Validation batches have the same form, or classes ``(B,)`` instead of
        logits, as test batches.
    """

    def __init__(
        self,
        network: nn.Module,
        distillation: DistillationLoss,
        optimizer: OptimizerFactory,
        seed: int = 0,
        *,
        lr_scheduler: LRSchedulerName = "constant",
        norm: StudentNorm = "batch",
        dropout: bool = True,
        feature_distillation: FeatureDistillation | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(seed, optimizer, lr_scheduler, compile, cuda_graphs)
        if norm not in get_args(StudentNorm):
            raise ValueError(f"Expected `norm` to be one of {get_args(StudentNorm)}, but got {norm!r}.")
        if isinstance(network, StackedModule):
            if feature_distillation is not None:
                raise ValueError("Expected no feature distillation for stacked students. Train them one by one.")
            self.networks = network.count
        self.save_hyperparameters("seed", "norm", "dropout")
        self.norm = norm
        self.dropout = dropout
        self.network = network
        self.distillation = distillation
        self.teacher_forwards = 0
        self.feature_distillation = feature_distillation
        self._extractors: tuple[FeatureExtractor, ...] = ()
        if feature_distillation is None:
            self.step_by(network)
        else:
            self.features = FeatureLoss()
            # Teacher and student, in a tuple, so that the teacher is not registered.
            self._extractors = (
                FeatureExtractor(
                    feature_distillation.teacher,
                    feature_distillation.layers,
                    kept_channels(network, feature_distillation.teacher),
                ),
                FeatureExtractor(network, feature_distillation.layers),
            )
            self.step_by(self._extractors[1])
        self.train()

    def on_fit_start(self) -> None:
        """Register hooks on the present layers: a trainer may have replaced some (``sync_batchnorm``)."""
        if self.feature_distillation is not None:  # not registered, so that no trainer moves it
            move(self.feature_distillation.teacher, self.device)
        for extractor in self._extractors:
            extractor.open()
        super().on_fit_start()

    def on_fit_end(self) -> None:
        """Remove the hooks from student and teacher."""
        for extractor in self._extractors:
            extractor.close()
        super().on_fit_end()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen batch norm, and dropout that is off, stay in evaluation mode."""
        super().train(mode)
        network = self.network.structure if isinstance(self.network, StackedModule) else self.network
        if self.norm == "frozen":
            for layer in norm_layers(network).values():
                layer.eval()
        if not self.dropout:
            for module in network.modules():
                if isinstance(module, _DropoutNd):
                    module.eval()
        return self

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distillation loss of a batch, summed over stacked students, and the metrics of each."""
        x, teacher_logits = batch
        if self.networks > 1:
            losses, agreements = vmap(self._loss_and_agreement)(self.run(x), teacher_logits)
            return losses.sum(), {"loss": losses, "agreement": agreements}
        metrics: dict[str, Tensor] = {}
        if self.feature_distillation is None:
            loss, agreement = self._loss_and_agreement(self.run(x), teacher_logits)
        else:
            logits, outputs = self.run(x)
            with torch.no_grad():
                targets = self._extractors[0](x)[1]
            metrics["loss_features"] = self.features(outputs, targets)
            loss, agreement = self._loss_and_agreement(logits, teacher_logits)
            loss = loss + self.feature_distillation.weight * metrics["loss_features"]
        return loss, {"loss": loss, "agreement": agreement, **metrics}

    def _loss_and_agreement(self, logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distillation loss and the agreement with the teacher."""
        return self.distillation(logits, teacher_logits), accuracy(logits, teacher_logits.argmax(dim=1))

    def sample_count(self, batch: tuple[Tensor, Tensor]) -> int:
        """Return the number of samples of a batch, of each student."""
        return batch[1].shape[-2]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; count the samples for which the teacher computes features."""
        if self.feature_distillation is not None:
            self.teacher_forwards += len(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count accuracy, and the distillation loss where the batch has the teacher's logits."""
        x, target = batch
        logits = self(x)
        metrics: dict[str, Tensor] = {}
        if target.ndim == 2:
            metrics["loss"] = self.distillation(logits, target)
            target = target.argmax(dim=1)
        self.count("val", metrics | {"accuracy": accuracy(logits, target)}, len(x))
