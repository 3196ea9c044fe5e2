"""Sources of samples: generators, noise, mixtures, real data for a ceiling, and those of other packages."""

from kegnet_pl.sources.base import REAL_DATA, Prior, SyntheticSource
from kegnet_pl.sources.kegnet import GeneratorSource, sample_labels_and_noise
from kegnet_pl.sources.mixture import MixtureSource
from kegnet_pl.sources.noise import NoiseSource, NormalNoise, UniformNoise
from kegnet_pl.sources.procedural import RandomFields
from kegnet_pl.sources.real import RealSource
from kegnet_pl.sources.registry import SourceInfo, build_source, describe_mixture, describe_source, find_source_class

__all__ = [
    "REAL_DATA",
    "GeneratorSource",
    "MixtureSource",
    "NoiseSource",
    "NormalNoise",
    "Prior",
    "RandomFields",
    "RealSource",
    "SourceInfo",
    "SyntheticSource",
    "UniformNoise",
    "build_source",
    "describe_mixture",
    "describe_source",
    "find_source_class",
    "sample_labels_and_noise",
]
