"""Losses of generators and students, one per file (PAPER sections 2 and 5)."""

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss, NormStatistics
from kegnet_pl.losses.classifier import ClassifierLoss
from kegnet_pl.losses.decoder import DecoderLoss
from kegnet_pl.losses.distillation import DistillationLoss
from kegnet_pl.losses.diversity import DiversityLoss
from kegnet_pl.losses.features import FeatureLoss
from kegnet_pl.losses.objective import GeneratorObjective
from kegnet_pl.losses.statistics import StatisticsLoss

__all__ = [
    "ClassifierLoss",
    "DecoderLoss",
    "DistillationLoss",
    "DiversityLoss",
    "FeatureLoss",
    "GeneratedBatch",
    "GeneratorLoss",
    "GeneratorObjective",
    "NormStatistics",
    "StatisticsLoss",
]
