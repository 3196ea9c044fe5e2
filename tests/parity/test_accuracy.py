"""Accuracy on real data: teachers and the T rows of the paper's table, and the published teachers of CIFAR-10."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.evaluation import measure_accuracy
from kegnet_pl.api.weights import load_weights
from kegnet_pl.data import RealDataModule, Split
from reproduction.jobs import ROOT, read_cells
from tests.parity.conftest import Teachers, shipped, shipped_plan

Record = Callable[[str, object], None]

pytestmark = pytest.mark.data


def _test_split(name: str, data_dir: Path, seed: int = 0) -> Split:
    """The test split as the shipped experiment reads it; the seed says what is split off."""
    config = shipped(name, 1, f"data.root={data_dir}", f"seed={seed}").data
    if "download" in config:  # tables are not downloaded
        config.download = False
    data: RealDataModule = instantiate(config)
    data.setup()
    return data.splits["test"]


def _table(
    name: str, teacher: Teachers, split: Split, record: Record, options: Sequence[int] = (1, 2, 3)
) -> tuple[float, list[float]]:
    """Accuracy in percent: the teacher, and its Tucker students before any training; printed at the end.

    They are compared with the T rows of ``results/paper.json``.
    """
    network = teacher(name)
    accuracy = 100 * measure_accuracy(network, split, batch_size=100)
    every = [row for row in json.loads((ROOT / "results" / "paper.json").read_text()) if row["dataset"] == name]
    experiment = next(cells for cells in read_cells()["experiments"].values() if cells["dataset"] == name)
    students = []
    for option in options:
        small = shipped_plan(shipped(name, option)).apply(network, tuple(split.x.shape[1:])).network
        students.append(100 * measure_accuracy(small, split, batch_size=100))
        stored = [row for row in every if row["method"] == "T" and row["option"] == f"option{option}"]
        assert stored
        for row in stored:
            # A few of 10,000 images may tip over where sums are added up in another order.
            assert students[-1] == pytest.approx(row["mean"], abs=0.03)
            assert row["compression_ratio"] == pytest.approx(experiment["options"][row["option"]]["ratio"], abs=0.006)
    row = " / ".join(f"{value:.2f}" for value in students)
    record(f"{name}, {len(split):,} test images", f"teacher {accuracy:.2f} %, T of options {options}: {row} %")
    return accuracy, students


def test_mnist(data_dir: Path, teacher: Teachers, record_property: Record) -> None:
    split = _test_split("mnist", data_dir)
    accuracy, students = _table("mnist", teacher, split, record_property)

    assert len(split) == 10_000
    assert accuracy == pytest.approx(98.91, abs=0.02)
    assert students == pytest.approx([85.18, 67.35, 50.01], abs=0.02)


@pytest.mark.slow
def test_fashion(data_dir: Path, teacher: Teachers, record_property: Record) -> None:
    split = _test_split("fashion", data_dir)
    accuracy, _ = _table("fashion", teacher, split, record_property, [2])  # the paper's T row: 65.09 / 75.80 / 46.55

    assert len(split) == 10_000
    assert accuracy == pytest.approx(92.50, abs=0.02)


@pytest.mark.slow
def test_svhn(data_dir: Path, teacher: Teachers, record_property: Record) -> None:
    split = _test_split("svhn", data_dir)
    accuracy, _ = _table("svhn", teacher, split, record_property, [1])  # the paper's T row: 19.31 / 11.02 / 11.07

    assert len(split) >= 5_000
    assert accuracy > 92


@pytest.mark.parametrize(("depth", "count", "accuracy"), [(20, 2_000, 91.70), (56, 500, 94.00)])
def test_cifar10(depth: int, count: int, accuracy: float, data_dir: Path, reference_dir: Path) -> None:
    """The first of 10,000 test images, all of which give 91.73 % (ResNet20) and 93.39 % (ResNet56)."""
    weights = reference_dir / "teachers" / f"cifar10_resnet{depth}.th"
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        config = compose("config", overrides=[f"experiment=cifar10_resnet{depth}", f"teacher.weights={weights}"])
    network = instantiate(config.teacher.network)
    load_weights(network, weights)
    with np.load(data_dir / "cifar10" / "cifar10_test.npz") as stored:
        images, labels = (torch.from_numpy(stored[name][:count]) for name in ("x", "y"))
    split = instantiate(config.data)._prepare((images.permute(0, 3, 1, 2), labels))

    one_sample = 100 / count  # which may tip over where sums are added up in another order
    assert 100 * measure_accuracy(network, split, batch_size=100) == pytest.approx(accuracy, abs=one_sample + 0.001)


TRAINED = [
    (path.name, experiment["dataset"], option, seed)
    for name, experiment in read_cells()["experiments"].items()
    for path in sorted((ROOT / "results" / "teachers").glob(f"{name}-seed*"))
    for option in experiment["options"]
    for seed in [int(path.name.removeprefix(f"{name}-seed"))]
]
"""The teachers that were trained for the tables: folder, data set, option, seed."""


@pytest.mark.parametrize(("folder", "name", "option", "seed"), TRAINED)
def test_tables(folder: str, name: str, option: str, seed: int, data_dir: Path, record_property: Record) -> None:
    split = _test_split(name, data_dir, seed)
    teacher = load_network(ROOT / "results" / "teachers" / folder)
    plan = shipped_plan(shipped(name, int(option.removeprefix("option"))))
    accuracy = {
        "teacher": 100 * measure_accuracy(teacher, split, batch_size=100),
        "T": 100 * measure_accuracy(plan.apply(teacher, tuple(split.x.shape[1:])).network, split, batch_size=100),
    }
    record_property(f"{folder}, {option}", ", ".join(f"{key} {value:.2f} %" for key, value in accuracy.items()))

    every = json.loads((ROOT / "results" / "paper.json").read_text())
    stored = [
        (row["recipe"], row["method"], row["values"][row["seed_list"].index(seed)])
        for row in every
        if (row["dataset"], row["option"]) == (name, option) and row["method"] in accuracy and seed in row["seed_list"]
    ]
    assert {method for _, method, _ in stored} == set(accuracy)
    one_sample = 100 / len(split)  # which may tip over where sums are added up in another order
    for recipe, method, value in stored:
        assert accuracy[method] == pytest.approx(value, abs=one_sample + 0.001), f"{recipe}: {method}"
