"""Synthetic data for a student: samples of a source, labelled by the teacher."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from kegnet_pl.data.base import Split
from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.networks import FrozenModule
from kegnet_pl.networks.execution import chunk_size, prefer_channels_last
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import concatenate, shares, work_shared
from kegnet_pl.runtime.progress import progress_within, report_progress
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.runtime.storage import Place, StorageLimits, allocate, layout_of
from kegnet_pl.sources import SyntheticSource, check_finite

_PART = 2**30
"""Maximum number of bytes of samples and candidates that are drawn at once. Larger sets depend on this number."""

_ROWS = 2**16
"""Number of labels that are read at once."""


def divide_draw(samples: int, input_shape: Sequence[int], candidates: int = 1, multiple: int = 1) -> list[int]:
    """Return the lengths of the parts in which a set is drawn: one part for a set of at most 1 GiB.

    If there are several parts, each has its own seed.

    Args:
        samples: Samples of the set.
        input_shape: Shape of one sample; () if it is unknown, and then there is one part.
        candidates: Candidates per sample.
        multiple: Every length is a multiple of this, if ``samples`` is.
    """
    if not input_shape or samples % multiple:  # the source raises an error
        return [samples]
    parts = -(-4 * samples * candidates * math.prod(input_shape) // _PART)
    return [len(part) * multiple for part in shares(samples // multiple, min(parts, samples // multiple) or 1)]


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
        costs: Costs of a stage. Drawing and labelling are added to them, and do not count as training.
        share: True: each process of the run draws and labels a share of the samples, and receives the other shares. All
            processes must call :meth:`setup`. False: each process draws and labels all samples.
        storage: Storage of the samples, in memory or on a disk. The samples do not depend on it.
        as_classifier: Takes the teacher and the shape of the first samples, returns a network that returns logits.

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
        storage: StorageLimits | None = None,
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
        self.storage = storage or StorageLimits()
        self._place: Place | None = None
        self.as_classifier = as_classifier

    @torch.no_grad()
    def label(self, x: Tensor) -> Tensor:
        """Return the teacher's logits ``(N, C)`` for samples ``(N, *input_shape)``, on the module's device."""
        pieces = x.split(chunk_size(x.shape[1:], self.device))
        lengths = [len(piece) for piece in pieces]
        return concatenate(lambda index: self.teacher(pieces[index].to(self.device)), lengths, self.device)

    def label_entropies(self) -> Tensor:
        """Return the entropy of the teacher's label of every training sample ``(N,)``, in nats; 0 is certain."""
        logits = self.splits["train"][1].split(_ROWS)
        return torch.cat([torch.distributions.Categorical(logits=part.double()).entropy().cpu() for part in logits])

    def label_information(self) -> float:
        """Return the mutual information of sample and class in the teacher's labels, in nats; at most log(classes).

        It is the entropy of the mean label minus the mean entropy of the labels. It is large if the teacher is certain
        of each sample and the classes are balanced.
        """
        logits = self.splits["train"][1]
        total = torch.stack([part.double().softmax(dim=1).sum(dim=0) for part in logits.split(_ROWS)]).sum(dim=0)
        mean: Tensor = torch.distributions.Categorical(probs=total / len(logits)).entropy()
        return max(float(mean.cpu()) - float(self.label_entropies().mean()), 0.0)

    def unreached_classes(self) -> list[int]:
        """Return the classes that the teacher gives to no training sample."""
        logits = self.splits["train"][1]
        counts = logits.argmax(dim=1).bincount(minlength=logits.shape[1])
        return (counts == 0).nonzero().flatten().tolist()

    def subset(self, n: int) -> Tensor:
        """Return ``n`` of the training samples, or all, at equal distances, so that all generators are included."""
        x = self.splits["train"][0]
        return x[torch.linspace(0, len(x) - 1, min(n, len(x)), device=x.device).round().long()].to(self.device)

    def select(self, rows: Tensor) -> "SyntheticDataModule":
        """Return a data module with some of the training samples, the same in every epoch.

        Args:
            rows: Indices of the samples ``(N,)``.
        """
        x, logits = (tensor[rows.to(tensor.device)].to(self.device) for tensor in self.splits["train"])
        data = copy.copy(self)
        data.splits, data.resample_each_epoch = {"train": (x, logits)}, False
        data.validation_samples, data.real_validation = 0, None
        return data

    def setup(self, stage: str | None = None) -> None:
        """Draw and label once; every process gets the same samples and trains on its share of each batch."""
        total = self.samples + self.validation_samples
        for part, start, count in (("train", 0, self.samples), ("val", self.samples, self.validation_samples)):
            if count and part not in self.splits:
                with progress_within(start / total, count / total):
                    self.splits[part] = self._draw(count, derive_seed(self.seed, part))
        if self.real_validation is not None:
            self.splits["val"] = (self.real_validation.x.to(self.device), self.real_validation.y.to(self.device))

    def _draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        source = self.source
        shape = () if source.needs_data else source.input_shape  # real samples are drawn without replacement
        lengths = divide_draw(count, shape, source.candidates, source.multiple)
        stored: tuple[Tensor, ...] = ()
        start = 0
        with work_shared(self.share):
            for index, length in enumerate(lengths):
                with progress_within(start / count, length / count):
                    part = self._draw_and_label(length, seed if len(lengths) == 1 else derive_seed(seed, "part", index))
                    report_progress(1.0)
                place = self._find_place(part)
                if length == count and place == self.device:
                    return part
                stored = stored or tuple(allocate(count, layout_of(tensor), place) for tensor in part)
                for tensor, rows in zip(stored, part, strict=True):
                    tensor[start : start + length] = rows
                start += length
        x, logits = stored
        return x, logits

    def _find_place(self, part: Sequence[Tensor]) -> Place:
        """Choose once where all samples and logits are stored; ``part`` holds some of them."""
        if self._place is None:
            row = sum(tensor[0].numel() * tensor.itemsize for tensor in part)
            # An epoch's own samples are drawn while those of the first are there.
            size = row * (self.samples * (2 if self.resample_each_epoch else 1) + self.validation_samples)
            what = f"the synthetic set of {self.samples:,} samples"
            self._place = self.storage.find(size, self.device, what)
            self.storage.report(self._place, size, self.device, what)
        return self._place

    def use(self, splits: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Use samples and logits that are already drawn, of the splits ``train`` and ``val``.

        They move to the device if its memory budget allows it.
        """
        for part, (x, logits) in splits.items():
            needs_room = self.resample_each_epoch or x.device != self.device
            moves = needs_room and self._find_place((x, logits)) == self.device
            self.splits[part] = (x.to(self.device), logits.to(self.device)) if moves else (x, logits)
            prefer_channels_last(self.teacher, x.shape[1:])

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
        self.costs.samples_made += 0 if self.source.needs_data else count * self.source.candidates
        self.costs.teacher_forwards += round(count * (1 + self.source.teacher_passes))
        return x, logits

    def _draw_again(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw and label new samples for an epoch; the first epoch uses the samples of :meth:`setup`."""
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
        """Return the loaders of all modules; Lightning reads one batch of each per step."""
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
