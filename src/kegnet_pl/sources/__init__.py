"""Sources of synthetic samples: generators, noise."""

from kegnet_pl.sources.base import SyntheticSource
from kegnet_pl.sources.generators import GeneratorSource, sample_labels_and_noise
from kegnet_pl.sources.noise import NoiseSource

__all__ = ["GeneratorSource", "NoiseSource", "SyntheticSource", "sample_labels_and_noise"]
