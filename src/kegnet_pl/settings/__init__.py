"""Typed settings: names, defaults, units and ranges, once for the library, the command line and the reference page."""

from kegnet_pl.settings.base import LRSchedulerName, Outputs, Parallel, Precision, Resume, Settings, StudentNorm
from kegnet_pl.settings.compression import CompressionSettings
from kegnet_pl.settings.data import DataSettings
from kegnet_pl.settings.distillation import (
    DistillationSettings,
    FeatureDistillationSettings,
    GeneratorSettings,
    GeneratorTrainingSettings,
    ObjectiveTerm,
    StudentSettings,
)
from kegnet_pl.settings.messages import read_arguments
from kegnet_pl.settings.quantization import QuantizationSettings
from kegnet_pl.settings.run import RunSettings
from kegnet_pl.settings.training import OptimizerSettings, TrainerSettings

__all__ = [
    "CompressionSettings", "DataSettings", "DistillationSettings", "FeatureDistillationSettings", "GeneratorSettings",
    "GeneratorTrainingSettings", "LRSchedulerName", "ObjectiveTerm", "OptimizerSettings", "Outputs", "Parallel",
    "Precision", "QuantizationSettings", "Resume", "RunSettings", "Settings", "StudentNorm", "StudentSettings",
    "TrainerSettings", "read_arguments",
]  # fmt: skip
