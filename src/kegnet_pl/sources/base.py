"""The base class of sources of synthetic samples."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

Prior = Literal["none", "teacher", "procedural"]
"""Prior knowledge in the samples of a source: nothing, the teacher's weights, or common properties of such data."""


class SyntheticSource(nn.Module, ABC):
    """A source of synthetic samples.

    A subclass that students are trained on by name (``sources=[NAME]``) defines the class attributes. Then tables,
    plots and reports show the source without further changes.

    Attributes:
        title: Name in tables and plots.
        color: Color in plots, ``#rrggbb``.
        marker: Marker in plots, one letter of matplotlib.
        prior: Prior knowledge in the samples: ``"none"``, ``"teacher"`` (its weights are used) or ``"procedural"``
            (common properties of such data: edges, smooth areas, correlations).
        needs_generators: True: the constructor takes the trained generators (see :func:`build_source`).
        multiple: The number of samples must be a multiple of this.
    """

    title: str
    color: str
    marker: str
    prior: Prior
    needs_generators: bool = False
    multiple: int = 1

    @abstractmethod
    def sample(self, n: int, seed: int) -> Tensor:
        """Return ``n`` samples ``(n, *input_shape)``, on the source's device; the same seed gives the same samples."""
