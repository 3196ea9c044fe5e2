"""MNIST and Fashion-MNIST from tiny files in their published layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kegnet_pl.data import MNIST, FashionMNIST, ImageDataModule
from tests.unit.data.files import idx_bytes, shade, write_idx

KINDS = {"mnist": (MNIST, "MNIST"), "fashion": (FashionMNIST, "FashionMNIST")}


def _open(name: str, root: Path, **options: Any) -> ImageDataModule:
    return KINDS[name][0](root=root, **({"mean": [0.25], "std": [0.5]} | options))


def _indices(x: torch.Tensor) -> torch.Tensor:
    """Read from normalised samples which image each one is."""
    grey = (x.flatten(1).mean(dim=1) * 0.5 + 0.25) * 255
    return (grey / shade(1)).round().long()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("folder", [".", "{name}"])
def test_read_from_all_layouts(tmp_path: Path, name: str, folder: str) -> None:
    write_idx(tmp_path / folder.format(name=name), KINDS[name][1])
    data = _open(name, tmp_path)
    data.prepare_data()
    data.setup()
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 27, "val": 3, "test": 10}
    for split in data.splits.values():
        assert split.x.shape[1:] == (1, 32, 32)
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
        indices = _indices(split.x)
        expected = (shade(1) * indices / 255 - 0.25) / 0.5
        assert torch.allclose(split.x, expected[:, None, None, None].expand_as(split.x), atol=1e-5)
        assert torch.equal(split.y, indices % 10), "labels have left their images"
    parts = [_indices(data.splits[part].x) for part in ("train", "val")]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(30))
    assert torch.equal(_indices(data.splits["test"].x), torch.arange(10)), "test rows are not in their order"
    assert data.test_set == f"{name}: 10 test samples"


@pytest.mark.parametrize("name", KINDS)
def test_one_kind_is_not_taken_for_the_other(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path, "FashionMNIST" if name == "mnist" else "MNIST")
    with pytest.raises(FileNotFoundError):
        _open(name, tmp_path).prepare_data()


def test_images_are_resized_bilinearly(tmp_path: Path) -> None:
    raw = write_idx(tmp_path, "MNIST")
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28))
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
    data = _open("mnist", tmp_path)
    data.setup()
    grey = torch.from_numpy(images).float()[:, None] / 255
    expected = functional.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    assert float((data.splits["test"].x * 0.5 + 0.25 - expected).abs().max()) < 2 / 255


def test_declared_size_is_what_images_are_resized_to(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST")
    data = _open("mnist", tmp_path, input_shape=(1, 28, 28))
    data.setup()
    assert data.splits["test"].x.shape == (10, 1, 28, 28)


@pytest.mark.parametrize(("validation", "held"), [(4, 4), (14, 14), (15, 3), (5000, 3)])
def test_validation_is_held_out_of_training(tmp_path: Path, validation: int, held: int) -> None:
    write_idx(tmp_path, "MNIST")
    data = _open("mnist", tmp_path, validation=validation)
    data.setup()
    assert (len(data.splits["train"]), len(data.splits["val"])) == (30 - held, held)


def test_split_follows_the_seed(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST")
    seen = []
    for seed in (0, 0, 1):
        data = _open("mnist", tmp_path, seed=seed)
        data.setup()
        seen.append(data.splits)
    assert torch.equal(seen[0]["val"].x, seen[1]["val"].x)
    assert torch.equal(seen[0]["train"].x, seen[1]["train"].x)
    assert not torch.equal(seen[0]["val"].x, seen[2]["val"].x)
    assert torch.equal(seen[0]["test"].x, seen[2]["test"].x)


@pytest.mark.parametrize("name", KINDS)
def test_missing_folder(tmp_path: Path, name: str) -> None:
    data = _open(name, tmp_path / "nowhere")
    for act in (data.prepare_data, data.setup):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        message = str(caught.value)
        file = f"{KINDS[name][1]}/raw/train-images-idx3-ubyte"
        assert str(tmp_path / "nowhere" / file) in message
        assert str(tmp_path / "nowhere" / name / file) in message
        for advice in ("data.download=true", "data.root=FOLDER", "KEGNET_DATA_DIR"):
            assert advice in message


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"])
def test_missing_images(tmp_path: Path, file: str) -> None:
    (write_idx(tmp_path, "MNIST") / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        _open("mnist", tmp_path).prepare_data()


@pytest.mark.parametrize("file", ["train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"])
def test_missing_labels(tmp_path: Path, file: str) -> None:
    (write_idx(tmp_path, "MNIST") / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        _open("mnist", tmp_path).prepare_data()


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("size", [0, 3, 9, -1])
def test_truncated_file(tmp_path: Path, part: str, kind: str, size: int) -> None:
    path = write_idx(tmp_path, "MNIST") / f"{part}-{kind}-ubyte"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"complete mnist files.*cannot be read.*data\.download=true") as caught:
        _open("mnist", tmp_path).setup()
    assert str(tmp_path) in str(caught.value)


def test_other_numbers_of_images_and_labels(tmp_path: Path) -> None:
    raw = write_idx(tmp_path, "MNIST")
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(29) % 10))
    with pytest.raises(ValueError, match="30 and 29"):
        _open("mnist", tmp_path).setup()


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"classes": 9}, "classes 0 to 8"),
        ({"input_shape": (3, 32, 32), "mean": [0.25] * 3, "std": [0.5] * 3}, "for the grey images of"),
    ],
)
def test_another_declaration_is_refused(tmp_path: Path, declared: dict[str, Any], message: str) -> None:
    write_idx(tmp_path, "MNIST")
    with pytest.raises(ValueError, match=message):
        _open("mnist", tmp_path, **declared).setup()


@pytest.mark.parametrize("statistics", [{"mean": [0.1, 0.2]}, {"std": []}])
def test_statistics_fit_the_channels(tmp_path: Path, statistics: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"`mean` and `std` for each of 1 channels"):
        _open("mnist", tmp_path, **statistics)


@pytest.mark.parametrize("present", [False, True])
def test_only_what_is_missing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    fetched = []
    monkeypatch.setattr(MNIST, "_fetch", lambda self, train: fetched.append(train))
    if present:
        write_idx(tmp_path, "MNIST")
    _open("mnist", tmp_path, download=True).prepare_data()
    assert fetched == ([] if present else [True, False])


def test_nothing_is_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    monkeypatch.setattr(MNIST, "_fetch", lambda self, train: fetched.append(train))
    with pytest.raises(FileNotFoundError):
        _open("mnist", tmp_path).prepare_data()
    assert fetched == []


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_failed_download_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def fail(self: MNIST, train: bool) -> None:
        raise kind("no route to host")

    monkeypatch.setattr(MNIST, "_fetch", fail)
    with pytest.raises(FileNotFoundError, match=r"the mnist files at one of.*download failed: no route to host"):
        _open("mnist", tmp_path, download=True).prepare_data()
