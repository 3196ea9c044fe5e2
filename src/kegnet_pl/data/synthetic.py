"""Synthetic data for a student: samples of a source, labelled by the teacher."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from kegnet_pl.data.base import Split
from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.networks import FrozenModule
from kegnet_pl.networks.execution import chunk_size, prefer_channels_last
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import concatenate, work_shared
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.sources import SyntheticSource, check_finite


class SyntheticDataModule(LightningDataModule):
    """Samples of a source with the teacher's logits as labels: the only training data of a student.

    Batches are ``(x, teacher_logits)`` of shapes ``(B, *input_shape)`` and ``(B, C)``. The validation split is drawn
    from the same source with another seed.

    Args:
        source: Source of the samples.
        teacher: Labels them, in evaluation mode. It is copied and frozen.
        samples: Training samples.
        validation_samples: Validation samples; 0 for none.
        real_validation: Real validation samples instead of synthetic ones: only to select an epoch as the authors'
            release does. Validation batches are then ``(x, y)`` with classes ``(B,)``.
        batch_size: Samples of one optimiser step, over all processes.
        shuffle: True to shuffle every epoch; the paper's release keeps the order.
        resample_each_epoch: True to draw new training samples for every epoch.
        seed: Seed of the draw and of the order.
        device: Device of the student's training, which labels and stores the samples.
        costs: Costs of a stage, to which drawing and labelling are added; between steps, they are no training.
        share: True if the processes of the run, all of which call :meth:`setup`, draw and label a share each; each gets
            all samples. False: each process draws and labels all.
        as_classifier: Called with the teacher and the shape of the first samples; returns a network of logits.

    Raises:
        ValueError: If a count is out of range. :meth:`setup` raises it for samples or logits that are not finite.
    """

    def __init__(
        self,
        source: SyntheticSource,
        teacher: nn.Module,
        *,
        samples: int,
        validation_samples: int = 0,
        real_validation: Split | None = None,
        batch_size: int = 64,
        shuffle: bool = True,
        resample_each_epoch: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        costs: StageCosts | None = None,
        share: bool = False,
        as_classifier: Callable[[nn.Module, Sequence[int]], nn.Module] = lambda network, _: network,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("samples", samples, 1),
            ("validation_samples", validation_samples, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"Expected `{name}` to be at least {least}, but got {value}.")
        self.source = source
        self.teacher = FrozenModule(teacher).to(device)
        self.device = torch.device(device)
        self.samples = samples
        self.validation_samples = validation_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.resample_each_epoch = resample_each_epoch
        self.seed = seed
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}
        self.real_validation = real_validation
        self.costs = costs or StageCosts()
        self.share = share
        self.as_classifier = as_classifier

    @torch.no_grad()
    def label(self, x: Tensor) -> Tensor:
        """Return the teacher's logits ``(N, C)`` for samples ``(N, *input_shape)``, on the module's device."""
        pieces = x.split(chunk_size(x.shape[1:], self.device))
        lengths = [len(piece) for piece in pieces]
        return concatenate(lambda index: self.teacher(pieces[index].to(self.device)), lengths, self.device)

    def label_entropies(self) -> Tensor:
        """Return the entropy of the teacher's label of every training sample ``(N,)``, in nats; 0 is certain."""
        logits = self.splits["train"][1].double()
        entropies: Tensor = torch.distributions.Categorical(logits=logits).entropy()
        return entropies.cpu()

    def label_information(self) -> float:
        """Return the mutual information of sample and class in the teacher's labels, in nats; at most log(classes).

        It is the entropy of the mean label minus the mean entropy of the labels. It is large if the teacher is certain
        of each sample and the classes are balanced.
        """
        probabilities = self.splits["train"][1].double().softmax(dim=1)
        mean: Tensor = torch.distributions.Categorical(probs=probabilities.mean(dim=0)).entropy()
        return max(float(mean.cpu()) - float(self.label_entropies().mean()), 0.0)

    def unreached_classes(self) -> list[int]:
        """Return the classes that the teacher gives to no training sample."""
        logits = self.splits["train"][1]
        counts = logits.argmax(dim=1).bincount(minlength=logits.shape[1])
        return (counts == 0).nonzero().flatten().tolist()

    def subset(self, n: int) -> Tensor:
        """Return ``n`` of the training samples, or all, at equal distances: from all generators."""
        x = self.splits["train"][0]
        return x[torch.linspace(0, len(x) - 1, min(n, len(x)), device=x.device).round().long()]

    def select(self, rows: Tensor) -> "SyntheticDataModule":
        """Return data of some of the training samples alone, the same in every epoch.

        Args:
            rows: Indices of the samples ``(N,)``, on the module's device.
        """
        x, logits = self.splits["train"]
        data = copy.copy(self)
        data.splits, data.resample_each_epoch = {"train": (x[rows], logits[rows])}, False
        return data

    def setup(self, stage: str | None = None) -> None:
        """Draw and label once; every process gets the same samples and trains on its share of each batch."""
        if self.splits:
            return
        for part, count in (("train", self.samples), ("val", self.validation_samples)):
            if count:
                self.splits[part] = self._draw(count, derive_seed(self.seed, part))
        if self.real_validation is not None:
            self.splits["val"] = (self.real_validation.x.to(self.device), self.real_validation.y.to(self.device))

    def _draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        with work_shared(self.share):
            return self._draw_and_label(count, seed)

    def _draw_and_label(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        with self.costs.measure("drawing"):
            x = self.source.sample(count, seed).to(self.device)
            check_finite(self.source, x)  # waits for the GPU, so that its seconds count here
        with self.costs.measure("labelling"):
            if not self.splits:  # only once, as it calls the network
                self.teacher.network = self.as_classifier(self.teacher.network, x.shape[1:])
                prefer_channels_last(self.teacher, x.shape[1:])
            logits = self.label(x)
            check_finite(self.source, x, logits)
        candidates = self.source.candidates
        self.costs.samples_made += 0 if self.source.needs_data else count * candidates
        self.costs.teacher_forwards += count * (1 + candidates) if candidates > 1 else count
        return x, logits

    def _draw_again(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw and label an epoch's own samples; the first epoch has those of the start."""
        if epoch == 0:
            return self.splits["train"]
        start = time.perf_counter()
        drawn = self._draw(self.samples, derive_seed(self.seed, "train", epoch))
        self.costs.seconds["student_training"] -= time.perf_counter() - start
        return drawn

    def _loader(self, part: str, **options: Any) -> TensorLoader:
        return TensorLoader(
            *self.splits[part], batch_size=self.batch_size, trainer=self.trainer, seed=self.seed, **options
        )

    def train_dataloader(self) -> TensorLoader:
        """Return training batches ``(x, teacher_logits)``."""
        refresh = self._draw_again if self.resample_each_epoch else None
        return self._loader("train", shuffle=self.shuffle, train=True, refresh=refresh)

    def val_dataloader(self) -> TensorLoader | list[Any]:
        """Return validation batches ``(x, teacher_logits)``, or none without validation samples."""
        return self._loader("val") if "val" in self.splits else []


class StackedDataModule(LightningDataModule):
    """Training batches of K data modules as one: a slice for each of K students that are trained together.

    Args:
        modules: Data modules after :meth:`SyntheticDataModule.setup`, with batches of one size.

    Shapes:
        Batches ``(x, teacher_logits)`` of ``(K, B, *input_shape)`` and ``(K, B, C)``.
    """

    def __init__(self, modules: Sequence[SyntheticDataModule]) -> None:
        super().__init__()
        self.modules = modules

    def train_dataloader(self) -> list[TensorLoader]:
        """Return the loaders of all modules, which Lightning reads in step."""
        for module in self.modules:
            module.trainer = self.trainer
        return [module.train_dataloader() for module in self.modules]

    def val_dataloader(self) -> list[Any]:
        """Return no validation batches."""
        return []

    def on_after_batch_transfer(
        self, batch: Sequence[tuple[Tensor, Tensor]], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Stack the batches of the modules."""
        x, logits = (torch.stack(part) for part in zip(*batch, strict=True))
        return x, logits
