"""UCI tables from tiny files in their published layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kegnet_pl.data import Letter, Pendigits, Shuttle, Split, TableDataModule

SETS: dict[str, tuple[type[TableDataModule], str, str, int, list[str]]] = {
    "shuttle": (Shuttle, "shuttle.trn", " ", 9, [str(n) for n in range(1, 8)]),
    "pendigits": (Pendigits, "pendigits.tra", ",", 16, [str(n) for n in range(10)]),
    "letter": (Letter, "letter-recognition.data", ",", 16, [chr(65 + n) for n in range(26)]),
}
TEST_FILES = {"shuttle": "shuttle.tst", "pendigits": "pendigits.tes"}


def _lines(name: str, rows: Sequence[int]) -> list[str]:
    """Return a line a row: row r is of class ``r % classes``, its first feature is r, its last is always 5."""
    _, _, delimiter, features, classes = SETS[name]
    lines = []
    for row in rows:
        values = [str(row), *(str((row * (k + 3)) % 17) for k in range(features - 2)), "5"]
        label = classes[row % len(classes)]
        lines.append(delimiter.join([label, *values] if name == "letter" else [*values, label]))
    return lines


def _write(root: Path, name: str, per_class: int = 10) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    count = per_class * len(SETS[name][4])
    path = root / SETS[name][1]
    path.write_text("\n".join(_lines(name, range(count))) + "\n")
    if name in TEST_FILES:
        (root / TEST_FILES[name]).write_text("\n".join(_lines(name, range(count, count + 30))) + "\n")
    return path


def _splits(name: str, root: Path, **options: Any) -> dict[str, Split]:
    data = SETS[name][0](root=root, **options)
    data.prepare_data()
    data.setup()
    return data.splits


def _row_numbers(splits: dict[str, Split]) -> dict[str, torch.Tensor]:
    """Read row numbers from the first feature, which has been standardised: the least is 0, each of them is there."""
    x = torch.cat([split.x[:, 0] for split in splits.values()]).double()
    step = (x.max() - x.min()) / (len(x) - 1)
    return {part: ((split.x[:, 0] - x.min()) / step).round().long() for part, split in splits.items()}


@pytest.mark.parametrize("folder", [".", "{name}", "uci/{name}"])
@pytest.mark.parametrize("name", SETS)
def test_read_from_all_layouts(tmp_path: Path, name: str, folder: str) -> None:
    _write(tmp_path / folder.format(name=name), name)
    splits = _splits(name, tmp_path)
    classes, features = len(SETS[name][4]), SETS[name][3]
    for split in splits.values():
        assert split.x.shape == (len(split), features)
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
    numbers = _row_numbers(splits)
    assert torch.equal(torch.cat(list(numbers.values())).sort().values, torch.arange(sum(map(len, splits.values()))))
    for part, split in splits.items():
        assert torch.equal(split.y, numbers[part] % classes), f"classes of {part} have left their rows"


@pytest.mark.parametrize("name", TEST_FILES)
def test_published_test_rows_are_the_test_split(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name, per_class=16)
    splits = _splits(name, tmp_path)
    classes = len(SETS[name][4])
    assert [len(splits[part]) for part in ("train", "val", "test")] == [14 * classes, 2 * classes, 30]
    for part, each in (("train", 14), ("val", 2)):
        assert splits[part].y.bincount(minlength=classes).tolist() == [each] * classes
    numbers = _row_numbers(splits)["test"]
    assert torch.equal(numbers, torch.arange(16 * classes, 16 * classes + 30)), "test rows are not in their order"


def test_letter_is_split_7_1_2(tmp_path: Path) -> None:
    _write(tmp_path, "letter", per_class=20)
    splits = _splits("letter", tmp_path)
    for part, each in (("train", 14), ("val", 2), ("test", 4)):
        assert splits[part].y.bincount(minlength=26).tolist() == [each] * 26


@pytest.mark.parametrize("name", SETS)
def test_split_follows_the_seed(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    first, again, other = (_splits(name, tmp_path, seed=seed) for seed in (0, 0, 1))
    for part in first:
        assert torch.equal(first[part].x, again[part].x)
    assert not torch.equal(first["train"].x, other["train"].x)


@pytest.mark.parametrize("name", SETS)
def test_standardised_by_training_rows_alone(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, name)
    splits = _splits(name, tmp_path)
    x = splits["train"].x.double()
    assert float(x.mean(dim=0).abs().max()) < 1e-5
    assert torch.allclose(x[:, :-1].std(dim=0, correction=0), torch.ones(x.shape[1] - 1).double(), atol=1e-5)
    numbers = _row_numbers(splits)
    delimiter, label_first = SETS[name][2], name == "letter"
    files = [path] + ([tmp_path / TEST_FILES[name]] if name in TEST_FILES else [])
    fields = [line.split(delimiter) for file in files for line in file.read_text().splitlines()]
    raw = np.array([row[1:] if label_first else row[:-1] for row in fields], dtype=float)
    train = raw[numbers["train"].numpy()]
    deviation = np.where(train.std(axis=0) > 0, train.std(axis=0), 1)
    for part in ("val", "test"):
        expected = (raw[numbers[part].numpy()] - train.mean(axis=0)) / deviation
        assert np.allclose(splits[part].x.numpy(), expected, atol=1e-4), part


@pytest.mark.parametrize("name", SETS)
def test_constant_feature_is_zero(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    for split in _splits(name, tmp_path).values():
        assert torch.equal(split.x[:, -1], torch.zeros(len(split)))


@pytest.mark.parametrize("name", SETS)
def test_missing_files(tmp_path: Path, name: str) -> None:
    cls, file, *_ = SETS[name]
    with pytest.raises(FileNotFoundError) as caught:
        cls(root=tmp_path / "nowhere").prepare_data()
    for place in (file, f"{name}/{file}", f"uci/{name}/{file}"):
        assert str(tmp_path / "nowhere" / place) in str(caught.value)
    assert "archive.ics.uci.edu" in str(caught.value)


@pytest.mark.parametrize("name", TEST_FILES)
def test_missing_test_file(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    (tmp_path / TEST_FILES[name]).unlink()
    with pytest.raises(FileNotFoundError, match=TEST_FILES[name]):
        SETS[name][0](root=tmp_path).prepare_data()


def _cut_last_row(text: str, delimiter: str) -> str:
    return text.rstrip("\n").rsplit(delimiter, 1)[0]


def _word_for_a_number(text: str, delimiter: str) -> str:
    lines = text.splitlines()
    lines[3] = delimiter.join(["?" if k == 2 else field for k, field in enumerate(lines[3].split(delimiter))])
    return "\n".join(lines)


def _no_rows(text: str, delimiter: str) -> str:
    return ""


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("damage", [_cut_last_row, _word_for_a_number, _no_rows])
@pytest.mark.parametrize("name", SETS)
def test_damaged_rows(tmp_path: Path, name: str, damage: Any) -> None:
    path = _write(tmp_path, name)
    path.write_text(damage(path.read_text(), SETS[name][2]))
    with pytest.raises(ValueError, match=r"Expected .*"):
        SETS[name][0](root=tmp_path).setup()


@pytest.mark.parametrize("name", TEST_FILES)
def test_test_rows_of_another_length(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    path = tmp_path / TEST_FILES[name]
    delimiter = SETS[name][2]
    path.write_text("\n".join(line.split(delimiter, 1)[1] for line in path.read_text().splitlines()))
    with pytest.raises(ValueError, match=r"Expected .*"):
        SETS[name][0](root=tmp_path).setup()


@pytest.mark.parametrize("label", ["a", "AB", "[", "\u00c4"])
def test_letter_that_is_none(tmp_path: Path, label: str) -> None:
    path = _write(tmp_path, "letter")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{label},{line[2:]}" if row % 26 == 0 else line for row, line in enumerate(lines)]))
    with pytest.raises(ValueError, match="classes 0 to 25"):
        Letter(root=tmp_path).setup()


@pytest.mark.parametrize("label", ["0", "8", "1.5"])
def test_shuttle_class_that_is_none(tmp_path: Path, label: str) -> None:
    path = _write(tmp_path, "shuttle")
    lines = [f"{line[:-1]}{label}" if line.endswith("4") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"Expected .*"):
        Shuttle(root=tmp_path).setup()


@pytest.mark.parametrize(
    ("declared", "message"), [({"input_shape": (8,)}, r"data\.input_shape"), ({"classes": 6}, "classes 0 to 5")]
)
def test_another_declaration_is_refused(tmp_path: Path, declared: dict[str, Any], message: str) -> None:
    _write(tmp_path, "shuttle")
    with pytest.raises(ValueError, match=message):
        Shuttle(root=tmp_path, **declared).setup()
