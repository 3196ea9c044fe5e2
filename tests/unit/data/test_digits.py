"""scikit-learn's digits."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from kegnet_pl.data import DigitsDataModule, Split


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    data = DigitsDataModule()
    data.prepare_data()
    data.setup()
    return data.splits


def test_shapes_and_shares(splits: dict[str, Split]) -> None:
    assert list(splits) == ["train", "val", "test"]
    for split in splits.values():
        assert split.x.shape == (len(split), 1, 32, 32)
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
    total = sum(map(len, splits.values()))
    assert total == 1797
    for part, share in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
        assert len(splits[part]) / total == pytest.approx(share, abs=0.005)


def test_splits_are_disjoint_and_hold_every_digit_once(splits: dict[str, Split]) -> None:
    drawn = torch.cat([split.x.flatten(1) for split in splits.values()])
    images = torch.from_numpy(load_digits().images).float()[:, None] / 16
    whole = functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    whole = ((whole - 0.3053) / 0.3761).flatten(1)
    # Every drawn sample is one of the originals, and the originals are found as often as they are there.
    nearest = torch.cdist(drawn, whole).min(dim=1)
    assert float(nearest.values.max()) < 0.1
    assert len(nearest.indices.unique()) == len(whole.unique(dim=0)) == 1797


def test_labels_stay_with_their_images(splits: dict[str, Split]) -> None:
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    whole = functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    whole = ((whole - 0.3053) / 0.3761).flatten(1)
    for split in splits.values():
        found = torch.cdist(split.x.flatten(1), whole).argmin(dim=1)
        assert torch.equal(torch.from_numpy(bunch.target)[found], split.y)


def test_normalised_by_the_statistics_it_names(splits: dict[str, Split]) -> None:
    grey = torch.from_numpy(load_digits().images) / 16
    x = torch.cat([split.x for split in splits.values()])
    # Averages of neighbours: resizing keeps the mean, and leaves no value outside the original range.
    assert float(x.mean()) == pytest.approx(float((grey.mean() - 0.3053) / 0.3761), abs=0.02)
    assert float(grey.mean()) == pytest.approx(0.3053, abs=5e-5)
    assert float(grey.std()) == pytest.approx(0.3761, abs=5e-4)
    assert float(x.min()) == pytest.approx((0 - 0.3053) / 0.3761, abs=1e-5)
    assert float(x.max()) == pytest.approx((1 - 0.3053) / 0.3761, abs=1e-5)


def test_classes_are_balanced(splits: dict[str, Split]) -> None:
    for part in ("train", "test"):
        counts = splits[part].y.bincount(minlength=10)
        assert int(counts.min()) > 0.085 * len(splits[part])
        assert int(counts.max()) < 0.115 * len(splits[part])
    assert int(splits["val"].y.bincount(minlength=10).min()) > 0


def test_split_does_not_depend_on_the_seed(splits: dict[str, Split]) -> None:
    other = DigitsDataModule(seed=5)
    other.setup()
    for part, split in splits.items():
        assert torch.equal(split.x, other.splits[part].x)
        assert torch.equal(split.y, other.splits[part].y)


@pytest.mark.parametrize(
    ("declared", "message"),
    [({"input_shape": (3, 32, 32)}, r"data\.input_shape"), ({"classes": 9}, "classes 0 to 8")],
)
def test_another_declaration_is_refused(declared: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**declared).setup()


def test_name_of_the_test_set() -> None:
    data = DigitsDataModule()
    data.setup()
    assert data.test_set == f"digits: {len(data.splits['test'])} test samples"
