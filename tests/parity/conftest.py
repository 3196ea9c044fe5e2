"""Reference numbers and the released teachers."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from kegnet_pl.api.weights import load_weights
from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import LeNet5, ResNet14
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.settings import RunSettings
from reproduction.jobs import read_cells

Teachers = Callable[[str], nn.Module]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mnist": LeNet5,
    "svhn": lambda: ResNet14(channels=3),
    "fashion": lambda: ResNet14(channels=1),
}

EXPERIMENTS = {cells["dataset"]: name for name, cells in read_cells()["experiments"].items()} | {"mlp": "shuttle_mlp"}
"""Data set, or what the reference tensors of an MLP are called -> experiment."""


@functools.cache
def _read(path: Path) -> dict[str, Tensor]:
    return load_file(path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on matrices this small, and cost a hundredfold where the cores are shared."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def tensors(reference_dir: Path) -> dict[str, Tensor]:
    """All reference tensors by key (golden/README.md); not to be changed."""
    return _read(reference_dir / "golden" / "golden.safetensors")


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Counts, ranks and ratios."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text())
    return content


@pytest.fixture
def teacher(reference_dir: Path) -> Teachers:
    """Loads a released teacher: mnist, svhn or fashion."""

    def load(name: str) -> nn.Module:
        network = NETWORKS[name]()
        load_weights(network, reference_dir / "teachers" / f"{name}.pth.tar")
        return network

    return load


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest magnitude."""
    assert actual.shape == expected.shape
    difference = (actual.detach().double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


def shipped(name: str, option: int, *overrides: str) -> DictConfig:
    """The configuration of an experiment of the paper, as a user gets it."""
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        return compose(
            "config", overrides=[f"experiment=strict/{EXPERIMENTS[name]}", f"compression=option{option}", *overrides]
        )


def shipped_plan(config: DictConfig) -> CompressionPlan:
    """The compression plan of a configuration."""
    settings = RunSettings.from_config(to_plain(config)).compression
    rules = [Rule(rule.layers, rule.rank) for rule in settings.rules or []]
    return CompressionPlan(rules, settings.target, settings.when_larger)
