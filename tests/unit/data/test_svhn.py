"""SVHN from tiny MATLAB files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from kegnet_pl.data import SVHN
from tests.unit.data.files import svhn_images, write_svhn

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def _open(root: Path, **options: Any) -> SVHN:
    return SVHN(root=root, **({"mean": MEAN, "std": STD} | options))


@pytest.mark.parametrize("folder", [".", "svhn"])
def test_read_from_all_layouts(tmp_path: Path, folder: str) -> None:
    write_svhn(tmp_path / folder)
    data = _open(tmp_path)
    data.prepare_data()
    data.setup()
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 27, "val": 3, "test": 10}
    test = data.splits["test"]
    assert (test.x.dtype, test.y.dtype) == (torch.float32, torch.int64)
    raw = svhn_images(10)
    assert test.x.shape == (10, 3, 32, 32)
    for number, channel, row, column in ((0, 0, 0, 0), (3, 1, 5, 9), (9, 2, 31, 30), (4, 0, 30, 1)):
        expected = (raw[row, column, channel, number] / 255 - MEAN[channel]) / STD[channel]
        assert float(test.x[number, channel, row, column]) == pytest.approx(expected, abs=1e-5)


def test_label_ten_is_the_digit_zero(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    data = _open(tmp_path)
    data.setup()
    assert data.splits["test"].y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    data = _open(tmp_path)
    data.setup()
    raw = torch.from_numpy(svhn_images(30)[0, 0, 0]).float()
    for part in ("train", "val"):
        split = data.splits[part]
        grey = (split.x[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
        numbers = (grey[:, None] - raw[None]).abs().argmin(dim=1)
        assert torch.equal(split.y, (numbers + 1) % 10)


@pytest.mark.parametrize("count", [10, 26_032])
def test_a_subset_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(SVHN, "published", 10)
    write_svhn(tmp_path, test=10 if count == 10 else 12)
    data = _open(tmp_path)
    data.setup()
    assert data.test_set == ("svhn: 10 test samples" if count == 10 else "svhn: a subset of 12 test samples")


def test_published_number_of_test_images() -> None:
    assert SVHN.published == 26_032


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"SVHN file at one of.*train_32x32\.mat.*svhn/train_32x32\.mat"):
        _open(tmp_path / "nowhere").prepare_data()


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_file(tmp_path: Path, part: str) -> None:
    write_svhn(tmp_path)
    (tmp_path / f"{part}_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{part}_32x32\.mat"):
        _open(tmp_path).prepare_data()


@pytest.mark.parametrize(
    "content",
    [
        {"X": svhn_images(10).transpose(3, 0, 1, 2), "y": np.ones((10, 1))},
        {"X": svhn_images(10)[:28, :28], "y": np.ones((10, 1))},
        {"X": svhn_images(10)[..., :1, :], "y": np.ones((10, 1))},
        {"X": svhn_images(10), "y": np.ones((9, 1))},
    ],
)
def test_wrong_shape(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "test_32x32.mat", content)
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3, N\) and N labels.*test_32x32\.mat"):
        _open(tmp_path).setup()


@pytest.mark.parametrize("label", [11, 21, 255])
def test_label_that_is_no_digit(tmp_path: Path, label: int) -> None:
    write_svhn(tmp_path)
    labels = np.arange(1, 11)
    labels[4] = label
    savemat(tmp_path / "test_32x32.mat", {"X": svhn_images(10), "y": labels[:, None]})
    with pytest.raises(ValueError, match=str(label)):
        _open(tmp_path).setup()


@pytest.mark.parametrize("content", [{"X": svhn_images(10)}, {"y": np.ones((10, 1))}])
def test_missing_variable(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(ValueError, match=r"`X` and `y`.*train_32x32\.mat"):
        _open(tmp_path).setup()


@pytest.mark.parametrize("size", [0, 60, 130, 5000, -10])
def test_truncated_file(tmp_path: Path, size: int) -> None:
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"MATLAB file.*test_32x32\.mat.*cannot be read.*data\.download=true"):
        _open(tmp_path).setup()


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"classes": 9}, "classes 0 to 8"),
        ({"input_shape": (1, 32, 32), "mean": [0.1], "std": [0.4]}, r"shape \(1, 32, 32\)"),
    ],
)
def test_another_declaration_is_refused(tmp_path: Path, declared: dict[str, Any], message: str) -> None:
    write_svhn(tmp_path)
    with pytest.raises(ValueError, match=message):
        _open(tmp_path, **declared).setup()
