"""Image data sets: MNIST, Fashion-MNIST, SVHN and CIFAR-10 in their published layouts."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from scipy.io import loadmat
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from kegnet_pl.data.base import RealDataModule, Split, find_file, hold_out


class ImageDataModule(RealDataModule):
    """Images resized to 32x32 and normalised by fixed statistics (PAPER section 6).

    Args:
        root: Folder with the files in the published layout, or a folder above it.
        mean: Mean of every channel, for values in [0, 1].
        std: Standard deviation of every channel, for values in [0, 1].
        validation: Number of samples of the shuffled training set to hold out; a tenth of a set that has at most
            twice as many.
        download: True to download missing files.
        args, options: See :class:`RealDataModule`.

    Raises:
        ValueError: If ``mean`` and ``std`` do not fit the channels.
    """

    def __init__(
        self,
        *args: Any,
        root: str | Path,
        mean: Sequence[float],
        std: Sequence[float],
        validation: int = 5000,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if not len(mean) == len(std) == self.input_shape[0]:
            raise ValueError(
                f"Expected one `mean` and `std` for each of {self.input_shape[0]} channels, but got {mean} and {std}."
            )
        self.root = Path(root)
        self.mean = torch.tensor(list(mean))[:, None, None]
        self.std = torch.tensor(list(std))[:, None, None]
        self.validation = validation
        self.download = download

    def _read_part(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64."""
        raise NotImplementedError

    def _locate(self, train: bool) -> Path:
        """Return the path of one part; raise a FileNotFoundError if its files are missing."""
        raise NotImplementedError

    def _fetch(self, train: bool) -> None:
        """Download one part to ``root``."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Check that both parts exist; download missing ones if ``download`` is true."""
        for train in (True, False):
            try:
                self._locate(train)
            except FileNotFoundError as missing:
                if not self.download:
                    raise
                try:
                    self._fetch(train)
                except (OSError, RuntimeError, ValueError) as error:
                    reason = " ".join(str(error).split()).rstrip(":. ")
                    raise FileNotFoundError(f"{missing} (The download failed: {reason[:200]}.)") from error

    def _prepare(self, part: tuple[Tensor, Tensor]) -> Split:
        images, labels = part
        if images.shape[-2:] != self.input_shape[-2:]:
            # The authors resized 8-bit images, too.
            size = list(self.input_shape[-2:])
            images = vision.resize(images, size, interpolation=vision.InterpolationMode.BILINEAR, antialias=True)
        return Split((images.float() / 255 - self.mean) / self.std, labels)

    def read(self) -> dict[str, Split]:
        """Read both parts and hold out the validation split."""
        full, test = self._prepare(self._read_part(train=True)), self._prepare(self._read_part(train=False))
        size = self.validation if len(full) > 2 * self.validation else len(full) // 10
        train, val = hold_out(full, size, self.seed)
        return {"train": train, "val": val, "test": test}


class _TorchvisionDataModule(ImageDataModule):
    """Images in files that torchvision reads."""

    dataset: ClassVar[Any]

    def _files(self, train: bool) -> list[str]:
        """Return the paths of the files of one part, below the folder that torchvision takes."""
        raise NotImplementedError

    def _locate(self, train: bool) -> Path:
        for file in self._files(train):
            path = find_file(
                self.root,
                [f"{folder}/{file}" for folder in (".", self.name)],
                f"the {self.name} files",
                "Download them with data.download=true.",
            )
        return path.parents[file.count("/")]

    def _fetch(self, train: bool) -> None:
        self.dataset(str(self.root), train=train, download=True)

    def _open(self, train: bool) -> Any:
        """Return torchvision's data set of one part, with attributes ``data`` and ``targets``."""
        folder = self._locate(train)
        try:
            return self.dataset(str(folder), train=train, download=False)
        except (ValueError, RuntimeError, OSError, AssertionError, struct.error) as error:
            raise ValueError(
                f"Expected complete {self.name} files below {folder}, but they cannot be read ({error}). Delete them "
                f"and run again with data.download=true."
            ) from error


class _IdxDataModule(_TorchvisionDataModule):
    """Grey 28x28 images in IDX files, the format of MNIST and Fashion-MNIST.

    A subset with a matching header is accepted.
    """

    def _files(self, train: bool) -> list[str]:
        part = f"{self.dataset.__name__}/raw/{'train' if train else 't10k'}"
        return [f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]

    def _read_part(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self._open(train)
        if self.input_shape[0] != 1:
            raise ValueError(
                f"Expected data.input_shape=[1, ...] for the grey images of {self.name!r}, but got {self.input_shape}."
            )
        if len(data.data) != len(data.targets):
            raise ValueError(
                f"Expected as many images as labels below {self._locate(train)}, but got {len(data.data)} and "
                f"{len(data.targets)}."
            )
        return data.data[:, None], data.targets.long()


class MNIST(_IdxDataModule):
    """MNIST, handwritten digits (LeCun et al., 1998); see :class:`ImageDataModule`."""

    dataset = torchvision.datasets.MNIST
    name, input_shape, classes = "mnist", (1, 32, 32), 10


class FashionMNIST(_IdxDataModule):
    """Fashion-MNIST, images of clothing (Xiao, Rasul, Vollgraf, 2017); see :class:`ImageDataModule`."""

    dataset = torchvision.datasets.FashionMNIST
    name, input_shape, classes = "fashion", (1, 32, 32), 10


class CIFAR10(_TorchvisionDataModule):
    """CIFAR-10, small photographs (Krizhevsky, 2009), in the layout for Python: ``cifar-10-batches-py``.

    The files are pickled. Before it reads a file, torchvision compares it with the publisher's checksum. So a changed
    file, or a subset, is refused. To read a subset, use :class:`~kegnet_pl.data.FilesDataModule`. The publisher
    names no licence. See :class:`ImageDataModule`.
    """

    dataset = torchvision.datasets.CIFAR10
    name, input_shape, classes = "cifar10", (3, 32, 32), 10

    def _files(self, train: bool) -> list[str]:
        batches = self.dataset.train_list if train else self.dataset.test_list
        return [f"{self.dataset.base_folder}/{name}" for name, _ in batches]

    def _read_part(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self._open(train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)


class SVHN(ImageDataModule):
    """Street View House Numbers, format 2 (Netzer et al., 2011): ``train_32x32.mat`` and ``test_32x32.mat``.

    A subset in the same layout is accepted. For non-commercial use. See :class:`ImageDataModule`.
    """

    name, input_shape, classes = "svhn", (3, 32, 32), 10
    published = 26_032

    @property
    def test_set(self) -> str:
        """Description of the test data; a subset is named as such."""
        count = len(self.splits["test"])
        return super().test_set if count == self.published else f"svhn: a subset of {count:,} test samples"

    def _locate(self, train: bool) -> Path:
        file = f"{'train' if train else 'test'}_32x32.mat"
        return find_file(self.root, [file, f"svhn/{file}"], "the SVHN file", "Download it with data.download=true.")

    def _fetch(self, train: bool) -> None:
        torchvision.datasets.SVHN(str(self.root), split="train" if train else "test", download=True)

    def _read_part(self, train: bool) -> tuple[Tensor, Tensor]:
        path = self._locate(train)
        try:
            content = loadmat(path)
            images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
        except Exception as error:  # scipy raises many kinds for damaged files
            raise ValueError(
                f"Expected a MATLAB file with `X` and `y` at {path}, but it cannot be read ({error}). Delete it and "
                f"run again with data.download=true."
            ) from error
        if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.shape[3] != len(labels):
            raise ValueError(
                f"Expected `X` of shape (32, 32, 3, N) and N labels in {path}, but got {images.shape} and "
                f"{len(labels)} labels."
            )
        if len(labels) and not (labels.min() >= 1 and labels.max() <= 10):
            raise ValueError(f"Expected labels 1 to 10 in {path}, but got {labels.min()} to {labels.max()}.")
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
        return x, torch.from_numpy(labels.astype(np.int64) % 10)  # the files label the digit 0 as 10
