"""Tiny data files in the published layouts, and a real data set in memory."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from scipy.io import savemat

from kegnet_pl.data import RealDataModule, Split


def idx_bytes(values: np.ndarray) -> bytes:
    """Return an IDX file of unsigned bytes, as MNIST's are."""
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def shade(index: int) -> int:
    """Return the grey value that image ``index`` of :func:`write_idx` is filled with."""
    return 5 * index


def write_idx(root: Path, kind: str, train: int = 30, test: int = 10) -> Path:
    """Write ``kind/raw`` below a folder: image i is of one grey value, its label is ``i % 10``."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.stack([np.full((28, 28), shade(index)) for index in range(count)])
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count) % 10))
    return raw


def svhn_images(count: int) -> np.ndarray:
    """Return images ``(32, 32, 3, N)`` whose every pixel tells its row, column, channel and number."""
    height, width, channel, number = np.meshgrid(*map(np.arange, (32, 32, 3, count)), indexing="ij")
    return ((7 * height + 3 * width + 50 * channel + 11 * number) % 256).astype(np.uint8)


def write_svhn(folder: Path, train: int = 30, test: int = 10) -> None:
    """Write both files; labels run 1, 2, ..., 10, 1, ... ."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": svhn_images(count), "y": labels})


def cifar10_images(count: int) -> np.ndarray:
    """Return images ``(N, 3, 32, 32)`` whose every pixel tells its row, column, channel and number."""
    return np.ascontiguousarray(svhn_images(count).transpose(3, 2, 0, 1))


def write_cifar10(folder: Path, train: int = 30, test: int = 10) -> list[tuple[str, str]]:
    """Write ``cifar-10-batches-py`` below a folder: label i of the training and of the test images is ``i % 10``.

    Returns:
        Name and checksum of every file; the batches of training, the test batch, the names of classes.
    """
    folder = folder / torchvision.datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    contents: dict[str, Any] = {}
    names = [f"data_batch_{number}" for number in range(1, 6)]
    for part, count in ((names, train), (["test_batch"], test)):
        rows = cifar10_images(count).reshape(count, -1)
        for name, numbers in zip(part, np.array_split(np.arange(count), len(part)), strict=True):
            contents[name] = {"data": rows[numbers], "labels": (numbers % 10).tolist()}
    contents["batches.meta"] = {"label_names": [str(label) for label in range(10)]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    return [(name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name in contents]


class Memory(RealDataModule):
    """Real data that the test makes up: 40 training, 10 validation and 12 test samples."""

    def __init__(self, input_shape: tuple[int, ...] = (6,), classes: int = 3, **options: Any) -> None:
        super().__init__("memory", input_shape, classes, **options)

    def prepare_data(self) -> None:
        pass

    def read(self) -> dict[str, Split]:
        chance = torch.Generator().manual_seed(7)
        return {
            part: Split(
                torch.randn(count, *self.input_shape, generator=chance),
                torch.arange(count) % self.classes,
            )
            for part, count in (("train", 40), ("val", 10), ("test", 12))
        }
