"""Sources of samples for students of image networks without batch norm, on validation data.

``python -m reproduction.image_sources`` writes ``results/IMAGE_SOURCES.md``. No test data is used.
"""

import os
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import kegnet_pl
from kegnet_pl.data import Split
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
from reproduction.matching import IMAGES, load_image_cases, run_study
from reproduction.networks import IMAGE_NETWORKS
from reproduction.pages import StoredRows, list_missing

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
    lines += list_missing(rows, [(data, name) for data in IMAGES for name in NETWORKS], TARGETS)
    return "\n".join([*lines, "", f"Command: `{COMMAND}`"]) + "\n"


def main() -> int:
    """Measure networks that are not measured yet, and write the page."""
    stored = StoredRows("image_sources", COMMAND, SEED)
    cases = load_image_cases(Path(os.environ.get("KEGNET_DATA_DIR", "data")), NETWORKS)
    return run_study(stored, "Sources of samples for images without batch norm.", TARGETS, measure, render, cases)


if __name__ == "__main__":
    raise SystemExit(main())
