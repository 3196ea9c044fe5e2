"""Samples that are matched to batch norm, on validation data: ``python -m reproduction.matching``.

Networks with batch norm are compressed, and students are trained, with different shares of matched samples. The page
``results/MATCHING.md`` shows validation accuracies. No test data is used.
"""

import argparse
import os
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import kegnet_pl
from kegnet_pl.data import Split
from kegnet_pl.networks import as_classifier
from kegnet_pl.sources import MatchedSource, Procedural, RealSource, SelectedSource
from reproduction.agreement_levels import SEED, TRAINING_SAMPLES, VALIDATION_SAMPLES
from reproduction.networks import EPOCHS, IMAGE_NETWORKS, SAMPLES, CifarFiles, load_data, published, train_teacher
from reproduction.pages import StoredRows
from reproduction.zoo import make_signal_network, read_signals

COMMAND = "python -m reproduction.matching"
SHARES = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.3), (1.0, 1.0))
"""Shares of matched samples in the compression and in the training of the student."""

IMAGES = ("MNIST", "Fashion")
"""Data sets of images, by their name in :func:`load_data`."""

CIFAR_TRAINING = 8_000
"""Of the 10,000 stored training images of CIFAR-10, those that train the ceiling. The others are for the accuracy."""

_INTRODUCTION = f"""
Networks with batch norm are compressed by the method that `compress` chooses. Students learn from {SAMPLES:,}
procedural samples that the teacher selects, for {EPOCHS} passes, as in [NETWORKS.md](NETWORKS.md). A share of the
samples is then matched to the statistics of the teacher's batch norm (`MatchedSource`): in the compression
(`matching`), and in the training. Cells: validation accuracy in %. T is the compressed network before any training.
*Student* has no matched samples; the next three start from the matched T, and their samples are matched to 0, 30 and
100 %. Prior knowledge in the samples: teacher + procedural; of the ceiling, the student of T with matched samples:
real data. Teachers of seed {SEED} have {TRAINING_SAMPLES:,} training samples; the accuracy is that of
{VALIDATION_SAMPLES:,} other training samples. ResNet20 is published, and was trained on all training images of
CIFAR-10, so its own accuracy is too high: its students are measured on 2,000 of these images. Seconds: compression
without and with matching; student without matching, with 30 %, and with all samples matched (one thread, with other
work on the machine).
"""


Case = tuple[str, str, Callable[[Split], nn.Module], dict[str, Any], Split, Split]
"""Data set, network, its training, the mean and deviation of pixels, training data and validation data."""


def load_cases(folder: Path) -> Iterator[Case]:
    """Yield the cases: networks with batch norm."""
    yield from load_image_cases(
        folder, {name: IMAGE_NETWORKS[name] for name in ("CNN, batch norm", "ResNet, batch norm")}
    )
    train = read_signals(folder)["train"]
    half = len(train) - VALIDATION_SAMPLES
    make = partial(train_teacher, make_signal_network, seed=SEED, epochs=8)
    yield "Pendigits", "Conv1d, batch norm", make, {}, train[:half], train[half:]
    if os.environ.get("KEGNET_REFERENCE_DIR"):
        pixels: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        cifar = CifarFiles(folder / "cifar10", **pixels)
        cifar.setup()
        train = cifar.splits["train"]
        yield (
            "CIFAR-10", "ResNet20, published", lambda _: published(20), pixels, train[:CIFAR_TRAINING],
            train[CIFAR_TRAINING:],
        )  # fmt: skip


def load_image_cases(folder: Path, networks: Mapping[str, Callable[[], nn.Module]]) -> Iterator[Case]:
    """Yield the cases of networks, by name, for MNIST and Fashion-MNIST."""
    for data, module, pixels in load_data(folder):
        if data in IMAGES:
            module.setup()
            train = module.splits["train"]
            parts = train[:TRAINING_SAMPLES], train[TRAINING_SAMPLES:][:VALIDATION_SAMPLES]
            for name, network in networks.items():
                yield data, name, partial(train_teacher, network, seed=SEED), pixels, *parts


Measure = Callable[[nn.Module, Split, Split, float, dict[str, Any]], dict[str, Any]]
"""Takes the teacher, training and validation data, the target, and mean and deviation of pixels; returns a row."""


def measure_cases(
    stored: StoredRows, measure: Measure, targets: Sequence[float], only: str = "", cases: Iterable[Case] | None = None
) -> None:
    """Measure the networks whose names begin with ``only``, for the targets that have no stored row.

    ``cases`` are those of :func:`load_cases` if they are None.
    """
    done = {(row["data"], row["network"], row["target"]) for row in stored.rows}
    every = load_cases(Path(os.environ.get("KEGNET_DATA_DIR", "data"))) if cases is None else cases
    for data, network, make, pixels, train, validation in every:
        left = [target for target in targets if (data, network, target) not in done]
        if not left or not network.startswith(only):
            continue
        teacher = make(train)
        accuracy = kegnet_pl.measure_accuracy(teacher, validation)
        for target in left:
            row = {"data": data, "network": network, "target": target, "teacher": accuracy}
            stored.add(row | measure(teacher, train, validation, target, pixels))
            stored.save()


def measure(
    teacher: nn.Module, train: Split, validation: Split, target: float, pixels: dict[str, Any]
) -> dict[str, Any]:
    """Return validation accuracies in [0, 1] and seconds of networks with all shares of matched samples."""
    shape, found = tuple(train.x.shape[1:]), dict[str, Any]()
    classifier = as_classifier(teacher, shape)
    selected = SelectedSource(Procedural(shape, **pixels), classifier)
    options: dict[str, Any] = {"epochs": EPOCHS, "lr_scheduler": "cosine", "progress": False}
    small: dict[float, Any] = {}
    for compressed, share in SHARES:
        if compressed not in small:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # low agreement is expected
                small[compressed] = kegnet_pl.compress(
                    teacher, shape, target, matching=compressed, progress=False, **pixels
                )
            found[f"T {compressed:g}"] = {
                "accuracy": kegnet_pl.measure_accuracy(small[compressed].network, validation),
                "method": small[compressed].method,
                "agreement": small[compressed].agreement,
                "seconds": round(time.perf_counter() - start, 1),
            }
        start = time.perf_counter()
        data = kegnet_pl.SyntheticDataset(MatchedSource(selected, classifier, share), teacher, SAMPLES)
        student = kegnet_pl.distill(small[compressed], data, **options)
        found[f"student {compressed:g} {share:g}"] = {
            "accuracy": kegnet_pl.measure_accuracy(student, validation),
            "seconds": round(time.perf_counter() - start, 1),
        }
    real = kegnet_pl.SyntheticDataset(RealSource(train.x), teacher, min(SAMPLES, len(train)))
    ceiling = kegnet_pl.distill(small[1.0], real, **options)
    return found | {"ceiling": {"accuracy": kegnet_pl.measure_accuracy(ceiling, validation)}}


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    titles = ["data", "network", "target", "teacher", "T", "T, matched"]
    titles += [f"student, {100 * share:.0f} %" if compressed else "student" for compressed, share in SHARES]
    titles += ["ceiling", "s: compress", "s: student"]
    lines = ["# Samples that are matched to batch norm", "", *textwrap.wrap(_INTRODUCTION.strip(), 120), ""]
    lines += [f"| {' | '.join(titles)} |", f"| --- | --- | ---: |{' ---: |' * (len(titles) - 3)}"]
    for row in rows:
        keys = ["T 0", "T 1", *(f"student {compressed:g} {share:g}" for compressed, share in SHARES), "ceiling"]
        cells = [row["data"], row["network"], f"{row['target']:g}x", f"{100 * row['teacher']:.1f}"]
        cells += [f"{100 * row[key]['accuracy']:.1f}" for key in keys]
        cells.append(", ".join(f"{row[key]['seconds']:.0f}" for key in keys[:2]))
        cells.append(", ".join(f"{row[key]['seconds']:.0f}" for key in keys[3:6]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Command: `{COMMAND}`"]) + "\n"


def run_study(
    stored: StoredRows,
    description: str,
    targets: Sequence[float],
    measure: Measure,
    render: Callable[[list[dict[str, Any]]], str],
    cases: Iterable[Case] | None = None,
) -> int:
    """Run the command line of a study: measure networks that are not measured yet, and write the page."""
    parser = argparse.ArgumentParser(description=description)
    default = " ".join(f"{target:g}" for target in targets)
    parser.add_argument("--targets", type=float, nargs="+", default=targets, help=f"default: {default}")
    parser.add_argument("--only", default="", help="only networks whose name begins like this")
    options = parser.parse_args()
    measure_cases(stored, measure, options.targets, options.only, cases)
    stored.finish(render)
    return 0


def main() -> int:
    """Measure networks that are not measured yet, and write the page."""
    stored = StoredRows("matching", COMMAND, SEED)
    return run_study(stored, "Shares of samples that are matched to batch norm.", (4.0, 8.0), measure, render)


if __name__ == "__main__":
    raise SystemExit(main())
