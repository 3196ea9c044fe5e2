"""Small networks of several kinds, compressed with the defaults of the library: ``python -m reproduction.networks``.

The calls of docs/tutorials/python.md, for networks that have nothing to do with the paper. With KEGNET_REFERENCE_DIR
set, the published ResNet20 of CIFAR-10 is one of them. The page ``results/NETWORKS.md`` shows the accuracy of the
teacher, of the compressed network (T), of the student, and of the same student that was trained on the real training
data (the ceiling). It also shows whether the agreement on synthetic samples, which needs no data, tells a good network
from a bad one.
"""

import argparse
import os
import statistics
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checks import LOW_AGREEMENT, describe_agreement, low_agreement
from kegnet_pl.api.weights import load_weights
from kegnet_pl.compression.automatic import THREE_LAYERS
from kegnet_pl.data import CIFAR10, MNIST, FashionMNIST, Letter, RealDataModule, Split
from kegnet_pl.networks import MLP, CifarResNet
from kegnet_pl.networks.answers import find_tensor
from kegnet_pl.sources import MatchedSource, Procedural, RealSource, SelectedSource
from reproduction.pages import StoredRows

TRAINING_SAMPLES, TEACHER_EPOCHS = 12_000, 4
SAMPLES, EPOCHS = 8_000, 5
"""Synthetic samples of a student, and passes over them."""

_ORDER = ("MNIST", "Fashion", "CIFAR-10", "Letter")
"""Data sets in the order of the table."""


def _convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, maps in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, maps, 3, padding=1), norm(maps), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


class Residual(nn.Module):
    """Two residual blocks with batch norm and a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24))
        self.second = nn.Sequential(nn.Conv2d(24, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48))
        self.shortcut = nn.Conv2d(24, 48, 1, 2, bias=False)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = torch.relu(self.shortcut(x) + self.second(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _dense() -> nn.Module:
    layers = [nn.Linear(1024, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


IMAGE_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CNN": lambda: _convolutions(lambda _: nn.Identity()),
    "CNN, batch norm": lambda: _convolutions(nn.BatchNorm2d),
    "CNN, group norm": lambda: _convolutions(lambda maps: nn.GroupNorm(4, maps)),
    "ResNet, batch norm": Residual,
    "MLP": _dense,
}
TABLE_NETWORKS: dict[str, Callable[[], nn.Module]] = {"MLP of Letter": lambda: MLP(16, 26, width=128, blocks=3)}


def train_teacher(make: Callable[[], nn.Module], data: Split, seed: int, epochs: int = TEACHER_EPOCHS) -> nn.Module:
    """Train a teacher with Adam and a cosine schedule; with fewer than TRAINING_SAMPLES, for as many steps."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network, n = make(), min(len(data), TRAINING_SAMPLES)
        epochs *= max(1, round(TRAINING_SAMPLES / n))
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-n // 64))
        for _ in range(epochs):
            for index in torch.randperm(n).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(find_tensor(network(data.x[index])), data.y[index]).backward()
                optimizer.step()
                schedule.step()
    return network.eval()


def measure(teacher: nn.Module, data: dict[str, Split], target: float, pixels: dict[str, Any]) -> dict[str, Any]:
    """Compress and distil with defaults; return accuracies in [0, 1] on the test set, agreement, and seconds.

    The accuracy of the factorised network is always measured, for comparison.
    """
    shape = tuple(data["train"].x.shape[1:])
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # low agreement is a column of the table
        small = kegnet_pl.compress(teacher, shape, target, **pixels)
        compressed = time.perf_counter()
        factorised = (
            small if small.method == "tucker" else kegnet_pl.compress(teacher, shape, target, method="tucker", **pixels)
        )
    started = time.perf_counter()
    source = MatchedSource(SelectedSource(Procedural(shape, **pixels), teacher), teacher)
    samples = kegnet_pl.SyntheticDataset(source, teacher, SAMPLES)
    options: dict[str, Any] = {"epochs": EPOCHS, "lr_scheduler": "cosine", "progress": False}
    student = kegnet_pl.distill(small.network, samples, **options)
    distilled = time.perf_counter()
    real = kegnet_pl.SyntheticDataset(RealSource(data["train"].x[:TRAINING_SAMPLES]), teacher, SAMPLES)
    ceiling = kegnet_pl.distill(small.network, real, **options)
    networks = {"teacher": teacher, "tucker": factorised.network, "T": small.network, "student": student}
    networks["ceiling"] = ceiling
    accuracies = {name: kegnet_pl.measure_accuracy(network, data["test"]) for name, network in networks.items()}
    return accuracies | {
        "target": target,
        "ratio": small.report.parameters_before / small.report.parameters_after,
        "method": small.method,
        "compared": dict(small.compared),
        "agreement": small.agreement,
        "seconds": {"compress": compressed - start, "distill": distilled - started},
    }


MakeTeacher = Callable[[Split], nn.Module]
"""Takes the training data, returns a trained teacher."""


class CifarFiles:
    """CIFAR-10 from KEGNET_DATA_DIR/cifar10: the test images, and the first 10,000 training images."""

    def __init__(self, folder: Path, mean: list[float], std: list[float]) -> None:
        self.folder, self.mean, self.std = folder, mean, std
        self.splits: dict[str, Split] = {}

    def setup(self) -> None:
        """Read the files."""
        data = CIFAR10(root=self.folder, mean=self.mean, std=self.std)
        for part, file in (("train", "cifar10_train_head10000.npz"), ("test", "cifar10_test.npz")):
            with np.load(self.folder / file) as stored:
                x, y = (torch.from_numpy(stored[name]) for name in ("x", "y"))
            self.splits[part] = data._prepare((x.permute(0, 3, 1, 2), y))


def published(depth: int) -> nn.Module:
    """Return the published network of CIFAR-10 from KEGNET_REFERENCE_DIR/teachers."""
    network = CifarResNet(depth)
    load_weights(network, Path(os.environ["KEGNET_REFERENCE_DIR"]) / "teachers" / f"cifar10_resnet{depth}.th")
    return network.eval()


def load_data(folder: Path) -> Iterator[tuple[str, RealDataModule, dict[str, Any]]]:
    """Yield the name of a data set, its data, and the mean and deviation of its pixels."""
    for name, kind, mean, std in (("MNIST", MNIST, 0.1307, 0.3081), ("Fashion", FashionMNIST, 0.2860, 0.3530)):
        module = kind(root=folder, download=False, mean=[mean], std=[std], validation=1)
        yield name, module, {"mean": mean, "std": std}
    yield "Letter", Letter(root=folder), {}


def _data(folder: Path) -> dict[str, tuple[RealDataModule | CifarFiles, dict[str, MakeTeacher], dict[str, Any]]]:
    """Return data set -> its data, its networks, and the mean and deviation of its pixels."""

    def trained(networks: dict[str, Callable[[], nn.Module]]) -> dict[str, MakeTeacher]:
        return {name: partial(train_teacher, make, seed=0) for name, make in networks.items()}

    found: dict[str, tuple[RealDataModule | CifarFiles, dict[str, MakeTeacher], dict[str, Any]]] = {}
    for name, module, pixels in load_data(folder):
        found[name] = (module, trained(TABLE_NETWORKS if name == "Letter" else IMAGE_NETWORKS), pixels)
    if "KEGNET_REFERENCE_DIR" in os.environ:
        colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        networks: dict[str, MakeTeacher] = {"ResNet20, published": lambda _: published(20)}
        found["CIFAR-10"] = (CifarFiles(folder / "cifar10", **colours), networks, colours)
    return found


_INTRODUCTION = """
`compress(teacher, shape, target, mean=..., std=...)`, which compares pruning and factorisation with merged factors
(tucker) or with three layers by agreement and chooses one, then `distill` on 8,000 procedural samples that the
teacher selects, and that are matched to its batch norm: five passes, cosine schedule, a learning rate that short
trainings choose. Test accuracy in %; teachers of seed 0, four passes over 12,000 samples. T is the chosen network
before any training; tucker is the factorised one before any training. Prior knowledge in the samples of T and of the
student: teacher + procedural; of the ceiling, the same student: real data. Agreement: share of held-out synthetic
samples to which the compressed network and the teacher give the same class; it needs no data. ResNet20 of CIFAR-10 is
published (20 test images of 10,000 are JPEG copies); its ceiling has the first 10,000 training images. Nothing was
chosen with this table.
"""


def _is_warned(row: dict[str, Any]) -> bool:
    """Return True if the library warns of this agreement."""
    return describe_agreement(row["agreement"], row["method"]) is not None


def _percent(value: float | str | None) -> str:
    return f"{100 * value:.1f}" if isinstance(value, float) else "failed" if isinstance(value, str) else "unknown"


def render(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    columns = ["data", "network", "ratio", "teacher", "tucker", "chosen", "T", "student", "ceiling"]
    columns += ["agreement: pruning, tucker, three layers", "warning", "s: compress, distill"]
    lines = [
        "# Networks of other kinds, with the defaults of the library",
        "",
        *textwrap.wrap(_INTRODUCTION.strip(), 120, break_on_hyphens=False),
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join(['---'] * 2 + ['---:'] * 3 + ['---'] + ['---:'] * 4 + ['---', '---:'])} |",
    ]
    for row in sorted(rows, key=lambda row: (_ORDER.index(row["data"]), row["network"], row["target"])):
        shown = {name: f"{100 * row[name]:.1f}" for name in ("teacher", "tucker", "T", "student", "ceiling")}
        agreements = ", ".join(_percent(row["compared"].get(name)) for name in ("pruning", "tucker", THREE_LAYERS))
        seconds = ", ".join(f"{value:.0f}" for value in row["seconds"].values())
        warned = "yes" if _is_warned(row) else ""
        cells = [row["data"], row["network"], f"{row['ratio']:.2f}", shown["teacher"], shown["tucker"], row["method"]]
        cells += [shown["T"], shown["student"], shown["ceiling"], agreements, warned, seconds]
        lines.append(f"| {' | '.join(cells)} |")
    lost = [row for row in rows if row["teacher"] - max(row["T"], row["student"]) > 0.03]
    kept = [row for row in rows if row not in lost]
    by_factorisation = [row for row in rows if row["teacher"] - row["tucker"] <= 0.03]
    lines += [
        "",
        f"{len(kept)} of {len(rows)} networks are within 3 points of their teachers, as T or as student "
        f"({len(by_factorisation)} by factorisation alone, untrained). Of the other "
        f"{len(lost)}, {sum(map(_is_warned, lost))} got the warning (agreement below "
        f"{LOW_AGREEMENT:.0%}, for pruning {low_agreement('pruning'):.0%}). {sum(map(_is_warned, kept))} of the "
        f"{len(kept)} got a false warning.",
        f"Median of the seconds together: {statistics.median(sum(row['seconds'].values()) for row in rows):.0f} (one "
        f"thread, with other work on the machine; distill with the samples).",
        "",
        f"Commands: {', '.join(f'`{command}`' for command in dict.fromkeys(row['command'] for row in rows))}",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; finished lines are not run again."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.networks", description=__doc__)
    parser.add_argument("--targets", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--only", help="only networks whose name begins like this")
    options = parser.parse_args()
    command = f"python -m reproduction.networks --targets {' '.join(f'{target:g}' for target in options.targets)}"
    command += f" --only '{options.only}'" if options.only is not None else ""
    stored = StoredRows("networks", command)
    for name, (module, networks, pixels) in _data(Path(os.environ.get("KEGNET_DATA_DIR", "data"))).items():
        chosen = {network: make for network, make in networks.items() if network.startswith(options.only or "")}
        if chosen:
            module.setup()
        for network, make in chosen.items():
            finished = {row["target"] for row in stored.rows if (row["data"], row["network"]) == (name, network)}
            missing = [target for target in options.targets if target not in finished]
            teacher = make(module.splits["train"]) if missing else None
            for target in missing:
                assert teacher is not None
                found = measure(teacher, module.splits, target, pixels)
                stored.add({"data": name, "network": network, **found})
                stored.save()
    stored.finish(render)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
