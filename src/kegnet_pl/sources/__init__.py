"""Sources of samples: generators, noise, procedural samples, real data, mixtures, and those of other packages."""

from kegnet_pl.sources.base import REAL_DATA, Prior, SyntheticSource, check_finite
from kegnet_pl.sources.images import Blobs, Leaves, Procedural, ProceduralImages, Strokes, Waves
from kegnet_pl.sources.kegnet import GeneratorSource, sample_labels_and_noise
from kegnet_pl.sources.matching import MatchedSource, match_statistics
from kegnet_pl.sources.mixture import MixtureSource
from kegnet_pl.sources.noise import CorrelatedNoise, NoiseSource, NormalNoise, UniformNoise
from kegnet_pl.sources.procedural import RandomFields, RandomRows
from kegnet_pl.sources.real import RealSource
from kegnet_pl.sources.registry import (
    SourceInfo,
    build_source,
    describe_mixture,
    describe_source,
    find_source_class,
    join_priors,
)
from kegnet_pl.sources.transforms import MixedSource, SelectedSource, select_samples

__all__ = [
    "REAL_DATA",
    "Blobs",
    "CorrelatedNoise",
    "GeneratorSource",
    "Leaves",
    "MatchedSource",
    "MixedSource",
    "MixtureSource",
    "NoiseSource",
    "NormalNoise",
    "Prior",
    "Procedural",
    "ProceduralImages",
    "RandomFields",
    "RandomRows",
    "RealSource",
    "SelectedSource",
    "SourceInfo",
    "Strokes",
    "SyntheticSource",
    "UniformNoise",
    "Waves",
    "build_source",
    "check_finite",
    "describe_mixture",
    "describe_source",
    "find_source_class",
    "join_priors",
    "match_statistics",
    "sample_labels_and_noise",
    "select_samples",
]
