"""Data-free compression of trained networks: KegNet with PyTorch Lightning and Hydra."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kegnet_pl.api import (
        Generators,
        SyntheticDataset,
        compress,
        distill,
        load_generators,
        to_image,
        train_generators,
    )
    from kegnet_pl.api.agreement import measure_agreement
    from kegnet_pl.api.checkpoints import load_network
    from kegnet_pl.api.evaluation import measure_accuracy
    from kegnet_pl.api.quantization import OnnxNetwork, quantize
    from kegnet_pl.compression import Compressed
    from kegnet_pl.data import Split
    from kegnet_pl.reporting.runs import read_runs
    from kegnet_pl.sources import NoiseSource

__version__ = "0.1.0"

_MODULES = {
    "Compressed": "compression",
    "Generators": "api",
    "NoiseSource": "sources",
    "OnnxNetwork": "api.quantization",
    "Split": "data",
    "SyntheticDataset": "api",
    "compress": "api",
    "distill": "api",
    "load_generators": "api",
    "load_network": "api.checkpoints",
    "measure_accuracy": "api.evaluation",
    "measure_agreement": "api.agreement",
    "quantize": "api.quantization",
    "read_runs": "reporting.runs",
    "to_image": "api",
    "train_generators": "api",
}
"""Modules of the public names. They are imported on first use, since the command line needs none at its start."""

__all__ = [
    "Compressed", "Generators", "NoiseSource", "OnnxNetwork", "Split", "SyntheticDataset", "compress", "distill",
    "load_generators", "load_network", "measure_accuracy", "measure_agreement", "quantize", "read_runs", "to_image",
    "train_generators",
]  # fmt: skip

_RENAMED = {"distil": "distill"}
"""Public names of version 0.1 -> present names."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        hint = f": use {__name__}.{_RENAMED[name]}" if name in _RENAMED else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])
