"""What all real data sets have in common."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.runtime.seeds import stream


@dataclass(frozen=True)
class Split:
    """One part of a data set, ready for a network.

    Attributes:
        x: Samples ``(N, *input_shape)``, normalised, float32.
        y: Classes ``(N,)``, whole numbers from 0, int64 as a rule.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y)):
            if not isinstance(value, Tensor):
                raise ValueError(f"Expected `{name}` to be a tensor, but got {type(value).__name__}: torch.as_tensor.")
        if self.y.ndim != 1 or self.y.is_floating_point() or self.y.dtype == torch.bool:
            raise ValueError(
                f"Expected `y` to be classes (N,), whole numbers from 0, but got {self.y.dtype} {tuple(self.y.shape)}."
            )
        if len(self.x) != len(self.y):
            raise ValueError(f"Expected as many samples as labels, but got {len(self.x)} and {len(self.y)}.")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> "Split":
        return Split(self.x[rows], self.y[rows])

    def digest(self) -> str:
        """Return a hash of samples and classes, so that a result says which data it comes from."""
        found = hashlib.sha256(str(tuple(self.x.shape)).encode())
        for tensor in (self.x, self.y):
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()[:16]


class RealDataModule(LightningDataModule):
    """Real data, in memory: to train a teacher and to report accuracy, never to train a student.

    Subclasses say how to read their files (:meth:`read`) and see that those are there (:meth:`prepare_data`).

    Args:
        name: Name of the data set in tables.
        input_shape: Shape of one sample, ``(C, H, W)`` or ``(features,)``.
        classes: Number of classes, at least 2.
        batch_size: Samples of one optimiser step, over all processes.
        seed: Seed of the split and of the order.
        flip: Whether to mirror training images at random (left and right).

    Raises:
        ValueError: If ``classes`` or ``batch_size`` is too small.

    Attributes:
        may_be_missing: Whether a run that needs no real data goes on without its files, and measures nothing.
    """

    may_be_missing: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        input_shape: Sequence[int],
        classes: int,
        *,
        batch_size: int = 64,
        seed: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"Expected `classes` of at least 2 for data set {name!r}, but got {classes}.")
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` of at least 1, but got {batch_size}.")
        self.name = name
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.splits: dict[str, Split] = {}
        self._digests: dict[str, str] = {}

    def prepare_data(self) -> None:
        """See that the files are there; download what may be downloaded.

        Raises:
            FileNotFoundError: If files are missing; the message says which, where they were looked for, and how to
                get them.
        """
        raise NotImplementedError

    def read(self) -> dict[str, Split]:
        """Read and normalise the splits ``train``, ``val`` and ``test``, or those of them that there are.

        Raises:
            FileNotFoundError: If files are missing (see :meth:`prepare_data`).
            ValueError: If files are damaged or of another kind.
        """
        raise NotImplementedError

    def digest(self, *parts: str) -> list[str]:
        """Return hashes of splits; they are read if they have not been."""
        for part in parts:
            if part not in self._digests:
                self._digests[part] = self.part(part).digest()
        return [self._digests[part] for part in parts]

    def part(self, name: str) -> Split:
        """Return a split; they are read if they have not been.

        Raises:
            ValueError: If the data has no such split.
        """
        self.setup()
        if name not in self.splits:
            raise ValueError(
                f"Expected a split {name!r} of the data set {self.name!r}, but it has {', '.join(self.splits)}. "
                f"`train` trains a teacher (or set teacher.weights=FILE), `val` selects (teacher.patience, "
                f"student.selection=real), `test` is what accuracy is reported on."
            )
        return self.splits[name]

    @property
    def test_set(self) -> str:
        """The test data in words, for tables."""
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
                raise ValueError(
                    f"Expected samples of shape {self.input_shape} in data set {self.name!r}, but got "
                    f"{tuple(split.x.shape[1:])}. Set data.input_shape to what the files hold."
                )
            if split.x.dtype != torch.float32 or not bool(split.x.isfinite().all()):
                raise ValueError(
                    f"Expected finite samples in float32 in the {part} split of {self.name!r}, but got "
                    f"{split.x.dtype if split.x.dtype != torch.float32 else 'NaN or infinite values'}."
                )
            if int(split.y.min()) < 0 or int(split.y.max()) >= self.classes:
                raise ValueError(
                    f"Expected classes 0 to {self.classes - 1} in data set {self.name!r}, but got "
                    f"{int(split.y.min())} to {int(split.y.max())}."
                )
        self.splits = splits

    def _loader(self, part: str, **options: Any) -> TensorLoader:
        split = self.part(part)
        return TensorLoader(
            split.x, split.y, batch_size=self.batch_size, trainer=self.trainer, seed=self.seed, **options
        )

    def train_dataloader(self) -> TensorLoader:
        """Batches ``(x, y)`` of the training split, shuffled."""
        return self._loader("train", shuffle=True, train=True)

    def val_dataloader(self) -> TensorLoader:
        """Batches ``(x, y)`` of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> TensorLoader:
        """Batches ``(x, y)`` of the test split."""
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Mirror half of the training images, on the device."""
        if not (self.flip and self.trainer is not None and self.trainer.training):
            return batch
        x, y = batch
        chance = stream(self.seed, "flip", self.trainer.global_rank, self.trainer.global_step)
        mirrored = torch.rand(len(x), generator=chance).to(x.device) < 0.5
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x), y


def hold_out(split: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Shuffle a split and keep its last samples apart.

    Args:
        split: The whole.
        size: Samples to keep apart.
        seed: Seed of the order.

    Returns:
        The rest, and the held-out samples.

    Raises:
        ValueError: If nothing would be left.
    """
    if not 0 < size < len(split):
        raise ValueError(f"Expected to hold out 1 to {len(split) - 1} of {len(split)} samples, but got {size}.")
    order = torch.randperm(len(split), generator=stream(seed, "split"))
    return split[order[:-size]], split[order[-size:]]


def stratified_folds(y: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Split the indices of labels into parts with the given shares, each class on its own.

    Args:
        y: Labels ``(N,)``.
        shares: One share a part; they sum to 1.
        seed: Seed of the order.

    Returns:
        Indices of every part, in random order.
    """
    chance = stream(seed, "split")
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=chance)]
        ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(rows[start:end])
    return [torch.cat(part)[torch.randperm(sum(map(len, part)), generator=chance)] for part in parts]


def find_file(root: str | Path, names: Sequence[str], what: str, how: str) -> Path:
    """Return the first of some paths below a folder that exists.

    Args:
        root: The user's data folder.
        names: Paths to try, relative to it.
        what: What is looked for, for the message.
        how: How to get it, for the message.

    Raises:
        FileNotFoundError: If there is none.
    """
    for name in names:
        path = Path(root) / name
        if path.exists():
            return path
    places = ", ".join(str(Path(root) / name) for name in names)
    raise FileNotFoundError(
        f"Expected {what} at one of: {places}. {how} Then set data.root=FOLDER (or the environment variable "
        f"KEGNET_DATA_DIR), or use a trained teacher with teacher.weights=FILE."
    )
