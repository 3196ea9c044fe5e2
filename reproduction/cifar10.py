"""Students of published networks of CIFAR-10, with the presets of the product: ``python -m reproduction.cifar10``.

Each run compresses a network without data, and trains two students: on procedural samples, and on real images, which is
the ceiling. The page is ``results/CIFAR10.md``.
``KEGNET_DATA_DIR`` has the images, ``KEGNET_REFERENCE_DIR/teachers`` the weights.
"""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from reproduction.best import CEILING
from reproduction.commands import joined, present
from reproduction.jobs import weights
from reproduction.pages import StoredRows
from reproduction.paths import ROOT
from reproduction.records import Rows, read_runs
from reproduction.runner import Run, run_missing

COMMAND = "python -m reproduction.cifar10"
DEPTHS, TARGETS = (20, 56), (2, 4, 8)
STUDENT = "T+Procedural"
_FILES = "${oc.env:KEGNET_DATA_DIR}/cifar10/cifar10"
_DATA = (
    "data=files", "data.input_shape=[3,32,32]", "data.classes=10", f"data.train={_FILES}_train_head10000.npz",
    f"data.test={_FILES}_test.npz", "data.mean=[0.485,0.456,0.406]", "data.std=[0.229,0.224,0.225]",
)  # fmt: skip
_COLUMNS = ("network", "target", "fewer parameters", "teacher", "untrained", "student", "ceiling", "minutes")
_TEXT = """
The presets `experiment=cifar10_resnet20` and `cifar10_resnet56` factorise a published network without data, and train
the student on procedural samples. Cells: accuracy in % on the 10,000 test images. No setting was chosen with this
table. *Untrained*: the compressed network. *Student*: trained on 8,000 procedural samples (prior knowledge in them:
teacher + procedural). *Ceiling*: the same network, trained with the same settings on 8,000 real images (prior
knowledge: real data); its samples are not mixed. *Minutes*: from the teacher to the student, on one core, with other
work on the machine.
"""


def make_runs() -> dict[tuple[int, int], Run]:
    """Return the runs, by depth of the ResNet and target."""
    runs = {}
    for depth in DEPTHS:
        for target in TARGETS:
            overrides = (
                f"experiment=cifar10_resnet{depth}", *weights(f"cifar10_resnet{depth}.th"), *_DATA,
                f"compression.target={target}", "sources=[procedural,real]",
            )  # fmt: skip
            runs[depth, target] = Run(f"resnet{depth}-{target}x", overrides, (STUDENT, CEILING), (str(depth),))
    return runs


def to_row(rows: Rows) -> dict[str, Any]:
    """Return what the table shows of the rows of a finished run: accuracies in [0, 1], agreement and minutes."""
    by_method = {row["method"]: row for row in rows}
    student = by_method[STUDENT]
    seconds = sum(seconds for stage, seconds in student["stage_seconds"].items() if stage != "evaluation")
    return {
        "ratio": student["compression_ratio"],
        "accuracy": {method: row["accuracy"] for method, row in by_method.items()},
        "agreement": student["agreement"]["mean"],
        "learning_rate": student["learning_rate"],
        "minutes": round(seconds / 60, 1),
        "run": present(student["command"]),
    }


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    lines = ["# Students of published networks of CIFAR-10", "", *textwrap.wrap(_TEXT.strip(), 120), ""]
    lines += [f"| {' | '.join(_COLUMNS)} |", f"| --- |{' ---: |' * (len(_COLUMNS) - 1)}"]
    found = {(row["depth"], row["target"]): row for row in rows}
    for depth, target in make_runs():
        row = found.get((depth, target))
        if row is None:
            lines.append(f"| ResNet{depth} | {target}x | not run |{' |' * (len(_COLUMNS) - 3)}")
            continue
        accuracies = [f"{100 * row['accuracy'][name]:.1f}" for name in ("teacher", "T", STUDENT, CEILING)]
        lines.append(
            f"| ResNet{depth} | {target}x | {row['ratio']:.2f}x | {' | '.join(accuracies)} | {row['minutes']:.0f} |"
        )
    sweeps = joined((row["run"] for row in rows), "compression.target")
    lines += ["", f"Command: `{COMMAND}`. It runs:", "", "```sh", *sweeps, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description="Students of published networks of CIFAR-10.")
    parser.add_argument("--depth", type=int, choices=DEPTHS, default=20, help="depth of the network (default: 20)")
    depth = parser.parse_args().depth
    stored, folder = StoredRows("cifar10", COMMAND), ROOT / "outputs" / "reproduction" / "cifar10"
    done = {(row["depth"], row["target"]) for row in stored.rows}
    runs = {key: run for key, run in make_runs().items() if key[0] == depth and key not in done}
    records = folder / "runs.jsonl"
    failed = run_missing(list(runs.values()), records, folder, at_once=1)
    finished = read_runs(records)
    for (depth, target), run in runs.items():
        if run.done(finished):
            stored.add({"depth": depth, "target": target, **to_row(finished[run.name])})
    stored.finish(render)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
