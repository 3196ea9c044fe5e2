"""The real files, as far as they are there: counts and classes as their publishers give them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.preprocessing import StandardScaler

from kegnet_pl.data import MNIST, SVHN, FashionMNIST, Letter, Pendigits, RealDataModule, Shuttle

pytestmark = pytest.mark.data

GREY = {"mean": [0.1307], "std": [0.3081]}
COLOUR = {"mean": [0.4378, 0.4439, 0.4729], "std": [0.1980, 0.2011, 0.1971]}


def _read(kind: type[RealDataModule], folder: Path, **options: Any) -> RealDataModule:
    data = kind(root=folder, **options)  # type: ignore[call-arg]
    data.prepare_data()
    data.setup()
    return data


def _counts(data: RealDataModule, *parts: str) -> list[int]:
    return torch.cat([data.splits[part].y for part in parts]).bincount(minlength=data.classes).tolist()


def _sizes(data: RealDataModule) -> tuple[int, int, int]:
    return len(data.splits["train"]), len(data.splits["val"]), len(data.splits["test"])


def test_mnist(data_dir: Path) -> None:
    data = _read(MNIST, data_dir, **GREY)
    assert _sizes(data) == (55_000, 5_000, 10_000)
    assert _counts(data, "test") == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert _counts(data, "train", "val") == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.splits["test"].x.shape[1:] == (1, 32, 32)
    assert float(data.splits["train"].x.mean()) == pytest.approx(0, abs=0.01)
    assert data.test_set == "mnist: 10,000 test samples"


def test_fashion(data_dir: Path) -> None:
    data = _read(FashionMNIST, data_dir, mean=[0.2856], std=[0.3385])
    assert _sizes(data) == (7_000, 5_000, 10_000)
    assert _counts(data, "test") == [1000] * 10
    assert float(data.splits["test"].x.mean()) == pytest.approx(0, abs=0.02)


def test_svhn(data_dir: Path) -> None:
    data = _read(SVHN, data_dir, **COLOUR)
    assert _sizes(data) == (975, 108, 5_000)
    assert _counts(data, "test") == [339, 988, 775, 561, 496, 450, 381, 376, 316, 318]
    assert _counts(data, "train", "val") == [66, 227, 141, 134, 110, 112, 78, 70, 78, 67]
    assert data.splits["test"].x.shape[1:] == (3, 32, 32)
    assert data.test_set == "svhn: a subset of 5,000 test samples"


def test_shuttle(data_dir: Path) -> None:
    data = _read(Shuttle, data_dir)
    assert sum(_sizes(data)[:2]) == 43_500
    assert len(data.splits["train"]) == pytest.approx(43_500 * 7 / 8, abs=5)
    assert _counts(data, "test") == [11478, 13, 39, 2155, 809, 4, 2]
    assert _counts(data, "train", "val") == [34108, 37, 132, 6748, 2458, 6, 11]


def test_pendigits(data_dir: Path) -> None:
    data = _read(Pendigits, data_dir)
    assert sum(_sizes(data)[:2]) == 7_494
    assert _counts(data, "test") == [363, 364, 364, 336, 364, 335, 336, 364, 336, 336]
    assert _counts(data, "train", "val") == [780, 779, 780, 719, 780, 720, 720, 778, 719, 719]


def test_letter(data_dir: Path) -> None:
    data = _read(Letter, data_dir)
    assert sum(_sizes(data)) == 20_000
    for size, share in zip(_sizes(data), (0.7, 0.1, 0.2), strict=True):
        assert size == pytest.approx(20_000 * share, abs=26)
    whole = _counts(data, "train", "val", "test")
    assert whole[:3] == [789, 766, 736]
    assert min(_counts(data, "test")) > 0.19 * min(whole)


@pytest.mark.parametrize("kind", [Shuttle, Pendigits, Letter])
def test_tables_are_standardised(data_dir: Path, kind: type[RealDataModule]) -> None:
    x = _read(kind, data_dir).splits["train"].x.double().numpy()
    assert abs(x - StandardScaler().fit_transform(x)).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "declared", "message"),
    [
        (Shuttle, {"input_shape": (16,)}, r"data\.input_shape"),
        (Pendigits, {"classes": 9}, "classes 0 to 8"),
        (Letter, {"classes": 10}, "classes 0 to 9"),
        (SVHN, {"classes": 9, **COLOUR}, "classes 0 to 8"),
        (SVHN, {"input_shape": (1, 32, 32), **GREY}, r"\(1, 32, 32\)"),
    ],
)
def test_another_declaration_is_refused(
    data_dir: Path, kind: type[RealDataModule], declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _read(kind, data_dir, **declared)
