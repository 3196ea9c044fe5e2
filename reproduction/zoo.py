"""Networks of other libraries, compressed by factorisation, pruning and int8: ``python -m reproduction.zoo``.

Each network is trained for some passes over real data, or published. The page ``results/ZOO.md`` shows the accuracy of
the teacher, of the compressed network, of the student, and of the same student of real data (the ceiling), with size on
disk and measured speed. A network that the library refuses has the message in its line.
"""

import argparse
import os
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import kegnet_pl
from kegnet_pl.api.export import export_network
from kegnet_pl.api.quantization import OnnxNetwork, draw_samples, quantize
from kegnet_pl.benchmark import BATCH_SIZES, device_name
from kegnet_pl.data import MNIST, Letter, Pendigits, Split
from kegnet_pl.networks import MLP, as_classifier
from kegnet_pl.networks.execution import copies_to_time
from kegnet_pl.networks.validation import samples_for_trial
from kegnet_pl.reporting.style import distinct_colors, house_style, new_figure
from kegnet_pl.runtime.errors import UserError, first_line
from kegnet_pl.runtime.timing import time_in_turns
from kegnet_pl.sources import MatchedSource, Procedural, RealSource, SelectedSource
from reproduction.networks import CifarFiles, published, train_teacher
from reproduction.pages import StoredRows

TRAINING_SAMPLES = 10_000
SAMPLES, EPOCHS = 4_000, 4
"""Synthetic samples of a student, and passes over them."""

CALIBRATION = 512
"""Samples for the ranges of int8 activations."""

SECONDS, ROUNDS = 2.0, (10, 200)
"""Measuring time for each batch size, and the least and greatest number of rounds."""

METHODS = ("tucker 2x", "tucker 4x", "pruning 2x", "pruning 4x", "int8", "tucker 2x + int8", "pruning 2x + int8")
BY_LATENCY = ("tucker 2x faster", "pruning 2x faster")
"""Methods whose target is the time of a batch of 64."""


@dataclass(frozen=True)
class Case:
    """A network, its data, the mean and deviation of its pixels, and the methods that compress it."""

    data: str
    network: str
    make: Callable[[], nn.Module]
    load: Callable[[Path], dict[str, Split]]
    epochs: int = 0  # 0: published
    pixels: dict[str, Any] = field(default_factory=dict)
    methods: Sequence[str] = METHODS


def _vit() -> nn.Module:
    import timm

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    network: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
    return network


def _convnext() -> nn.Module:
    import timm

    sizes: dict[str, Any] = {"patch_size": 2, "depths": (2, 2, 4, 2), "dims": (32, 64, 128, 160)}
    network: nn.Module = timm.create_model("convnext_atto", num_classes=10, **sizes)
    return network


def _torchvision(arch: str) -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=10)
    return network


def _hugging_face() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    make: Any = ViTConfig  # takes further arguments
    return ViTForImageClassification(make(**sizes, image_size=32, patch_size=8, num_channels=1, num_labels=10))


def _group_norm() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, maps in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, maps, 3, padding=1), nn.GroupNorm(8, maps), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def make_signal_network() -> nn.Module:
    """Return an untrained network for signals ``(B, 2, length)``."""
    layers: list[nn.Module] = []
    for channels, maps in ((2, 32), (32, 64), (64, 64)):
        layers += [nn.Conv1d(channels, maps, 3, padding=1), nn.BatchNorm1d(maps), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))


def _table(name: str, folder: Path) -> dict[str, Split]:  # noqa: ARG001
    """Return a table that ships with scikit-learn, standardised by its training rows; a row in four is for the test."""
    from sklearn import datasets

    content = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(0).permutation(len(content.target))
    x, y = torch.tensor(content.data[order], dtype=torch.float32), torch.tensor(content.target[order])
    test = len(y) // 4
    mean, std = x[test:].mean(dim=0), x[test:].std(dim=0)
    x = (x - mean) / std
    return {"train": Split(x[test:], y[test:]), "test": Split(x[:test], y[:test])}


def read_signals(folder: Path) -> dict[str, Split]:
    """Return Pendigits as signals of two channels: eight points (x, y) of a pen."""
    splits = _splits(Pendigits(root=folder))
    return {
        part: Split(split.x.reshape(-1, 8, 2).transpose(1, 2).contiguous(), split.y) for part, split in splits.items()
    }


def _splits(data: Any) -> dict[str, Split]:
    data.setup()
    return {part: data.splits[part] for part in ("train", "test")}


def cases() -> Iterator[Case]:
    """Yield the networks, the small ones first; the last two are published."""
    for name, features, classes in (("breast_cancer", 30, 2), ("wine", 13, 3)):
        yield Case(name, "MLP", partial(MLP, features, classes, width=64, blocks=2), partial(_table, name), 8)
    yield Case("Letter", "MLP", lambda: MLP(16, 26, width=128, blocks=3), lambda f: _splits(Letter(root=f)), 8)
    yield Case("Pendigits", "Conv1d, batch norm", make_signal_network, read_signals, 8)
    digits = {"mean": 0.1307, "std": 0.3081}
    mnist: dict[str, Any] = {"download": False, "mean": [0.1307], "std": [0.3081], "validation": 1}
    yield Case("MNIST", "ViT (transformers)", _hugging_face, lambda f: _splits(MNIST(root=f, **mnist)), 6, digits)
    colours: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

    def cifar(folder: Path) -> dict[str, Split]:
        return _splits(CifarFiles(folder / "cifar10", **colours))

    yield Case("CIFAR-10", "CNN, group norm", _group_norm, cifar, 8, colours)
    mobile, resnet = (lambda: _torchvision("mobilenet_v3_small")), (lambda: _torchvision("resnet18"))
    yield Case("CIFAR-10", "MobileNetV3-small (torchvision)", mobile, cifar, 8, colours)
    yield Case("CIFAR-10", "ConvNeXt (timm)", _convnext, cifar, 8, colours)
    yield Case("CIFAR-10", "ViT (timm)", _vit, cifar, 8, colours)
    yield Case("CIFAR-10", "ResNet18 (torchvision)", resnet, cifar, 6, colours, METHODS + BY_LATENCY)
    for depth in (20, 56):
        yield Case("CIFAR-10", f"ResNet{depth}, published", partial(published, depth), cifar, 0, colours)


def teach(case: Case, data: dict[str, Split]) -> nn.Module:
    """Return the trained teacher of a case."""
    if not case.epochs:
        return case.make()
    train = data["train"][:TRAINING_SAMPLES]
    return train_teacher(case.make, train, 0, epochs=case.epochs)


def compress(case: Case, teacher: nn.Module, data: dict[str, Split], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compress a teacher by a method and train the student; yield the figures, then those of the student in int8.

    Figures are accuracies in [0, 1], bytes, speed-ups, and what the library said.
    """
    shape, start = tuple(data["train"].x.shape[1:]), time.perf_counter()
    how, target = name.split()[0], float(name.split()[1].removesuffix("x"))
    by: Any = "latency" if name in BY_LATENCY else "parameters"
    found: dict[str, Any] = {"teacher": kegnet_pl.measure_accuracy(teacher, data["test"])}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            small = kegnet_pl.compress(teacher, shape, target, method=how, by=by, **case.pixels, progress=False)  # type: ignore[arg-type]
        except (UserError, ValueError) as error:
            yield name, found | {"said": [first_line(error)]}
            return
    found["said"] = [str(one.message) for one in caught if "synthetic samples" in str(one.message)]
    found |= {"T": kegnet_pl.measure_accuracy(small.network, data["test"]), "agreement": small.agreement}
    found["ratio"] = small.report.parameters_before / small.report.parameters_after
    options: dict[str, Any] = {"epochs": EPOCHS, "lr_scheduler": "cosine", "progress": False}
    source = MatchedSource(_source(case, teacher, shape), as_classifier(teacher, shape))
    samples = kegnet_pl.SyntheticDataset(source, teacher, SAMPLES)
    student = kegnet_pl.distill(small.network, samples, **options)
    found["seconds"] = time.perf_counter() - start
    real = kegnet_pl.SyntheticDataset(RealSource(data["train"].x[:TRAINING_SAMPLES]), teacher, SAMPLES)
    ceiling = kegnet_pl.distill(small.network, real, **options)
    found |= {
        key: kegnet_pl.measure_accuracy(one, data["test"]) for key, one in (("student", student), ("ceiling", ceiling))
    }
    yield name, found | _measure_size(teacher, student, shape)
    if f"{name} + int8" in case.methods:
        yield (
            f"{name} + int8",
            {"ratio": found["ratio"]} | quantise(case, teacher, student, data, found["seconds"]),
        )


def quantise(
    case: Case, teacher: nn.Module, network: nn.Module, data: dict[str, Split], seconds: float = 0.0
) -> dict[str, Any]:
    """Return the figures of a network in int8; ``seconds`` is the time that its training took."""
    shape, start = tuple(data["train"].x.shape[1:]), time.perf_counter()
    found: dict[str, Any] = {"teacher": kegnet_pl.measure_accuracy(teacher, data["test"]), "said": []}
    with tempfile.TemporaryDirectory() as folder:
        try:
            calibration, _ = draw_samples(_source(case, teacher, shape), CALIBRATION, 0)
            small = quantize(network, Path(folder) / "int8.onnx", shape, calibration)
        except (UserError, ValueError) as error:
            return found | {"said": [first_line(error)]}
        found["seconds"] = seconds + time.perf_counter() - start
        return (
            found | {"student": kegnet_pl.measure_accuracy(small, data["test"])} | _measure_size(teacher, small, shape)
        )


def _source(case: Case, teacher: nn.Module, shape: tuple[int, ...]) -> SelectedSource:
    return SelectedSource(Procedural(shape, **case.pixels), as_classifier(teacher, shape))


def run(
    case: Case, teacher: nn.Module, data: dict[str, Split], missing: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the method and the figures of the missing lines of a network."""
    if "int8" in missing:
        yield "int8", quantise(case, teacher, teacher, data)
    for method in missing:
        if "int8" not in method:
            yield from compress(case, teacher, data, method)


def _measure_size(teacher: nn.Module, student: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return bytes of the ONNX files of teacher and student, and the speed-ups; int8 is timed against ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        (exported,) = export_network(teacher, Path(folder), shape, ["onnx"])
        if isinstance(student, OnnxNetwork):
            networks: dict[str, nn.Module] = {"teacher": OnnxNetwork(exported.path), "student": student}
            size = student.size
        else:
            networks = {"teacher": teacher, "student": student}
            (written,) = export_network(student, Path(folder) / "student", shape, ["onnx"])
            size = written.size
        speedups = {str(size): round(_speedup(list(networks.values()), shape, size), 2) for size in BATCH_SIZES}
    machine = f"{device_name(torch.device('cpu'))}, threads: {torch.get_num_threads()}"
    return {"teacher_bytes": exported.size, "bytes": size, "speedups": speedups, "machine": machine}


@torch.no_grad()
def _speedup(networks: Sequence[nn.Module], shape: tuple[int, ...], batch_size: int) -> float:
    """Return the shortest time of the first network / that of the second; other work only makes times longer."""
    x = samples_for_trial(shape, batch_size)
    calls = [(network.eval(), x) for network in copies_to_time(networks, shape)]
    times = time_in_turns(calls, shortest=2e-3, rounds=ROUNDS, seconds=SECONDS)
    first, second = (min(found) for found in times)
    return first / second


def draw_front(rows: list[dict[str, Any]]) -> Figure:
    """Draw the points of accuracy that students lose against their size on disk, and against their speed."""
    figure = new_figure(4.2, narrow=False)
    axes = figure.subplots(1, 2, sharey=True)
    finished = [row for row in rows if "student" in row]
    methods = [method for method in METHODS + BY_LATENCY if any(row["method"] == method for row in finished)]
    for method, color in zip(methods, distinct_colors([None] * len(methods)), strict=True):
        those = [row for row in finished if row["method"] == method]
        lost = [100 * (row["student"] - row["teacher"]) for row in those]
        marker = "s" if "int8" in method else "^" if "pruning" in method else "o"
        for axis, values in (
            (axes[0], [row["teacher_bytes"] / row["bytes"] for row in those]),
            (axes[1], [row["speedups"]["64"] for row in those]),
        ):
            axis.scatter(values, lost, color=color, marker=marker, s=28, label=method, alpha=0.85)
    axes[0].set(xlabel="times smaller on disk (ONNX)", ylabel="student - teacher, points of test accuracy")
    axes[1].set(xlabel="speed-up at batches of 64 (int8: in ONNX Runtime)")
    for axis in axes:
        axis.set_yscale("symlog", linthresh=2)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.axvline(1, color="grey", linewidth=0.8)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].set_title("accuracy and size of each network")
    axes[1].set_title("accuracy and speed")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


_INTRODUCTION = f"""
`compress(teacher, shape, target, method=...)`, then `distill` on {SAMPLES:,} procedural samples that the teacher
selects, and that are matched to its batch norm: {EPOCHS} passes, cosine schedule, a learning rate that short
trainings choose. int8: ONNX Runtime's quantiser, calibrated on {CALIBRATION} selected samples; `+ int8` quantises the
student of the line above. Test accuracy in %. Teachers of seed 0 are trained briefly on at most {TRAINING_SAMPLES:,}
samples, or published. Prior knowledge in the samples: teacher + procedural; of the ceiling, the same student: real
data. Compressed: before any training. Agreement: share of held-out synthetic samples to which the compressed network
and the teacher give the same class. Faster: the target is the time of a batch of 64, measured in PyTorch, instead of
the number of parameters. Smaller: bytes of the teacher's ONNX file / bytes of the student's. Speed-up: time of the
teacher / time of the student for batches of 1 and 64, in PyTorch, both in channels-last memory; for int8 both in ONNX
Runtime. Networks take turns; a time is the shortest of at least ten rounds. Min: minutes from the teacher to the
student. An earlier version of this table showed that the former default learning rate was too high; the present
default was chosen on validation data (decision 5). Nothing else was chosen with this table. In earlier versions,
speed-ups of convolutional networks were too high: students were in channels-last memory, teachers in the default
layout.
"""


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    names, figures = ["data", "network", "method"], ["teacher", "compressed", "student", "ceiling", "agreement"]
    columns = [*names, *figures, "smaller", "speed-up", "min"]
    lines = [
        "# Networks of other libraries: factorisation, pruning, int8",
        "",
        *textwrap.wrap(_INTRODUCTION.strip(), 120, break_on_hyphens=False),
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join(['---'] * 3 + ['---:'] * (len(columns) - 3))} |",
    ]
    wanted = {(case.data, case.network): case.methods for case in cases()}
    order = list(wanted)
    refused: list[str] = []

    def position(row: dict[str, Any]) -> tuple[int, int]:
        key = (row["data"], row["network"])
        return (order.index(key) if key in order else len(order)), (METHODS + BY_LATENCY).index(row["method"])

    for row in sorted(rows, key=position):
        cells = [row["data"], row["network"], row["method"]]
        for name in ("teacher", "T", "student", "ceiling", "agreement"):
            cells.append("" if row.get(name) is None else f"{100 * row[name]:.1f}")
        if "bytes" in row:
            cells.append(f"{row['teacher_bytes'] / row['bytes']:.2f}x")
            cells.append(", ".join(f"{value:.2f}" for value in row["speedups"].values()))
            cells.append(f"{row['seconds'] / 60:.1f}")
        else:
            cells += ["refused", "", ""]
            refused.append(f"- {row['network']}, {row['method']}: {row['said'][0]}")
        lines.append(f"| {' | '.join(cells)} |")
    finished = [row for row in rows if "student" in row]
    good = [row for row in finished if row["teacher"] - max(row.get("T", 0.0), row["student"]) <= 0.02]
    slower = [row for row in finished if list(row["speedups"].values())[-1] < 0.95]
    lines += [
        "",
        f"{len(good)} of {len(finished)} are within 2 points of their teachers. {len(slower)} of {len(finished)} are "
        f"slower than their teachers at batches of 64.",
        "",
        "![Accuracy against size on disk and against time](zoo.png)",
    ]
    lines += ["", "What the library refused:", "", *refused] if refused else []
    done = {(row["data"], row["network"], row["method"]) for row in rows}
    missing = [key for key in order if any((*key, method) not in done for method in wanted[key])]
    if missing:
        lines += ["", f"Not run, or not to the end: {', '.join(f'{data}, {network}' for data, network in missing)}."]
    lines += [
        "",
        f"Machine: {', '.join(dict.fromkeys(row['machine'] for row in finished))}. Minutes and speed-ups: with ",
    ]
    lines[-1] += "other work on the machine."
    lines += ["", f"Commands: {', '.join(f'`{command}`' for command in dict.fromkeys(row['command'] for row in rows))}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; finished lines are not run again."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.zoo", description=__doc__)
    parser.add_argument("--only", help="only networks whose name begins like this")
    parser.add_argument("--page", action="store_true", help="write the page of the finished lines, and run nothing")
    options = parser.parse_args()
    command = "python -m reproduction.zoo" + (f" --only '{options.only}'" if options.only is not None else "")
    stored = StoredRows("zoo", command)
    for case in () if options.page else cases():
        available = case.epochs or "KEGNET_REFERENCE_DIR" in os.environ
        if not case.network.startswith(options.only or "") or not available:
            continue
        finished = {row["method"] for row in stored.rows if (row["data"], row["network"]) == (case.data, case.network)}
        missing = [method for method in case.methods if method not in finished]
        if not missing:
            continue
        data = case.load(Path(os.environ.get("KEGNET_DATA_DIR", "data")))
        teacher = teach(case, data)
        for method, found in run(case, teacher, data, missing):
            stored.add({"data": case.data, "network": case.network, "method": method, **found})
            stored.save()
    if stored.rows:
        with house_style():
            picture = stored.path.with_name("zoo.png")
            draw_front(stored.rows).savefig(picture, dpi=100, metadata={"Software": "kegnet_pl"})
    stored.finish(render)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
