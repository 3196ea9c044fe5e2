"""Data sets of users, from files of tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from kegnet_pl.data.base import RealDataModule, Split
from kegnet_pl.networks import ValueRange

_PARTS = ("train", "val", "test")

_LEAST_SHARE = 0.02
"""Minimum share of the value range that the pixels of a file must span."""


class FilesDataModule(RealDataModule):
    """Samples ``x`` and classes ``y`` from one file per split: ``.npz``, ``.safetensors`` or ``.pt``.

    A file holds ``x (N, *input_shape)``, floating-point and normalised like the teacher's training data, and
    ``y (N,)``, integers from 0. With ``mean`` and ``std``, ``x`` may also be 8-bit images ``(N, C, H, W)``, ``(N, H, W,
    C)`` or ``(N, H, W)``; they are normalised. ``numpy.savez(FILE, x=..., y=...)`` writes a file, and so does
    ``torch.save({"x": ..., "y": ...}, FILE)``. For a trained teacher, the test file is enough.

    Args:
        name, input_shape, classes, options: See :class:`RealDataModule`.
        train: File of the training split of a teacher, None if there is none.
        val: File of the validation split.
        test: File of the test split, to measure accuracy.
        mean: Mean of the pixels in [0, 1] with which the teacher's inputs are normalised. Procedural sources of images
            need it. Without ``value_range``, only 8-bit images are normalised with it: other samples are already.
        std: Standard deviation of the pixels.
        value_range: Values of a black and of a white pixel in ``x``, for networks that take pixels. The samples of the
            splits are then standardised; :class:`ValueRange` converts them back for the network.
    """

    may_be_missing = False  # the user has named the files

    def __init__(
        self,
        name: str,
        input_shape: Sequence[int],
        classes: int,
        *,
        train: str | Path | None = None,
        val: str | Path | None = None,
        test: str | Path | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        value_range: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, input_shape, classes, **options)
        self.mean, self.std = mean, std
        is_image = len(self.input_shape) == 3
        self._eight_bits = (
            ValueRange.of((0, 255), mean, std) if is_image and mean is not None and std is not None else None
        )
        self.value_range = None if value_range is None else ValueRange.of(value_range, mean, std)
        paths = dict(zip(_PARTS, (train, val, test), strict=True))
        self.files = {part: Path(path) for part, path in paths.items() if path is not None}
        if not self.files:
            raise ValueError("Expected a file of data, but got none: set data.test=FILE (or data.train, data.val).")

    def prepare_data(self) -> None:
        """Check that all files exist."""
        for part, path in self.files.items():
            if not path.is_file():
                raise FileNotFoundError(
                    f"Expected a file at {path}, but there is none. Check data.{part}; relative paths start in the "
                    f"working directory ({Path.cwd()})."
                )

    def read(self) -> dict[str, Split]:
        """Read the given files."""
        return {part: self._read(path) for part, path in self.files.items()}

    def _read(self, path: Path) -> Split:
        x, y = _read_tensors(path)
        values = self.value_range
        if x.dtype == torch.uint8:
            values, x = values or self._eight_bits, _channels_first(x, self.input_shape)
        if values is None and not x.is_floating_point():
            images = len(self.input_shape) == 3
            raise ValueError(
                f"Expected floating-point samples in {path}, normalised like the teacher's training data"
                f"{', or 8-bit images (torch.uint8) with data.mean and data.std' if images else ''}, but got {x.dtype}."
                f"{' Set data.mean and data.std, or normalise the samples.' if images else ' Normalise the samples.'}"
            )
        if values is not None:
            _check_pixels(x, values, path)
        return Split(x.float() if values is None else values.standardise(x.float()), y)


def _channels_first(x: Tensor, input_shape: Sequence[int]) -> Tensor:
    """Return images ``(N, C, H, W)`` for such images, and for ``(N, H, W, C)`` and ``(N, H, W)``; others unchanged."""
    shape = tuple(x.shape[1:])
    channels, *size = input_shape
    if shape == tuple(input_shape) or len(input_shape) != 3:
        return x
    if shape == (*size, channels):
        return x.movedim(-1, 1).contiguous()
    return x.unsqueeze(1) if channels == 1 and shape == tuple(size) else x


def _check_pixels(x: Tensor, values: ValueRange, path: Path) -> None:
    """Raise a ValueError if pixels are outside of their range, or in a small part of it."""
    if not x.numel():
        return
    low, high = float(x.min()), float(x.max())
    given = f"pixels from {values.low:g} to {values.high:g} in {path}"
    given += " (8-bit images)" if x.dtype == torch.uint8 else ", as data.value_range says"
    if low < values.low or high > values.high:
        raise ValueError(
            f"Expected {given}, but got {low:.4g} to {high:.4g}. Correct data.value_range. For standardised samples, "
            f"set it to null."
        )
    if high - low < _LEAST_SHARE * (values.high - values.low):
        raise ValueError(
            f"Expected {given}, but got only values from {low:.4g} to {high:.4g}. Correct the file"
            f"{'' if x.dtype == torch.uint8 else ', or data.value_range'}."
        )


def _read_tensors(path: Path) -> tuple[Tensor, Tensor]:
    """Return samples and classes of a file."""
    try:
        content = _tensors(path)
    except (DataTypeError, MemoryError):
        raise
    except Exception as error:  # damaged files raise many kinds
        raise ValueError(
            f"Expected tensors x and y in {path}, but it cannot be read ({type(error).__name__}). Write it with "
            f"numpy.savez(FILE, x=..., y=...), safetensors, or torch.save({{'x': ..., 'y': ...}}, FILE)."
        ) from error
    missing = [name for name in ("x", "y") if not isinstance(content.get(name), Tensor)]
    if missing:
        raise ValueError(
            f"Expected tensors x (samples) and y (classes) in {path}, but got {', '.join(map(str, content)) or 'none'}."
        )
    x, y = content["x"], content["y"]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        way = "y.argmax(axis=1)" if y.ndim == 2 else "y.astype('int64')"
        raise ValueError(
            f"Expected classes (N,), integers from 0, in {path}, but got {y.dtype} {tuple(y.shape)}. Write the file "
            f"again with y={way}."
        )
    return x, y.long()


class DataTypeError(ValueError):
    """An array in a file does not hold numbers."""


def _to_tensor(name: str, array: np.ndarray, path: Path) -> Tensor:
    """Return an array of numbers as a tensor; other arrays than x and y may have any type, and become empty.

    Raises:
        DataTypeError: If x or y does not hold numbers.
    """
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if name not in ("x", "y"):
        return torch.empty(0)
    way = " Write numbers: names, y = numpy.unique(y, return_inverse=True)." if name == "y" else ""
    raise DataTypeError(f"Expected numbers as {name} in {path}, but got {array.dtype.name} ({array.dtype.str}).{way}")


def _tensors(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _to_tensor(name, arrays[name], path) for name in arrays.files}
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content)
