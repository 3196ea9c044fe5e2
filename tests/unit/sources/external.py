"""A source from outside the package, as a user writes one."""

import importlib.metadata
from typing import Any

import pytest
import torch
from torch import Tensor

from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources import Prior, SyntheticSource

TARGET = f"{__name__}.Stripes"


class Stripes(SyntheticSource):
    """Samples of which all features are equal."""

    title = "Stripes"
    color = "#00b0ff"
    marker = "s"
    prior: Prior = "procedural"

    def __init__(self, input_shape: tuple[int, ...], height: float = 1.0) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.height = height

    def sample(self, n: int, seed: int) -> Tensor:
        values = torch.rand(n, *[1] * len(self.input_shape), generator=stream(seed, "stripes"))
        return self.height * values.expand(n, *self.input_shape).clone()


class Bent(SyntheticSource):
    """A source that starts from generators."""

    title = "Bent"
    color = "#123456"
    marker = "P"
    prior: Prior = "procedural"
    needs_generators = True

    def __init__(self, generators: Any, noise_std: float) -> None:
        super().__init__()
        self.count, self.noise_std = len(generators), noise_std

    def sample(self, n: int, seed: int) -> Tensor:
        return torch.zeros(n, 2)


class Untitled(SyntheticSource):
    """Lacks the class attributes."""

    def sample(self, n: int, seed: int) -> Tensor:
        return torch.zeros(n, 1)


def offer_as_entry_point(monkeypatch: pytest.MonkeyPatch, name: str, value: str = TARGET) -> None:
    """Let the installed packages offer a source."""
    module, _, attribute = value.rpartition(".")
    point = importlib.metadata.EntryPoint(name, f"{module}:{attribute}", "kegnet_pl.sources")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **select: importlib.metadata.EntryPoints([point]).select(**select),
    )
