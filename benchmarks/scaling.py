"""Growth of seconds and memory of every stage: ``python -m benchmarks.scaling``.

One axis varies at a time: samples, classes, image size, network size, generators. Every point runs in a process of its
own, with one thread and few steps. Finished points are not measured again. The results are in ``results/scaling.json``,
``scaling.md`` and ``scaling.png``.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import kegnet_pl
from benchmarks.cases import ROOT
from benchmarks.table import show_seconds, table
from kegnet_pl.api.evaluation import measure_accuracy
from kegnet_pl.benchmark import device_name
from kegnet_pl.networks import MLP
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.reporting.style import MUTED, SERIES, house_style, new_figure, short_number
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.memory import peak_memory, reset_peak_memory

OUT = ROOT / "results" / "scaling.json"

STAGES = ("compression", "generators", "sampling", "student", "evaluation")

FIGURES = {"cpu_seconds": ("CPU seconds", 0.1), "megabytes": ("memory, MB", 50.0)}
"""Figure -> its name, and the least value whose growth is judged."""

TOLERANCE = 0.2
"""An exponent of seconds or memory that exceeds that of the work by more than this is named on the page."""


@dataclass(frozen=True)
class Point:
    """One run of all stages.

    Attributes:
        samples: Samples of the student's epoch and of the evaluation.
        classes: Number of classes.
        side: Height and width of three-channel images; 0 for rows of 16 features and an MLP.
        width: Channels of the first layer of a network of three convolutions.
        arch: Network of torchvision instead of that one.
        generators: Number of generators.
        steps: Training steps of each generator.
        batch_size: Samples of a training step.
    """

    samples: int = 1_600
    classes: int = 10
    side: int = 16
    width: int = 16
    arch: str | None = None
    generators: int = 2
    steps: int = 20
    batch_size: int = 32

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (3, self.side, self.side) if self.side else (16,)

    def teacher(self) -> nn.Module:
        """Return an untrained network: its cost does not depend on its weights."""
        torch.manual_seed(0)
        if self.arch is not None:
            import torchvision

            network: nn.Module = torchvision.models.get_model(self.arch, num_classes=self.classes)
            return network.eval()
        if not self.side:
            return MLP(16, self.classes).eval()
        w = self.width
        return nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * w, 2 * w, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(2 * w, self.classes),
        ).eval()  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One quantity that varies.

    Attributes:
        title: Its name.
        points: Label -> point.
        measure: Takes a point and its number of parameters, returns the quantity.
        work: Stage -> exponent with which its work grows; 0 for the others.
    """

    title: str
    points: dict[str, Point]
    measure: Callable[[Point, int], int]
    work: dict[str, float]


_IMAGES = Point(samples=256, steps=4, batch_size=16)

AXES = {
    "samples": Axis(
        "number of samples (rows of 16 features)",
        {f"{n:,}": Point(n, side=0, batch_size=256) for n in (1_000, 10_000, 100_000, 1_000_000)},
        lambda point, _: point.samples,
        {"sampling": 1, "student": 1, "evaluation": 1},
    ),
    "classes": Axis(
        "number of classes (images of 16 x 16 pixels)",
        {f"{n:,}": Point(classes=n) for n in (2, 10, 100, 1_000)},
        lambda point, _: point.classes,
        dict.fromkeys(STAGES, 1),
    ),
    "pixels": Axis(
        "image size, in pixels",
        {f"{n} x {n}": replace(_IMAGES, side=n) for n in (16, 32, 64, 128, 224)},
        lambda point, _: point.side**2,
        dict.fromkeys(STAGES, 1),
    ),
    "parameters": Axis(
        "network size, in parameters (images of 16 x 16 pixels)",
        {short_number(10**n): replace(_IMAGES, width=w) for n, w in ((4, 13), (5, 43), (6, 136), (7, 430))},
        lambda _, parameters: parameters,
        dict.fromkeys(STAGES, 1) | {"compression": 1.5},
    ),
    "generators": Axis(
        "number of generators (images of 16 x 16 pixels)",
        {str(n): Point(generators=n) for n in (1, 2, 4, 8, 16)},
        lambda point, _: point.generators,
        {"generators": 1},
    ),
    "torchvision": Axis(
        "networks of torchvision (images of 224 x 224 pixels)",
        {
            arch: Point(64, side=224, arch=arch, steps=2, batch_size=8, generators=1)
            for arch in ("mobilenet_v3_small", "resnet18")
        },
        lambda _, parameters: parameters,
        {},
    ),
}


def run_stages(point: Point) -> dict[str, Any]:
    """Run all stages of a point; return parameters, and CPU seconds, seconds and megabytes of each stage.

    Megabytes are the peak of the stage above the memory of the process before the first one.
    """
    teacher, shape = point.teacher(), point.input_shape
    base, stages = _memory(), {}

    @contextmanager
    def measured(stage: str) -> Iterator[None]:
        reset_peak_memory()
        cpu, start = time.process_time(), time.perf_counter()
        yield
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        megabytes = max(peak_memory()["host_mb"] - base, 0.1)
        stages[stage] = {
            "cpu_seconds": round(cpu, 4), "seconds": round(seconds, 4), "megabytes": round(megabytes, 1)
        }  # fmt: skip

    options: dict[str, Any] = {"device": "cpu", "progress": False, "batch_size": point.batch_size}
    with measured("compression"):
        small = kegnet_pl.compress(
            teacher, shape, 2.0, method="tucker", samples=100, oversampling=1, progress=False
        ).network  # fmt: skip
    with measured("generators"):
        generators = kegnet_pl.train_generators(
            teacher, shape, count=point.generators, epochs=1, steps_per_epoch=point.steps, **options
        )
    with measured("sampling"):
        data = generators.dataset(point.samples)
    with measured("student"):
        student = kegnet_pl.distill(small, data, epochs=1, **options)
    with measured("evaluation"):
        x, logits = data.tensors
        measure_accuracy(student, kegnet_pl.Split(x, logits.argmax(dim=1)), "cpu")
    return {"parameters": sum(value.numel() for value in teacher.parameters()), "stages": stages}


def _memory() -> float:
    """Return the memory of this process, in megabytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def run_warm(point: Point) -> dict[str, Any]:
    """Run all stages of a point after a warm-up, with one thread."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    run_stages(replace(Point(), samples=32, side=point.side and 16, steps=1, batch_size=16))
    return run_stages(point)


def measure(axis: str, label: str) -> dict[str, Any]:
    """Measure a point in a process of its own; return its line of ``scaling.json``."""
    point = AXES[axis].points[label]
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        found = pool.submit(run_warm, point).result()
    return {
        "axis": axis, "label": label, "value": AXES[axis].measure(point, found["parameters"]), **asdict(point), **found,
        "machine": device_name(torch.device("cpu")), "versions": versions(),
        "command": command_line("benchmarks.scaling"),
    }  # fmt: skip


def exponent(rows: list[dict[str, Any]], stage: str, figure: str) -> float:
    """Return the slope of a figure over the last three points, both logarithmic; by least squares."""
    points = [(math.log(row["value"]), math.log(row["stages"][stage][figure])) for row in rows[-3:]]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def find_fast_growth(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, float]]:
    """Return axis, stage, figure and exponent where a figure grows faster than the work."""
    found = []
    for name, those in _by_axis(rows):
        for stage, figure in itertools.product(STAGES, FIGURES):
            allowed = 1 if figure == "megabytes" else AXES[name].work.get(stage, 0)
            slope = exponent(those, stage, figure)
            if slope > allowed + TOLERANCE and those[-1]["stages"][stage][figure] >= FIGURES[figure][1]:
                found.append((name, stage, figure, slope))
    return found


def _by_axis(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each axis that has exponents with its points in order, where at least two were measured."""
    for name, axis in AXES.items():
        those = sorted((row for row in rows if row["axis"] == name), key=lambda row: row["value"])
        if len(those) > 1 and axis.work:
            yield name, those


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Draw CPU seconds and memory of every stage against each axis."""
    figure, axes = new_figure(5.6, narrow=False), dict(_by_axis(rows))
    panels = figure.subplots(len(FIGURES), len(axes), squeeze=False, sharey="row")
    for column, (name, those) in enumerate(axes.items()):
        x = [row["value"] for row in those]
        for row, (key, (label, least)) in enumerate(FIGURES.items()):
            panel = panels[row][column]
            for stage, color in zip(STAGES, SERIES, strict=False):
                y = [found["stages"][stage][key] for found in those]
                panel.plot(x, y, color=color, marker="o", markersize=3.5, label=stage)
            panel.plot(x, [least * value / x[0] for value in x], color=MUTED, linestyle=":", label="linear")
            panel.set(xscale="log", yscale="log")
            panel.minorticks_off()
            ticks = [x[0], x[len(x) // 2], x[-1]]
            panel.set_xticks(ticks, [short_number(value) for value in ticks])
            panel.yaxis.set_major_formatter(lambda value, _: short_number(value))
            if not column:
                panel.set_ylabel(label)
        panels[0][column].set_title(name)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STAGES) + 1)
    return figure


_INTRODUCTION = """
Each table varies one quantity and keeps the others. Each point runs in its own process, with one thread, an untrained
network and few training steps. Generators draw the samples: sampling draws and labels a set, the student learns from it
for one epoch, and the evaluation reads it once. Cells have CPU seconds (in brackets wall-clock seconds, with other work
on the machine), and the peak memory in MB above that of the process before the first stage. The exponent is the slope
over the last three points, both axes logarithmic: 1 is linear, 0 constant. The column work has the exponent of the
operations; memory may grow linearly. Below 0.1 s or 50 MB, constant costs of a stage dominate, so such figures are not
compared with the work. Memory includes samples and networks of earlier stages, and freed memory that the allocator
keeps.
"""


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    parts = ["# How cost grows", "\n".join(textwrap.wrap(_INTRODUCTION.strip(), 120, break_on_hyphens=False))]
    parts.append("![CPU seconds and memory of every stage against each quantity](scaling.png)")
    fast = find_fast_growth(rows)
    parts.append(f"## Faster than the work\n\n{_describe(fast)}")
    for name, axis in AXES.items():
        those = sorted((row for row in rows if row["axis"] == name), key=lambda row: row["value"])
        if those:
            parts.append(f"## {axis.title[:1].upper()}{axis.title[1:]}\n\n{_table(axis, those)}")
    missing = [f"{name}, {label}" for name, axis in AXES.items() for label in axis.points
               if not any((row["axis"], row["label"]) == (name, label) for row in rows)]  # fmt: skip
    if missing:
        parts.append(f"Not measured: {'; '.join(missing)}.")
    machines = ", ".join(dict.fromkeys(row["machine"] for row in rows))
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(row["command"] for row in rows))
    parts.append(f"Machine: {machines}, one thread. Commands: {commands}")
    return "\n\n".join(parts) + "\n"


def _describe(fast: list[tuple[str, str, str, float]]) -> str:
    if not fast:
        return "No stage grows faster than its work."
    lines = (
        f"- {stage}, {FIGURES[figure][0]}, against {name}: exponent {slope:.2f}" for name, stage, figure, slope in fast
    )
    return "\n".join(lines)


def _table(axis: Axis, rows: list[dict[str, Any]]) -> str:
    growth = ["exponent", "work"] if axis.work and len(rows) > 1 else []
    lines = []
    for stage in STAGES:
        found = [row["stages"][stage] for row in rows]
        seconds = [f"{show_seconds(one['cpu_seconds'])} ({show_seconds(one['seconds'])})" for one in found]
        memory = [f"{one['megabytes']:,.0f}" for one in found]
        for what, cells, key in (("s", seconds, "cpu_seconds"), ("MB", memory, "megabytes")):
            slope = [f"{exponent(rows, stage, key):.2f}"] if growth else []
            allowed = f"{axis.work.get(stage, 0):g}" if key == "cpu_seconds" else ""
            lines.append([f"{stage}, {what}", *cells, *slope, *([allowed] if growth else [])])
    parameters = [short_number(row["parameters"]) for row in rows]
    lines.append(["parameters of the network", *parameters, *([""] * len(growth))])
    return table(["", *(row["label"] for row in rows), *growth], lines, 1)


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=AXES, help="measure only this axis")
    parser.add_argument(
        "--page", action="store_true", help="write the page of the finished points, and measure nothing"
    )
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(OUT.read_text()) if OUT.exists() else []
    finished = {(row["axis"], row["label"]) for row in rows}
    wanted = [(axis, label) for axis in ([given.only] if given.only else AXES) for label in AXES[axis].points]
    for key in [] if given.page else wanted:
        if key not in finished:
            rows.append(measure(*key))
            figures = ", ".join(f"{stage} {found['cpu_seconds']:.3g} s" for stage, found in rows[-1]["stages"].items())
            print(f"{', '.join(key)}: {figures}", file=sys.stderr, flush=True)  # noqa: T201
            atomic_write(OUT, json.dumps(rows, indent=1) + "\n")
    atomic_write(OUT.with_suffix(".md"), render(rows))
    with house_style():
        draw(rows).savefig(OUT.with_suffix(".png"), dpi=100, metadata={"Software": "kegnet_pl"})


if __name__ == "__main__":
    main()
