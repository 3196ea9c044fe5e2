"""Data of the user's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kegnet_pl.data import FilesDataModule

SHAPE, CLASSES = (2, 5, 4), 3


def _tensors(count: int = 6) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(count)
    return torch.randn(count, *SHAPE, generator=chance), torch.arange(count) % CLASSES


def _write(path: Path, x: Any, y: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, x=np.asarray(x), y=np.asarray(y))
    elif path.suffix == ".safetensors":
        save_file({"x": x, "y": y}, path)
    else:
        torch.save({"x": x, "y": y}, path)
    return path


def _data(**files: Any) -> FilesDataModule:
    data = FilesDataModule("mine", SHAPE, CLASSES, **files)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_reads_what_was_written(tmp_path: Path, suffix: str) -> None:
    x, y = _tensors()
    data = _data(test=_write(tmp_path / f"test.{suffix}", x, y))
    assert set(data.splits) == {"test"}
    assert torch.equal(data.part("test").x, x)
    assert torch.equal(data.part("test").y, y)
    assert data.test_set == "mine: 6 test samples"


def test_every_split_has_a_file(tmp_path: Path) -> None:
    files = {part: _write(tmp_path / f"{part}.npz", *_tensors(n)) for n, part in enumerate(("train", "val", "test"), 3)}
    assert {part: len(split) for part, split in _data(**files).splits.items()} == {"train": 3, "val": 4, "test": 5}


def test_wider_numbers_are_taken(tmp_path: Path) -> None:
    x, y = _tensors()
    split = _data(test=_write(tmp_path / "test.npz", x.double(), y.int())).part("test")
    assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(split.x, x)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    data = _data(test=_write(tmp_path / "test.npz", *_tensors()))
    with pytest.raises(ValueError, match=r"a split 'val' of the data set 'mine', but got test\..*selection=real"):
        data.part("val")


def test_no_file_at_all() -> None:
    with pytest.raises(ValueError, match=r"set data\.test=FILE"):
        _data()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a file at .*none\.npz, but there is none\. Check data\.val"):
        _data(val=tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x.byte(), y),
            r"samples .*, or 8-bit images .* but got torch.uint8\. Set data.mean",
        ),
        (lambda x, y: (x.int(), y), "floating-point samples .* but got torch.int32"),
        (lambda x, y: (x, y.float()), r"classes \(N,\), integers from 0, .* torch.float32 \(6,\)"),
        (lambda x, y: (x, torch.eye(6).long()), r"classes \(N,\), .* torch.int64 \(6, 6\)"),
        (lambda x, y: (x, y.float()), r"again with y=y\.astype\('int64'\)"),
        (lambda x, y: (x, torch.eye(6).long()), r"again with y=y\.argmax\(axis=1\)"),
        (lambda x, y: (x, y + 1), "seem to start from 1: write the files again with y - 1"),
        (lambda x, y: (x, y + 5), r"0 to 2 in data set 'mine', but got 5 to 7\. Set data\.classes=8"),
        (lambda x, y: (x * float("nan"), y), "finite samples in float32 in the test split"),
        (lambda x, y: (x, y + 1), "classes 0 to 2 in data set 'mine', but got 1 to 3"),
        (lambda x, y: (x.movedim(1, -1), y), r"got \(5, 4, 2\)\. Channels come first: .*moveaxis\(x, -1, 1\)"),
        (
            lambda x, y: (x[:, 0], y),
            r"got \(5, 4\)\. For images of one channel, .* x\[:, None\], of shape \(1, 5, 4\)",
        ),
        (lambda x, y: (x[:, 0, 0, 0], y), r"samples of shape \(2, 5, 4\) in data set 'mine', but got \(\)"),
        (lambda x, y: (x[:, :1], y), r"samples of shape \(2, 5, 4\) in data set 'mine', but got \(1, 5, 4\)"),
        (lambda x, y: (x[:0], y[:0]), "samples in the test split of 'mine', but got none"),
        (lambda x, y: (x, y[:4]), "as many samples as labels"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _data(test=_write(tmp_path / "test.npz", *change(*_tensors())))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("1,2,3")
    with pytest.raises(ValueError, match=r"tensors x and y in .*text\.npz, but it cannot be read"):
        _data(test=tmp_path / "text.npz")
    np.savez(tmp_path / "images.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"x \(samples\) and y \(classes\) in .*images\.npz, but got images"):
        _data(test=tmp_path / "images.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(ValueError, match="cannot be read"):
        _data(test=tmp_path / "objects.npz")


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_images_of_8_bits_are_normalised(tmp_path: Path, layout: str) -> None:
    images, y = torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8), torch.arange(6) % CLASSES
    written = images if layout == "channels first" else images.movedim(1, -1).contiguous()
    found = _data(test=_write(tmp_path / "test.npz", written, y), mean=[0.2, 0.5], std=[0.1, 0.2]).part("test")
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in ([0.2, 0.5], [0.1, 0.2]))
    torch.testing.assert_close(found.x, (images.float() / 255 - mean) / std)
    with pytest.raises(ValueError, match=r"0 to 255 in .* \(8-bit images\), but got only values from 0 to 1"):
        _data(test=_write(tmp_path / "small.npz", images // 128, y), mean=[0.2, 0.5], std=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"samples of shape \(2, 5, 4\) in data set 'mine', but got \(5, 4\)"):
        _data(test=_write(tmp_path / "grey.npz", images[:, 0], y), mean=0.2, std=0.1)


def test_grey_images_of_8_bits_need_no_channel(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (6, 5, 4), dtype=torch.uint8)
    path = _write(tmp_path / "test.npz", images, torch.arange(6) % CLASSES)
    data = FilesDataModule("mine", (1, 5, 4), CLASSES, test=path, mean=[0.5], std=[0.25])
    data.setup()
    torch.testing.assert_close(data.part("test").x, ((images.float() / 255 - 0.5) / 0.25)[:, None])


def test_pixels_are_standardised_and_checked(tmp_path: Path) -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).repeat(3, 2, 5, 4)[..., :4]
    for values in (pixels, pixels.float()):
        path = _write(tmp_path / "test.npz", values, torch.arange(3))
        split = _data(test=path, value_range=[0, 255], mean=[0.2, 0.5], std=[0.1, 0.2]).part("test")
        expected = (values.float() / 255 - torch.tensor([0.2, 0.5]).view(2, 1, 1)) / torch.tensor([0.1, 0.2]).view(
            2, 1, 1
        )
        torch.testing.assert_close(split.x, expected)
    with pytest.raises(ValueError, match=r"pixels from 0 to 255 in .* but got only values from 0 to 1"):
        _data(test=_write(tmp_path / "small.npz", pixels.float() / 255, torch.arange(3)), value_range=[0, 255])
    with pytest.raises(ValueError, match=r"pixels from 0 to 1 in .*, as data\.value_range says, but got 0 to 255"):
        _data(test=path, value_range=[0, 1])


def test_columns_and_other_byte_orders_are_read_and_names_are_not(tmp_path: Path) -> None:
    x, y = (value.numpy() for value in _tensors())
    np.savez(tmp_path / "big.npz", x=x.astype(">f8"), y=y[:, None].astype(">i4"), names=np.array(["a", "b"]))
    split = _data(test=tmp_path / "big.npz").part("test")
    assert torch.equal(split.x, torch.from_numpy(x)) and torch.equal(split.y, torch.from_numpy(y))
    np.savez(tmp_path / "names.npz", x=x, y=np.array(["cat", "dog", "eel"] * 2))
    with pytest.raises(ValueError, match=r"numbers as y in .*names\.npz, but got str.*numpy\.unique"):
        _data(test=tmp_path / "names.npz")
