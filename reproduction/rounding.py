"""Multiples of ranks and channels for targets of latency, on validation data: ``python -m reproduction.rounding``.

Networks of :mod:`reproduction.networks` for Fashion-MNIST are compressed to targets of latency with different
``round_to``. The page ``results/ROUNDING.md`` shows validation accuracy and measured speed-up. No test data is used.
"""

import os
import textwrap
import warnings
from pathlib import Path
from typing import Any

import kegnet_pl
from kegnet_pl.benchmark import measure_latency
from kegnet_pl.runtime.errors import first_line
from reproduction.agreement_levels import METHODS, SEED, TRAINING_SAMPLES, VALIDATION_SAMPLES
from reproduction.networks import IMAGE_NETWORKS, load_data, train_teacher
from reproduction.pages import StoredRows

COMMAND = "python -m reproduction.rounding"
NETWORKS, TARGETS, MULTIPLES = ("CNN", "CNN, batch norm", "ResNet, batch norm"), (1.5, 2.0), (1, 8, 16)

_INTRODUCTION = f"""
Networks for Fashion-MNIST are compressed with `by="latency"` (batches of 64) and several values of `round_to`, without
training. Cells: validation accuracy in %, and in brackets the speed-up that was measured afterwards. Teachers of seed
{SEED} have {TRAINING_SAMPLES:,} training samples; the accuracy is that of {VALIDATION_SAMPLES:,} other training
samples. Prior knowledge in the samples of the compression: teacher + procedural. There is no ceiling, since nothing is
trained.
"""


def measure(teacher: Any, validation: Any, pixels: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return validation accuracy and speed-up of a compressed network, or the reason why there is none."""
    shape = tuple(validation.x.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # low agreement is expected
        try:
            small = kegnet_pl.compress(teacher, shape, by="latency", progress=False, **pixels, **options)
        except ValueError as error:
            return {"refused": first_line(error)}
    report = measure_latency({"teacher": teacher, "student": small.network}, shape, batch_sizes=[64], seconds=2.0)
    accuracy = kegnet_pl.measure_accuracy(small.network, validation)
    return {"accuracy": accuracy, "speedup": round(report.rows[1].speedup, 2), "machine": report.where}


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    titles = ["network", "teacher", "method", "target", *(f"round_to={multiple}" for multiple in MULTIPLES)]
    lines = ["# Multiples of ranks and channels for targets of latency", ""]
    lines += [*textwrap.wrap(_INTRODUCTION.strip(), 120), ""]
    lines += [f"| {' | '.join(titles)} |", f"| --- | ---: | --- | ---: |{' ---: |' * len(MULTIPLES)}"]
    for network in NETWORKS:
        for method in METHODS:
            for target in TARGETS:
                found = {
                    row["round_to"]: row
                    for row in rows
                    if (row["network"], row["method"], row["target"]) == (network, method, target)
                }
                if not found:
                    continue
                teacher = next(iter(found.values()))["teacher"]
                cells = [network, f"{100 * teacher:.1f}", method, f"{target:g}x"]
                for multiple in MULTIPLES:
                    row = found.get(multiple, {"refused": ""})
                    refused = "refused" in row
                    cells.append("out of reach" if refused else f"{100 * row['accuracy']:.1f} ({row['speedup']:.2f}x)")
                lines.append(f"| {' | '.join(cells)} |")
    machines = ", ".join(dict.fromkeys(row["machine"] for row in rows if "machine" in row))
    return "\n".join([*lines, "", f"Machine: {machines}, with other work on it. Command: `{COMMAND}`"]) + "\n"


def main() -> int:
    """Measure networks that are not measured yet, and write the page."""
    stored = StoredRows("rounding", COMMAND, SEED)
    done = {row["network"] for row in stored.rows}
    folder = Path(os.environ.get("KEGNET_DATA_DIR", "data"))
    module, pixels = next((module, pixels) for name, module, pixels in load_data(folder) if name == "Fashion")
    module.setup()
    train = module.splits["train"]
    validation = train[TRAINING_SAMPLES:][:VALIDATION_SAMPLES]
    for network in NETWORKS:
        if network in done:
            continue
        teacher = train_teacher(IMAGE_NETWORKS[network], train[:TRAINING_SAMPLES], SEED)
        accuracy = kegnet_pl.measure_accuracy(teacher, validation)
        for method in METHODS:
            for target in TARGETS:
                for multiple in MULTIPLES:
                    options: dict[str, Any] = {"method": method, "target": target, "round_to": multiple}
                    row = {"network": network, "teacher": accuracy, **options}
                    stored.add(row | measure(teacher, validation, pixels, **options))
        stored.save()
    stored.finish(render)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
