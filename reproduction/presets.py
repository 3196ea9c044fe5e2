"""Settings of students of networks with batch norm, on validation data: ``python -m reproduction.presets``.

The networks, teachers and validation data are those of :mod:`reproduction.matching`. The page ``results/PRESETS.md``
shows validation accuracies. No test data is used.
"""

import textwrap
import time
import warnings
from typing import Any

from torch import nn

import kegnet_pl
from kegnet_pl.data import Split
from kegnet_pl.networks import as_classifier
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.sources import MatchedSource, MixedSource, Procedural, RealSource, SelectedSource
from reproduction.agreement_levels import SEED
from reproduction.matching import run_study
from reproduction.pages import StoredRows, list_missing

COMMAND = "python -m reproduction.presets"
SAMPLES, EPOCHS, BATCH = 8_000, 5, 64
TARGETS = (8.0, 4.0)

STUDENTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "mixed": (True, {}),
    "mixed, adapt": (True, {"norm": "adapt"}),
    "mixed, adapt, features": (True, {"norm": "adapt", "feature_distillation": 10.0}),
}
"""Name of a student -> True if its samples are mixed, and arguments of :func:`kegnet_pl.distill`."""

CEILING = "mixed, adapt"
"""The student whose settings the ceiling has."""

_INTRODUCTION = f"""
Networks with batch norm are compressed by the method that `compress` chooses. Students learn from {SAMPLES:,}
procedural samples that the teacher selects, and that are matched to its batch norm ([MATCHING.md](MATCHING.md)):
{EPOCHS} passes, batches of {BATCH}, cosine schedule, a learning rate that short trainings choose. Students differ in
three settings of the preset `custom/batch_norm`. *Mixed*: half of the samples are mixed with each other
(`student.mixing=0.5`). *Adapt*: batch norm has the statistics of synthetic samples (`student.norm=adapt`), otherwise
the stored ones. *Features*: layers learn from the teacher's layers (`student.feature_distillation.weight=10`). Cells:
validation accuracy in %. T is the compressed network before any training. Prior knowledge in the samples: teacher +
procedural; of the ceiling, the student *{CEILING}*: real data, not mixed. Layers: those of batch norm. Teachers and
validation data are those of [MATCHING.md](MATCHING.md); the accuracy of ResNet20 itself is too high, since it was
trained on its validation images. One seed per row: differences of two points may be chance. Seconds: training of the
student without and with features (one thread, with other work on the machine).
"""


def measure(
    teacher: nn.Module, train: Split, validation: Split, target: float, pixels: dict[str, Any]
) -> dict[str, Any]:
    """Return validation accuracies in [0, 1], and seconds, of students with different settings."""
    shape = tuple(train.x.shape[1:])
    classifier = as_classifier(teacher, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # low agreement is expected
        small = kegnet_pl.compress(teacher, shape, target, progress=False, **pixels)
    found: dict[str, Any] = {
        "layers": len(norm_layers(teacher)),
        "method": small.method,
        "T": {"accuracy": kegnet_pl.measure_accuracy(small.network, validation)},
    }
    source = MatchedSource(SelectedSource(Procedural(shape, **pixels), classifier), classifier)
    plain = kegnet_pl.SyntheticDataset(source, teacher, SAMPLES, progress=False)
    mixed = MixedSource(RealSource(plain.tensors[0]), share=0.5)  # the same samples, which are not matched again
    data = {False: plain, True: kegnet_pl.SyntheticDataset(mixed, teacher, SAMPLES, progress=False)}
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr_scheduler": "cosine", "progress": False}
    for name, (is_mixed, arguments) in STUDENTS.items():
        start = time.perf_counter()
        student = kegnet_pl.distill(small, data[is_mixed], **options, **arguments)
        seconds = round(time.perf_counter() - start, 1)
        found[name] = {"accuracy": kegnet_pl.measure_accuracy(student, validation), "seconds": seconds}
    real = kegnet_pl.SyntheticDataset(RealSource(train.x), teacher, min(SAMPLES, len(train)), progress=False)
    ceiling = kegnet_pl.distill(small, real, **options, **STUDENTS[CEILING][1])
    return found | {"ceiling": {"accuracy": kegnet_pl.measure_accuracy(ceiling, validation)}}


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    titles = ["data", "network", "layers", "target", "teacher", "T", *STUDENTS, "ceiling", "s"]
    lines = ["# Students of networks with batch norm", "", *textwrap.wrap(_INTRODUCTION.strip(), 120), ""]
    lines += [f"| {' | '.join(titles)} |", f"| --- | --- |{' ---: |' * (len(titles) - 2)}"]
    for row in sorted(rows, key=lambda row: row["layers"]):
        cells = [row["data"], row["network"], str(row["layers"]), f"{row['target']:g}x", f"{100 * row['teacher']:.1f}"]
        cells += [f"{100 * row[name]['accuracy']:.1f}" for name in ("T", *STUDENTS, "ceiling")]
        cells.append(", ".join(f"{row[name]['seconds']:.0f}" for name in list(STUDENTS)[-2:]))
        lines.append(f"| {' | '.join(cells)} |")
    lines += list_missing(rows, dict.fromkeys((row["data"], row["network"]) for row in rows), TARGETS)
    return "\n".join([*lines, "", f"Command: `{COMMAND}`"]) + "\n"


def main() -> int:
    """Measure networks that are not measured yet, and write the page."""
    stored = StoredRows("presets", COMMAND, SEED)
    return run_study(stored, "Settings of students of networks with batch norm.", TARGETS, measure, render)


if __name__ == "__main__":
    raise SystemExit(main())
