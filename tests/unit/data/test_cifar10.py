"""CIFAR-10 from tiny files in its published layout, whose checksums stand for the publisher's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from kegnet_pl.data import CIFAR10
from tests.unit.data.files import cifar10_images, write_cifar10

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def _open(root: Path, **options: Any) -> CIFAR10:
    return CIFAR10(root=root, **({"mean": MEAN, "std": STD} | options))


def _publish(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Write the files as if they were the published ones; return their folder."""
    *train, test, (_, meta) = write_cifar10(folder)
    published = torchvision.datasets.CIFAR10
    monkeypatch.setattr(published, "train_list", train)
    monkeypatch.setattr(published, "test_list", [test])
    monkeypatch.setattr(published, "meta", published.meta | {"md5": meta})
    return folder / published.base_folder


@pytest.mark.parametrize("folder", [".", "cifar10"])
def test_read_from_all_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    _publish(monkeypatch, tmp_path / folder)
    data = _open(tmp_path)
    data.prepare_data()
    data.setup()
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 27, "val": 3, "test": 10}
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = (torch.from_numpy(cifar10_images(30)).float() / 255 - mean) / std
    test = data.splits["test"]
    torch.testing.assert_close(test.x, expected[:10])
    assert test.y.dtype == torch.int64 and test.y.tolist() == list(range(10))
    seen = []
    for part in ("train", "val"):
        for x, y in zip(data.splits[part].x, data.splits[part].y, strict=True):
            number = int((expected - x).abs().flatten(1).amax(dim=1).argmin())
            torch.testing.assert_close(x, expected[number])
            assert int(y) == number % 10, "labels have left their images"
            seen.append(number)
    assert sorted(seen) == list(range(30))
    assert data.test_set == "cifar10: 10 test samples"


@pytest.mark.parametrize("file", ["data_batch_1", "data_batch_4", "test_batch"])
def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    (_publish(monkeypatch, tmp_path) / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file}.*data\.download=true.*data\.root=FOLDER"):
        _open(tmp_path).prepare_data()


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_other_content_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    path = _publish(monkeypatch, tmp_path) / file
    content = b"cos\nsystem\n(S'touch " + str(tmp_path / "executed").encode() + b"'\ntR."  # runs a program
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"complete cifar10 files.*cannot be read.*data\.download=true"):
        _open(tmp_path).setup()
    assert not (tmp_path / "executed").exists()


def test_the_published_files_are_expected(tmp_path: Path) -> None:
    """Without the test's checksums, a subset in the same layout is refused."""
    write_cifar10(tmp_path)
    data = _open(tmp_path)
    data.prepare_data()
    with pytest.raises(ValueError, match="complete cifar10 files"):
        data.setup()


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"classes": 9}, "classes 0 to 8"),
        ({"input_shape": (1, 32, 32), "mean": [0.1], "std": [0.4]}, r"shape \(1, 32, 32\)"),
    ],
)
def test_another_declaration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: dict[str, Any], message: str
) -> None:
    _publish(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=message):
        _open(tmp_path, **declared).setup()
