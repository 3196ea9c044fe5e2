"""Quantisation to int8 without data, calibrated on several kinds of samples: ``python -m reproduction.int8``.

The page ``results/INT8.md`` shows the accuracy of networks in int8, calibrated on noise, on samples of generators, on
procedural samples, and on the real training data (the ceiling), and with weights alone in int8. A second table has the
methods of calibration, measured on real training data, by which the default was chosen. KEGNET_DATA_DIR holds MNIST,
Letter and CIFAR-10; the published teachers are in KEGNET_REFERENCE_DIR/teachers.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.export import export_network, import_onnx
from kegnet_pl.api.quantization import OnnxNetwork, draw_samples, quantize
from kegnet_pl.api.weights import load_weights
from kegnet_pl.benchmark import device_name
from kegnet_pl.compression import measure_agreement
from kegnet_pl.data import MNIST, DigitsDataModule, Letter, Split
from kegnet_pl.networks import LeNet5
from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.reporting.tables import LOW_INT8_AGREEMENT
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.timing import time_in_turns
from kegnet_pl.settings import QuantizationSettings
from kegnet_pl.sources import NormalNoise, Procedural, RealSource, SyntheticSource
from reproduction.networks import CifarFiles, published, train_teacher
from reproduction.pages import read_record, write_record
from reproduction.paths import ROOT
from reproduction.runner import say

SEEDS = 3
"""Seeds of the calibration samples."""

TRAINING_SAMPLES = 4_000
"""Most real training samples that methods of calibration are compared on."""

SECONDS = 20.0
"""Measuring time of the speed for each batch size, of all networks together."""

GENERATORS: dict[str, Any] = {"count": 5, "epochs": 2, "steps_per_epoch": 50, "batch_size": 256, "lr": 1e-3}
"""Generators as short as the demo's."""

METHODS = [(method, count) for method in ("minmax", "percentile", "entropy") for count in (64, 256, 1024)]
"""Methods of calibration and numbers of samples that are compared."""

BATCHES = (1, 64)

WEIGHTS, PYTORCH = "weights alone", "PyTorch"


@dataclass(frozen=True)
class Case:
    """A trained network with its data.

    Attributes:
        pixels: Mean and deviation of the pixels, of images.
        generators: True to train generators.
    """

    network: nn.Module
    data: Mapping[str, Split]
    pixels: dict[str, Any] = field(default_factory=dict)
    generators: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.data["test"].x.shape[1:])

    def sources(self) -> dict[str, SyntheticSource]:
        """Return the sources of calibration samples by name; generators are trained."""
        found: dict[str, SyntheticSource] = {"noise": NormalNoise(self.shape)}
        if self.generators:
            trained = kegnet_pl.train_generators(self.network, self.shape, progress=False, device="cpu", **GENERATORS)
            found["generators"] = trained.source()
        return found | {"procedural": self.procedural(), "real": RealSource(self.data["train"].x)}

    def procedural(self) -> SyntheticSource:
        """Return procedural samples, which need neither data nor training."""
        return Procedural(self.shape, **self.pixels)


def _digits() -> Case:
    data = DigitsDataModule()
    data.setup()
    network = train_teacher(LeNet5, data.splits["train"], seed=0)
    return Case(network, data.splits, {"mean": data.mean, "std": data.std}, generators=True)


def _mnist(folder: Path) -> Case:
    pixels = {"mean": [0.1307], "std": [0.3081]}
    data = MNIST(root=folder, download=False, validation=1, **pixels)
    data.setup()
    network = LeNet5()
    load_weights(network, Path(os.environ["KEGNET_REFERENCE_DIR"]) / "teachers" / "mnist.pth.tar")
    return Case(network.eval(), data.splits, pixels, generators=True)


def _letter(folder: Path) -> Case:
    data = Letter(root=folder)
    data.setup()
    return Case(load_network(ROOT / "results" / "teachers" / "letter_mlp-seed0"), data.splits)


def _cifar10(folder: Path) -> Case:
    pixels = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data = CifarFiles(folder / "cifar10", **pixels)
    data.setup()
    return Case(published(20), data.splits, pixels)


CASES: dict[str, Callable[[Path], Case]] = {
    "digits, LeNet5": lambda _: _digits(),
    "MNIST, LeNet5 (released)": _mnist,
    "Letter, MLP": _letter,
    "CIFAR-10, ResNet20 (published)": _cifar10,
}


def compare_methods(case: Case) -> list[dict[str, Any]]:
    """Return, for methods and numbers of procedural samples, how often classes of real training data stay the same."""
    part = case.data["train"].x[:TRAINING_SAMPLES]
    found = []
    for method, count in METHODS:
        agreements = []
        for seed in range(SEEDS):
            samples = case.procedural().sample(count, seed)
            agreements.append(_agreement(case, samples, part, method))
        found.append({"method": method, "samples": count, "agreement": agreements})
    return found


def _agreement(case: Case, samples: Tensor, real: Tensor, method: Any) -> float | None:
    with TemporaryDirectory() as folder:
        quantized = quantize(case.network, Path(folder) / "int8.onnx", case.shape, samples, method=method)
        return measure_agreement(case.network, quantized, real)


def measure_accuracies(case: Case) -> dict[str, Any]:
    """Quantise a network; return accuracies in [0, 1] on the test set, and agreement.

    Agreement is that with float32 on held-out samples of the same source, which needs no data.
    """
    test, count = case.data["test"], QuantizationSettings().samples
    accuracies: dict[str, list[float]] = {"float32": [kegnet_pl.measure_accuracy(case.network, test, "cpu")]}
    agreements: dict[str, list[float | None]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for source_name, source in case.sources().items():
            for seed in range(SEEDS):
                samples, held_out = draw_samples(source, count, seed)
                quantized = quantize(case.network, folder / f"{source_name}.onnx", case.shape, samples)
                accuracies.setdefault(source_name, []).append(kegnet_pl.measure_accuracy(quantized, test, "cpu"))
                agreements.setdefault(source_name, []).append(measure_agreement(case.network, quantized, held_out))
        weights = quantize(case.network, folder / "weights.onnx", case.shape)
        accuracies[WEIGHTS] = [kegnet_pl.measure_accuracy(weights, test, "cpu")]
    return {"accuracies": accuracies, "agreements": agreements, "samples": count}


@torch.no_grad()
def measure_speed(case: Case) -> dict[str, Any]:
    """Return bytes, and milliseconds for a batch: of the fastest round, since the others had to wait for other work."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (exported,) = export_network(case.network, folder, case.shape, ["onnx"])
        samples = case.procedural().sample(QuantizationSettings().samples, 0)
        networks = {
            "float32": OnnxNetwork(exported.path),
            "int8": quantize(case.network, folder / "int8.onnx", case.shape, samples),
            WEIGHTS: quantize(case.network, folder / "weights.onnx", case.shape),
        }
        sizes = {key: network.size for key, network in networks.items()}
        times: dict[str, list[float]] = {key: [] for key in (*networks, PYTORCH)}
        for size in BATCHES:
            x = torch.randn(size, *case.shape)
            calls = [(network, x) for network in (*networks.values(), case.network)]
            rounds = time_in_turns(calls, shortest=1e-3, rounds=(10, 2000), seconds=SECONDS)
            for key, values in zip(times, rounds, strict=True):
                times[key].append(1e3 * min(values))
    where = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} thread"
    return {"sizes": sizes, "ms": times, "device": f"{where}; ONNX Runtime {import_onnx().__version__}"}


Stored = dict[str, list[dict[str, Any]]]
"""Part of the study -> its rows."""

COMMAND = "python -m reproduction.int8"
PARTS: dict[str, Callable[[Case], Any]] = {
    "accuracy": measure_accuracies, "speed": measure_speed, "methods": compare_methods
}  # fmt: skip


def _show(values: list[float]) -> str:
    """Return a mean in percent, with the standard deviation over seeds."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def render(stored: Stored) -> str:
    """Return the page."""
    columns = ("noise", "generators", "procedural", WEIGHTS, "real")
    rows = _sorted(stored["accuracy"])
    lines = [
        "# int8 without data",
        "",
        "Networks are quantised after training by ONNX Runtime (`kegnet_pl.quantize`). Weights are int8 with a scale",
        "per channel. Activations are int8; their ranges come from calibration samples, by `minmax`. The table has",
        "the test accuracy in %, mean and standard deviation over three seeds of the samples. Noise has no prior",
        "knowledge, generators have the teacher's, and procedural samples have procedural knowledge. *Real* is the",
        "training data: a ceiling, not a data-free result. Generators have the short training of the demo, for two",
        "networks. *Weights alone* needs no samples.",
        "",
        "| network | float32 | noise | generators | procedural | weights alone | real (ceiling) | samples |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [_show(row["accuracies"][name]) if name in row["accuracies"] else "" for name in ("float32", *columns)]
        lines.append(f"| {row['network']} | {' | '.join(cells)} | {row['samples']} |")
    lines += [
        "",
        "## Size and speed",
        "",
        "The table has the size of files and the time for a batch in ONNX Runtime. Ratios are float32 / int8: above 1,",
        "int8 is smaller or faster. Networks are measured in turns. A time is the shortest of at least ten rounds,",
        "since other work on the machine disturbed some rounds. Files with int8 weights alone are read with",
        "`session.disable_quant_qdq`: weights are dequantised once. The last column is the time in PyTorch / the time",
        "in ONNX Runtime, both in float32.",
        "",
        "| network | KB: float32, int8, weights alone | size ratio | batch | ms, float32 | int8 | weights | PyTorch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in _sorted(stored["speed"]):
        sizes, times = row["sizes"], row["ms"]
        kilobytes = ", ".join(f"{value / 1e3:.0f}" for value in sizes.values())
        ratios = ", ".join(f"{sizes['float32'] / sizes[name]:.2f}" for name in ("int8", WEIGHTS))
        for index, size in enumerate(BATCHES):
            base = times["float32"][index]
            faster = " | ".join(f"{base / times[name][index]:.2f}" for name in ("int8", WEIGHTS))
            head = (row["network"], kilobytes, ratios) if index == 0 else ("", "", "")
            slower = times[PYTORCH][index] / base
            lines.append(f"| {' | '.join(head)} | {size} | {base:.3g} | {faster} | {slower:.2f} |")
    lines += ["", f"{', '.join(dict.fromkeys(row['device'] for row in stored['speed']))}; other work on the machine."]
    every = [value for row in rows for values in row["agreements"].values() for value in values if value is not None]
    lines += [
        "",
        "## Agreement without data",
        "",
        "Agreement is the share of held-out samples of the same source, in %, to which int8 and float32 give the same",
        "class. It needs no data, but it does not show if samples of a source differ from the data. The last column",
        "has the lost points of test accuracy. Runs and the export would warn "
        f"(below {100 * LOW_INT8_AGREEMENT:.0f} %) for {sum(value < LOW_INT8_AGREEMENT for value in every)} "
        f"of these {len(every)} calibrations.",
        "",
        "| network | source | agreement | lost points |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in rows:
        before = row["accuracies"]["float32"][0]
        for name, values in row["agreements"].items():
            lost = 100 * (before - statistics.mean(row["accuracies"][name]))
            shown = "one class" if None in values else _show(values)
            lines.append(f"| {row['network']} | {name} | {shown} | {lost:.2f} |")
    lines += [
        "",
        "## Choice of the default",
        "",
        f"The table has the share of up to {TRAINING_SAMPLES:,} real training samples, in %, that get the same class",
        "in int8 and in float32: the mean over networks and seeds, and the worst network. The calibration uses",
        "procedural samples. No test data was used.",
        "",
        "| method | samples | mean | worst network |",
        "| --- | ---: | ---: | ---: |",
    ]
    for method, count in METHODS:
        found = [
            statistics.mean(line["agreement"])
            for line in stored["methods"]
            if (line["method"], line["samples"]) == (method, count)
        ]
        if found:
            lines.append(f"| {method} | {count:,} | {100 * statistics.mean(found):.2f} | {100 * min(found):.2f} |")
    lines += ["", f"Command: `{COMMAND}`"]
    return "\n".join(lines) + "\n"


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: list(CASES).index(row["network"]))


def main(arguments: list[str] | None = None, out: Path = ROOT / "results") -> int:
    """Run the command line; what is finished is not run again."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", default="", help="only networks whose name begins like this")
    options = parser.parse_args(arguments)
    path = out / "int8.json"
    stored: Stored = read_record(path, {part: [] for part in PARTS})
    folder = Path(os.environ.get("KEGNET_DATA_DIR", "data"))
    for name, make in CASES.items():
        missing = [part for part, rows in stored.items() if name not in {row["network"] for row in rows}]
        if not name.startswith(options.only) or not missing:
            continue
        case = make(folder)
        for part in missing:
            found = PARTS[part](case)
            rows = found if isinstance(found, list) else [found]
            stored[part] += [{"network": name, **row, "command": COMMAND, "versions": versions()} for row in rows]
            say(f"{name}, {part}: {found}")
            write_record(path, stored, render(stored))
    say(f"Written: {display_path(path)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
