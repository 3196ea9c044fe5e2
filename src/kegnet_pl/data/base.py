"""The base class of real data sets, their splits, and functions to read and split them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.runtime.errors import override
from kegnet_pl.runtime.seeds import stream


@dataclass(frozen=True)
class Split:
    """One part of a data set, normalised for a network.

    Attributes:
        x: Samples ``(N, *input_shape)``, float32.
        y: Classes ``(N,)``, integers from 0, usually int64.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y)):
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"Expected `{name}` to be a tensor, but got {type(value).__name__}. Use torch.as_tensor."
                )
        if self.y.ndim != 1 or self.y.is_floating_point() or self.y.dtype == torch.bool:
            raise ValueError(
                f"Expected `y` to be classes (N,), integers from 0, but got {self.y.dtype} {tuple(self.y.shape)}."
            )
        if len(self.x) != len(self.y):
            raise ValueError(f"Expected as many samples as labels, but got {len(self.x)} and {len(self.y)}.")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> "Split":
        return Split(self.x[rows], self.y[rows])

    @cached_property
    def digest(self) -> str:
        """Hash of samples and classes, which identifies the data of a result."""
        sha = hashlib.sha256(str(tuple(self.x.shape)).encode())
        for tensor in (self.x, self.y):
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()[:16]


class RealDataModule(LightningDataModule):
    """Real data in memory, to train a teacher and to report accuracy. Only a ceiling student is trained on it.

    Subclasses check their files in :meth:`prepare_data` and read them in :meth:`read`. Those for one data set define
    name, shape and classes as class attributes, which are the defaults of the arguments.

    Args:
        name: Name of the data set in tables.
        input_shape: Shape of one sample, such as ``(C, H, W)`` or ``(features,)``.
        classes: Number of classes, at least 2.
        batch_size: Samples per optimiser step, over all processes.
        seed: Seed of the split and of the order.
        flip: True to flip training images horizontally at random.

    Raises:
        ValueError: If ``classes`` or ``batch_size`` is too small.

    Attributes:
        may_be_missing: True if a run that needs no real data continues without the files, and measures no accuracy.
    """

    may_be_missing: ClassVar[bool] = True
    name: str
    input_shape: tuple[int, ...]
    classes: int

    def __init__(
        self,
        name: str | None = None,
        input_shape: Sequence[int] | None = None,
        classes: int | None = None,
        *,
        batch_size: int = 64,
        seed: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.name = self.name if name is None else name
        self.input_shape = self.input_shape if input_shape is None else tuple(input_shape)
        self.classes = self.classes if classes is None else classes
        if self.classes < 2:
            raise ValueError(f"Expected `classes` of at least 2 for data set {self.name!r}, but got {self.classes}.")
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` of at least 1, but got {batch_size}.")
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.splits: dict[str, Split] = {}

    def prepare_data(self) -> None:
        """Check that the files exist, and download missing ones if that is allowed; by default, do nothing.

        Raises:
            FileNotFoundError: If files are missing; the message names them, the searched paths and a way to get them.
        """

    def read(self) -> dict[str, Split]:
        """Read and normalise the splits ``train``, ``val`` and ``test``, or those that exist.

        Raises:
            FileNotFoundError: If files are missing (see :meth:`prepare_data`).
            ValueError: If files are damaged or have another format.
        """
        raise NotImplementedError

    def digest(self, *parts: str) -> list[str]:
        """Return hashes of splits; read the data if necessary."""
        return [self.part(part).digest for part in parts]

    def part(self, name: str) -> Split:
        """Return a split; read the data if necessary.

        Raises:
            ValueError: If the data has no such split.
        """
        self.setup()
        if name not in self.splits:
            raise ValueError(
                f"Expected a split {name!r} of the data set {self.name!r}, but got {', '.join(self.splits)}. "
                f"`train` trains a teacher (or set teacher.weights=FILE), `val` selects an epoch (teacher.patience, "
                f"student.selection=real), and `test` measures accuracy."
            )
        return self.splits[name]

    @property
    def test_set(self) -> str:
        """Description of the test data for tables."""
        return f"{self.name}: {len(self.splits['test']):,} test samples"

    def setup(self, stage: str | None = None) -> None:
        """Read the splits once and check them against the declared shape and classes."""
        if self.splits:
            return
        splits = self.read()
        for part, split in splits.items():
            if len(split) == 0:
                raise ValueError(f"Expected samples in the {part} split of {self.name!r}, but got none.")
            if tuple(split.x.shape[1:]) != self.input_shape:
                shape = tuple(split.x.shape[1:])
                remedy = f"Set {override('data.input_shape', shape)}."
                if len(shape) > 1 and (*shape[-1:], *shape[:-1]) == self.input_shape:
                    remedy = "Channels come first: write the file again with numpy.moveaxis(x, -1, 1)."
                elif len(shape) == 2:
                    remedy = (
                        f"For images of one channel, write the file again with x[:, None], of shape {(1, *shape)}. For "
                        f"signals of {shape[0]} channels, set {override('data.input_shape', shape)}."
                    )
                raise ValueError(
                    f"Expected samples of shape {self.input_shape} in data set {self.name!r}, but got {shape}. {remedy}"
                )
            if split.x.dtype != torch.float32 or not bool(split.x.isfinite().all()):
                raise ValueError(
                    f"Expected finite samples in float32 in the {part} split of {self.name!r}, but got "
                    f"{split.x.dtype if split.x.dtype != torch.float32 else 'NaN or infinite values'}."
                )
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"Expected classes 0 to {self.classes - 1} in data set {self.name!r}, but got {low} to {high}. "
                    + (
                        "They seem to start from 1: write the files again with y - 1."
                        if (low, high) == (1, self.classes)
                        else f"Set data.classes={high + 1}, or number the classes from 0."
                    )
                )
        self.splits = splits

    def _loader(self, part: str, **options: Any) -> TensorLoader:
        split = self.part(part)
        return TensorLoader(
            split.x, split.y, batch_size=self.batch_size, trainer=self.trainer, seed=self.seed, **options
        )

    def train_dataloader(self) -> TensorLoader:
        """Return batches ``(x, y)`` of the training split, shuffled."""
        return self._loader("train", shuffle=True, train=True)

    def val_dataloader(self) -> TensorLoader:
        """Return batches ``(x, y)`` of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> TensorLoader:
        """Return batches ``(x, y)`` of the test split."""
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Flip half of the training images, on the device."""
        if not (self.flip and self.trainer is not None and self.trainer.training):
            return batch
        x, y = batch
        rng = stream(self.seed, "flip", self.trainer.global_rank, self.trainer.global_step)
        flipped = torch.rand(len(x), generator=rng).to(x.device) < 0.5
        return torch.where(flipped[:, None, None, None], x.flip(-1), x), y


def hold_out(split: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Shuffle a split, and return all but its last ``size`` samples, and these last ones.

    Raises:
        ValueError: If one of the two would be empty.
    """
    if not 0 < size < len(split):
        raise ValueError(f"Expected to hold out 1 to {len(split) - 1} of {len(split)} samples, but got {size}.")
    order = torch.randperm(len(split), generator=stream(seed, "split"))
    return split[order[:-size]], split[order[-size:]]


def stratified_folds(y: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Split the indices of labels ``(N,)`` into parts with the given shares, which hold for each class.

    The shares sum to 1. Indices of a part are in random order.
    """
    rng = stream(seed, "split")
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=rng)]
        ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(rows[start:end])
    return [torch.cat(part)[torch.randperm(sum(map(len, part)), generator=rng)] for part in parts]


def find_file(root: str | Path, names: Sequence[str], description: str, advice: str) -> Path:
    """Return the first of several paths below a folder that exists; the other arguments are for the message.

    Raises:
        FileNotFoundError: If none exists.
    """
    for name in names:
        path = Path(root) / name
        if path.exists():
            return path
    paths = ", ".join(str(Path(root) / name) for name in names)
    raise FileNotFoundError(
        f"Expected {description} at one of: {paths}. {advice} Then set data.root=FOLDER (or the environment variable "
        f"KEGNET_DATA_DIR), or use a trained teacher with teacher.weights=FILE."
    )
