"""Speed of the paper's networks against their teachers: ``python -m reproduction.speed``.

The plans of the paper have three layers for each compressed one; redundant factors can be merged; and ranks can be
chosen by measured time. The page ``results/SPEED.md`` shows the speed-up of each, and the accuracy before any training.
A second table compares memory layouts. It needs the released teachers (KEGNET_REFERENCE_DIR) and the test data
(KEGNET_DATA_DIR).
"""

import argparse
import os
import statistics
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import nn

import kegnet_pl
from kegnet_pl.api.weights import load_weights
from kegnet_pl.benchmark import BATCH_SIZES, measure_latency
from kegnet_pl.compression import Compressed
from kegnet_pl.data import MNIST, SVHN, Letter, Split
from kegnet_pl.networks import LeNet5, ResNet14
from kegnet_pl.networks.execution import copy_in_channels_last
from kegnet_pl.networks.validation import samples_for_trial
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.objects import build, make_plan
from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.timing import time_in_turns
from kegnet_pl.settings import RunSettings
from reproduction.pages import write_record
from reproduction.paths import ROOT
from reproduction.runner import say

PLANS = {"mnist_lenet": ("option1", "option2", "option3"), "svhn_resnet": ("option1", "option2", "option3"),
         "letter_mlp": ("option1",)}  # fmt: skip
"""Experiment -> its plans."""

TARGETS = (2.0, 1.5, 1.2)
"""Targets of latency; the first that can be reached counts."""

METHODS: tuple[Literal["tucker", "pruning"], ...] = ("tucker", "pruning")
"""Methods with a target of latency."""

SECONDS = 2.0
"""Measuring time for each batch size."""


def read_settings(experiment: str, *overrides: str) -> RunSettings:
    """Return the settings of an experiment."""
    from hydra import compose, initialize_config_module

    given = [f"experiment={experiment}", "teacher.weights=none", *overrides]
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        return RunSettings.from_config(to_plain(compose("config", overrides=given)))


def read_teacher(experiment: str) -> nn.Module:
    """Return the released teacher of an experiment, or the stored one of seed 0."""
    network: nn.Module = build(read_settings(experiment).teacher.network)
    released = {"mnist_lenet": "mnist.pth.tar", "svhn_resnet": "svhn.pth.tar"}
    if experiment in released:
        path = Path(os.environ["KEGNET_REFERENCE_DIR"]) / "teachers" / released[experiment]
    else:
        path = ROOT / "results" / "teachers" / f"{experiment}-seed0" / "network.safetensors"
    load_weights(network, path)
    return network.eval()


def compress(experiment: str, teacher: nn.Module) -> Iterator[tuple[str, Compressed | str]]:
    """Yield the plans of a network by name, and the compressed networks, or the reason why there is none."""
    settings = read_settings(experiment)
    shape = tuple(settings.data.input_shape)
    for option in PLANS[experiment]:
        for fold in ("false", "true"):
            plan = make_plan(read_settings(experiment, f"compression={option}", f"compression.fold={fold}").compression)
            yield f"{option}, {'merged factors' if fold == 'true' else 'as published'}", plan.apply(teacher, shape)
    given = settings.data.model_extra or {}
    pixels = {name: given[name] for name in ("mean", "std") if len(shape) > 1}
    for method in METHODS:
        yield compress_by_latency(teacher, shape, method, pixels)


def compress_by_latency(
    teacher: nn.Module, shape: tuple[int, ...], method: Literal["tucker", "pruning"], pixels: dict[str, Any]
) -> tuple[str, Compressed | str]:
    """Return the name of a plan, and the network at the first target that can be reached, or the reason why none is."""
    found: Compressed | str = ""
    for target in TARGETS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the agreement is in the page
                found = kegnet_pl.compress(
                    teacher, shape, target, method=method, by="latency", progress=False, **pixels
                )
            break
        except ValueError as error:
            found = str(error)
    return f"by latency, {method}, target {target:g}x", found


def measure(experiment: str, teacher: nn.Module, test: Split, name: str, small: Compressed | str) -> dict[str, Any]:
    """Return the figures of a compressed network."""
    found: dict[str, Any] = {"experiment": experiment, "plan": name, "versions": versions()}
    if isinstance(small, str):
        return found | {"refused": small}
    shape = tuple(test.x.shape[1:])
    report = measure_latency({"teacher": teacher, "student": small.network}, shape, device="cpu", seconds=SECONDS)
    accuracies = [kegnet_pl.measure_accuracy(network, test) for network in (teacher, small.network)]
    return found | {
        "ratio": small.report.parameters_before / small.report.parameters_after,
        "macs": small.report.macs_before / small.report.macs_after,
        "speedups": {str(row.batch_size): round(row.speedup, 2) for row in report.rows if row.network == "student"},
        "machine": report.where,
        "teacher": accuracies[0],
        "T": accuracies[1],
    }


def measure_layouts() -> Iterator[dict[str, Any]]:
    """Yield the time of networks in the default memory layout / in channels-last memory."""
    networks: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "LeNet5": (LeNet5(), (1, 32, 32)),
        "ResNet14": (ResNet14(3, 10), (3, 32, 32)),
        "resnet18 (torchvision)": (torchvision.models.resnet18(), (3, 64, 64)),
        "mobilenet_v3_small (torchvision)": (torchvision.models.mobilenet_v3_small(), (3, 64, 64)),
    }
    for name, (network, shape) in networks.items():
        other = copy_in_channels_last(network.eval(), shape)
        assert other is not None
        found = {}
        for size in BATCH_SIZES:
            x = samples_for_trial(shape, size)
            with torch.no_grad():
                times = time_in_turns([(network, x), (other, x)], shortest=2e-3, rounds=(10, 200), seconds=SECONDS)
            found[str(size)] = round(statistics.median(a / b for a, b in zip(*times, strict=True)), 2)
        yield {"network": name, "shape": shape, "layout_speedups": found, "versions": versions()}


_INTRODUCTION = """
`python -m reproduction.speed` writes this page. The speed-up is the time of the teacher / the time of the compressed
network in PyTorch, for batches of 1 and 64, both in channels-last memory. It is the median of measurements in turns.
The columns *teacher* and *T* have the test accuracy in %; T is the compressed network before any training. There are
three kinds of plans. *As published*: each compressed layer becomes three layers. *Merged factors*: the ranks are the
same, and a dense layer becomes two layers (`compression.fold=true`). *By latency*: ranks, or channels for pruning,
are chosen by function and measured time for batches of 64; the target is the first of 2x, 1.5x and 1.2x that can be
reached.
"""


_LAYOUTS = """
Time of an uncompressed network in PyTorch's default layout / its time in channels-last memory
(`network.to(memory_format=torch.channels_last)`), with random weights. Values are the same in both layouts.
"""


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    names = ["experiment", "plan", "fewer parameters", "fewer MACs", "speed-up at 1", "speed-up at 64", "teacher", "T"]
    lines = ["# Speed of the paper's networks", "", *textwrap.wrap(_INTRODUCTION.strip(), 120), ""]
    lines += [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * 2 + ['---:'] * 6)} |"]
    layouts = [row for row in rows if "layout_speedups" in row]
    plans = [row for row in rows if "plan" in row]
    for row in plans:
        cells = [row["experiment"], row["plan"]]
        if "refused" in row:
            cells += ["out of reach", *[""] * 5]
        else:
            cells += [
                f"{row['ratio']:.2f}x",
                f"{row['macs']:.2f}x",
                *(f"{one:.2f}x" for one in row["speedups"].values()),
            ]
            cells += [f"{100 * row['teacher']:.1f}", f"{100 * row['T']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] + [f"- {row['experiment']}, {row['plan']}: {row['refused']}" for row in plans if "refused" in row]
    machines = ", ".join(dict.fromkeys(row["machine"] for row in rows if "machine" in row))
    lines += ["", "## Memory layout", "", *textwrap.wrap(_LAYOUTS.strip(), 120), ""]
    lines += ["| network | input | speed-up at 1 | speed-up at 64 |", "| --- | --- | ---: | ---: |"]
    for row in layouts:
        shape = " x ".join(map(str, row["shape"]))
        speedups = " | ".join(f"{one:.2f}x" for one in row["layout_speedups"].values())
        lines.append(f"| {row['network']} | {shape} | {speedups} |")
    return "\n".join([*lines, "", f"Machine: {machines}."]) + "\n"


def main() -> int:
    """Run the command line."""
    argparse.ArgumentParser(prog="python -m reproduction.speed", description=__doc__).parse_args()
    folder = Path(os.environ.get("KEGNET_DATA_DIR", "data"))
    modules = {
        "mnist_lenet": MNIST(root=folder, mean=[0.1307], std=[0.3081], validation=1),
        "svhn_resnet": SVHN(root=folder, mean=[0.4378, 0.4439, 0.4729], std=[0.1980, 0.2011, 0.1971], validation=1),
        "letter_mlp": Letter(root=folder),
    }
    rows, path = [], ROOT / "results" / "speed.json"
    for experiment, data in modules.items():
        teacher = read_teacher(experiment)
        for name, small in compress(experiment, teacher):
            rows.append(measure(experiment, teacher, data.part("test"), name, small))
            say(str({key: value for key, value in rows[-1].items() if key != "versions"}))
    for row in measure_layouts():
        rows.append(row)
        say(str({key: value for key, value in row.items() if key != "versions"}))
    write_record(path, rows, render(rows))
    say(f"Written: {display_path(path)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
