"""Level of agreement below which ``compress`` warns, on validation data: ``python -m reproduction.agreement_levels``.

The networks of :mod:`reproduction.networks` are trained with another seed, without the last training samples. They are
compressed by each method and target. The page ``results/AGREEMENT_LEVELS.md`` counts, for each level, the networks that
lost more than 3 points of validation accuracy without a warning, and the others that got one. No test data is used.
"""

import os
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kegnet_pl
from kegnet_pl.api.checks import low_agreement
from kegnet_pl.data import Split
from reproduction.networks import IMAGE_NETWORKS, TABLE_NETWORKS, load_data, train_teacher
from reproduction.pages import StoredRows

COMMAND = "python -m reproduction.agreement_levels"
METHODS, TARGETS = ("pruning", "tucker"), (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
TRAINING_SAMPLES, VALIDATION_SAMPLES, SEED = 10_000, 2_000, 1
LOST = 0.03
"""Loss of accuracy of which a warning should tell."""

LEVELS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


def measure(data: Split, validation: Split, make: Any, pixels: dict[str, Any]) -> list[dict[str, Any]]:
    """Return validation accuracy and agreement of a network, compressed by each method and target."""
    teacher = train_teacher(make, data, SEED)
    before = kegnet_pl.measure_accuracy(teacher, validation)
    rows = []
    for method in METHODS:
        for target in TARGETS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # low agreement is a column of the table
                small = kegnet_pl.compress(
                    teacher, tuple(data.x.shape[1:]), target, method=method, progress=False, **pixels  # type: ignore[arg-type]
                )  # fmt: skip
            after = kegnet_pl.measure_accuracy(small.network, validation)
            rows.append({"method": method, "target": target, "teacher": before, "accuracy": after,
                         "agreement": small.agreement})  # fmt: skip
    return rows


def count(rows: Sequence[dict[str, Any]], level: float) -> tuple[int, int, int]:
    """Return the networks that lost accuracy, those of them without a warning, and false warnings."""
    lost = [row for row in rows if row["teacher"] - row["accuracy"] > LOST]
    missed = sum(row["agreement"] >= level for row in lost)
    return len(lost), missed, sum(row["agreement"] < level for row in rows) - len(lost) + missed


_INTRODUCTION = f"""
`compress` warns if the compressed network and the original give the same class to too few held-out synthetic samples.
This page compares levels for this warning, on validation data. Networks: MNIST and Fashion-MNIST with
{", ".join(IMAGE_NETWORKS)}; Letter with an MLP. Teachers of seed {SEED} have {TRAINING_SAMPLES:,} training samples; the
accuracy is that of {VALIDATION_SAMPLES:,} other training samples. Each network is compressed by each method to
{", ".join(f"{target:g}x" for target in TARGETS)}, without training. Lost: networks that lost more than
{100 * LOST:.0f} points. Missed: those of them without a warning. False: warnings for other networks.
"""


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    lines = [
        "# Level of agreement for a warning",
        "",
        *textwrap.wrap(_INTRODUCTION.strip(), 120, break_on_hyphens=False),
        "",
        "| method | networks | lost | level | missed | false |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in METHODS:
        those = [row for row in rows if row["method"] == method]
        for level in LEVELS:
            lost, missed, false = count(those, level)
            used = " (in use)" if level == low_agreement(method) else ""
            lines.append(f"| {method} | {len(those)} | {lost} | {100 * level:.0f} %{used} | {missed} | {false} |")
    lines += ["", f"Command: `{COMMAND}`"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure networks that are not measured yet, and write the page."""
    stored = StoredRows("agreement_levels", COMMAND, SEED)
    done = {(row["data"], row["network"]) for row in stored.rows}
    for name, module, pixels in load_data(Path(os.environ.get("KEGNET_DATA_DIR", "data"))):
        networks = TABLE_NETWORKS if name == "Letter" else IMAGE_NETWORKS
        missing = {network: make for network, make in networks.items() if (name, network) not in done}
        if missing:
            module.setup()
        for network, make in missing.items():
            train = module.splits["train"]
            data, validation = train[:TRAINING_SAMPLES], train[TRAINING_SAMPLES:][:VALIDATION_SAMPLES]
            for row in measure(data, validation, make, pixels):
                stored.add({"data": name, "network": network, **row})
            stored.save()
    stored.finish(render)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
