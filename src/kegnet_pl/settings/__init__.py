"""Typed settings: names, defaults, units and ranges, once for the library, the command line and the reference page."""

from kegnet_pl.settings.base import (
    BatchNormStatistics,
    LRSchedulerName,
    Object,
    Parallel,
    Precision,
    Resume,
    Selection,
    Settings,
    StudentNorm,
    problem,
)
from kegnet_pl.settings.compression import CompressionPlan, CompressionRule, CompressionSettings
from kegnet_pl.settings.data import DataSettings, Mixture, to_mixtures
from kegnet_pl.settings.generators import GeneratorSettings, GeneratorTrainingSettings, ObjectiveTerm
from kegnet_pl.settings.messages import explain, read_arguments
from kegnet_pl.settings.run import RunSettings
from kegnet_pl.settings.students import (
    BaselineSettings,
    DistillationSettings,
    FeatureDistillationSettings,
    StudentSettings,
)
from kegnet_pl.settings.training import OptimizerSettings, TeacherSettings, TrainerSettings, TrainingSettings

__all__ = [
    "BaselineSettings",
    "BatchNormStatistics",
    "CompressionPlan",
    "CompressionRule",
    "CompressionSettings",
    "DataSettings",
    "DistillationSettings",
    "FeatureDistillationSettings",
    "GeneratorSettings",
    "GeneratorTrainingSettings",
    "LRSchedulerName",
    "Mixture",
    "Object",
    "ObjectiveTerm",
    "OptimizerSettings",
    "Parallel",
    "Precision",
    "Resume",
    "RunSettings",
    "Selection",
    "Settings",
    "StudentNorm",
    "StudentSettings",
    "TeacherSettings",
    "TrainerSettings",
    "TrainingSettings",
    "explain",
    "problem",
    "read_arguments",
    "to_mixtures",
]
