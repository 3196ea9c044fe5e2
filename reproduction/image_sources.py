"""Sources of samples for students of image networks without batch norm, on validation data.

``python -m reproduction.image_sources`` writes ``results/IMAGE_SOURCES.md``. No test data is used.
"""

import argparse
import os
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import kegnet_pl
from kegnet_pl.data import MNIST, FashionMNIST, Split
from kegnet_pl.losses import ClassifierLoss, DecoderLoss, GeneratorObjective
from kegnet_pl.networks import Decoder, LeNet5, as_classifier
from kegnet_pl.sources import (
    MixedSource,
    MixtureSource,
    Procedural,
    RealSource,
    SelectedSource,
    SyntheticSource,
)
from reproduction.agreement_levels import SEED, TRAINING_SAMPLES, VALIDATION_SAMPLES
from reproduction.matching import Case, measure_cases
from reproduction.networks import IMAGE_NETWORKS, train_teacher
from reproduction.pages import StoredRows

COMMAND = "python -m reproduction.image_sources"
SAMPLES, EPOCHS, BATCH = 16_000, 8, 256
TARGETS = (8.0,)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: IMAGE_NETWORKS[name] for name in ("CNN", "CNN, group norm", "MLP")}, "LeNet5": LeNet5
}  # fmt: skip
SOURCES = ("procedural", "selected", "KegNet", "KegNet + procedural")

_INTRODUCTION = f"""
Image networks without batch norm are compressed by the method that `compress` chooses. Students learn from
{SAMPLES:,} samples, half of which are mixed with each other: {EPOCHS} passes, batches of {BATCH}, cosine schedule, a
learning rate that short trainings choose, as in the preset `custom/image`. Students differ in the source of their
samples. *Procedural*: procedural images (prior knowledge in the samples: procedural). *Selected*: procedural images
that the teacher selects among four (prior: teacher + procedural). *KegNet*: five generators with the settings of the
preset (prior: teacher). *KegNet + procedural*: half of the samples from each (prior: teacher + procedural). The
ceiling is a student of real data, which is not mixed (prior: real data). All networks are compressed with procedural
images that the teacher selects. Cells: validation accuracy in %. T is the compressed network before any training.
Teachers of seed {SEED} have {TRAINING_SAMPLES:,} training samples; the accuracy is that of {VALIDATION_SAMPLES:,} other
training samples. One seed per row: differences of two points may be chance. Seconds: training of the generators, and
samples and training of the student *KegNet + procedural* (one thread, with other work on the machine).
"""


def load_cases(folder: Path) -> Iterator[Case]:
    """Yield the cases: networks without batch norm for MNIST and Fashion-MNIST."""
    for data, kind, mean, std in (("MNIST", MNIST, 0.1307, 0.3081), ("Fashion", FashionMNIST, 0.2860, 0.3530)):
        module = kind(root=folder, download=False, mean=[mean], std=[std], validation=1)
        module.setup()
        train = module.splits["train"]
        parts = train[:TRAINING_SAMPLES], train[TRAINING_SAMPLES:][:VALIDATION_SAMPLES]
        for name, network in NETWORKS.items():
            make = partial(train_teacher, network, seed=SEED)
            yield data, name, make, {"mean": mean, "std": std}, *parts


def train_generators(teacher: nn.Module, shape: tuple[int, ...]) -> kegnet_pl.Generators:
    """Train generators with the settings of the preset ``custom/image``."""
    terms = {"classifier": ClassifierLoss(temperature=10.0), "decoder": DecoderLoss()}
    return kegnet_pl.train_generators(
        teacher, shape, count=5, epochs=10, steps_per_epoch=100, batch_size=128, lr=1e-2, lr_scheduler="cosine",
        objective=GeneratorObjective(terms, {"classifier": 1.0, "decoder": 1.0}), progress=False,
        make_decoder=lambda: Decoder(shape, 10, blocks=1),
    )  # fmt: skip


def measure(
    teacher: nn.Module, train: Split, validation: Split, target: float, pixels: dict[str, Any]
) -> dict[str, Any]:
    """Return validation accuracies in [0, 1], and seconds, of students of all sources."""
    shape = tuple(train.x.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # low agreement is expected
        small = kegnet_pl.compress(teacher, shape, target, progress=False, **pixels)
    found: dict[str, Any] = {
        "method": small.method,
        "T": {"accuracy": kegnet_pl.measure_accuracy(small.network, validation)},
    }
    start = time.perf_counter()
    generators = train_generators(teacher, shape)
    found["generators"] = {"seconds": round(time.perf_counter() - start, 1)}
    procedural, kegnet = Procedural(shape, **pixels), generators.source()
    sources: dict[str, SyntheticSource] = {
        "procedural": procedural,
        "selected": SelectedSource(procedural, as_classifier(teacher, shape)),
        "KegNet": kegnet,
        "KegNet + procedural": MixtureSource({"kegnet": (kegnet, 0.5), "procedural": (procedural, 0.5)}),
        "ceiling": RealSource(train.x),
    }
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr_scheduler": "cosine", "progress": False}
    for name, source in sources.items():
        start = time.perf_counter()
        mixed = source if name == "ceiling" else MixedSource(source, share=0.5)
        count = min(SAMPLES, len(train)) if name == "ceiling" else SAMPLES
        data = kegnet_pl.SyntheticDataset(mixed, teacher, count, progress=False)
        student = kegnet_pl.distill(small, data, **options)
        seconds = round(time.perf_counter() - start, 1)
        found[name] = {"accuracy": kegnet_pl.measure_accuracy(student, validation), "seconds": seconds}
    return found


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    titles = ["data", "network", "target", "teacher", "T", *SOURCES, "ceiling", "s"]
    lines = ["# Sources of samples for images without batch norm", "", *textwrap.wrap(_INTRODUCTION.strip(), 120), ""]
    lines += [f"| {' | '.join(titles)} |", f"| --- | --- |{' ---: |' * (len(titles) - 2)}"]
    for row in rows:
        cells = [row["data"], row["network"], f"{row['target']:g}x", f"{100 * row['teacher']:.1f}"]
        cells += [f"{100 * row[name]['accuracy']:.1f}" for name in ("T", *SOURCES, "ceiling")]
        cells.append(f"{row['generators']['seconds']:.0f}, {row[SOURCES[-1]]['seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    done = {(row["data"], row["network"], row["target"]) for row in rows}
    wanted = [(data, name, target) for data in ("MNIST", "Fashion") for name in NETWORKS for target in TARGETS]
    missing = [f"{data}, {name}, {target:g}x" for data, name, target in wanted if (data, name, target) not in done]
    lines += ["", f"Not run: {'; '.join(missing)}."] if missing else []
    return "\n".join([*lines, "", f"Command: `{COMMAND}`"]) + "\n"


def main() -> int:
    """Measure networks that are not measured yet, and write the page."""
    parser = argparse.ArgumentParser(description="Sources of samples for images without batch norm.")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="default: 8")
    parser.add_argument("--only", default="", help="only networks whose name begins like this")
    options = parser.parse_args()
    stored = StoredRows("image_sources", COMMAND, SEED)
    cases = load_cases(Path(os.environ.get("KEGNET_DATA_DIR", "data")))
    measure_cases(stored, measure, options.targets, options.only, cases)
    stored.finish(render)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
