"""The library without Hydra: train generators for a network, sample from them, compress, distill.

These functions are stable, and :mod:`kegnet_pl` exports them::

    import kegnet_pl

    generators = kegnet_pl.train_generators(teacher, input_shape=(1, 32, 32))
    data = generators.dataset(16_000)
    small = kegnet_pl.compress(teacher, input_shape=(1, 32, 32), target=4.0)
    student = kegnet_pl.distill(small.network, data)

They write no files. They change neither torch's global random state nor the networks that they are given.
"""

from kegnet_pl.api.generators import train_generators
from kegnet_pl.api.sampling import Generators, SyntheticDataset, load_generators, to_image
from kegnet_pl.api.students import compress, distill

__all__ = ["Generators", "SyntheticDataset", "compress", "distill", "load_generators", "to_image", "train_generators"]
