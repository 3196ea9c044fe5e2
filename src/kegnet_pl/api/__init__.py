"""The library without Hydra: train generators for a network, draw from them, compress, distill.

What is here is stable and is exported by :mod:`kegnet_pl` itself::

    import kegnet_pl

    generators = kegnet_pl.train_generators(teacher, input_shape=(1, 32, 32))
    data = generators.dataset(16_000)
    small = kegnet_pl.compress(teacher, input_shape=(1, 32, 32), target=4.0)
    student = kegnet_pl.distill(small.network, data)

Nothing here writes a file, moves torch's global random state, or changes a network that it is given.
"""

from kegnet_pl.api.generators import train_generators
from kegnet_pl.api.sampling import Generators, SyntheticDataset, load_generators, to_image
from kegnet_pl.api.students import compress, distill

__all__ = ["Generators", "SyntheticDataset", "compress", "distill", "load_generators", "to_image", "train_generators"]
