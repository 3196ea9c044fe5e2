"""The base class of sources of synthetic samples."""

from abc import ABC, abstractmethod
from numbers import Real
from typing import Literal

from torch import Tensor, nn

Prior = Literal["none", "teacher", "procedural", "real data"]
"""Prior knowledge in the samples of a source: nothing, the teacher's weights, common properties of such data, or the
data itself."""

REAL_DATA: Prior = "real data"
"""Prior knowledge of a ceiling, which is not a data-free result: its samples are real."""


class SyntheticSource(nn.Module, ABC):
    """A source of synthetic samples.

    A subclass that students are trained on by name (``sources=[NAME]``) defines the class attributes. Then tables,
    plots and reports show the source without further changes.

    Attributes:
        title: Name in tables and plots.
        color: Color in plots, ``#rrggbb``.
        marker: Marker in plots, one letter of matplotlib.
        prior: Prior knowledge in the samples: ``"none"``, ``"teacher"`` (its weights are used), ``"procedural"``
            (common properties of such data: edges, smooth areas, correlations) or ``"real data"`` (the samples are
            real: a ceiling for other sources, never the best result, never part of a mixture).
        needs_generators: True: the constructor takes the trained generators (see :func:`build_source`).
        needs_teacher: True: the constructor takes the teacher.
        needs_data: True: the constructor takes the inputs of the real training data; the prior is ``"real data"``.
        multiple: The number of samples must be a multiple of this number.
        candidates: Samples that are drawn, and classified by the teacher, to select one; 1 without a selection.
        teacher_passes: Forward passes of the teacher to draw one sample, for the account of costs.
        input_shape: Shape of one sample; () if it is unknown, and then all samples are drawn at once.
    """

    title: str
    color: str
    marker: str
    prior: Prior
    needs_generators: bool = False
    needs_teacher: bool = False
    needs_data: bool = False
    multiple: int = 1
    candidates: int = 1
    teacher_passes: float = 0
    input_shape: tuple[int, ...] = ()

    @abstractmethod
    def sample(self, n: int, seed: int) -> Tensor:
        """Return ``n`` samples ``(n, *input_shape)``, on the source's device; the same seed gives the same samples."""


def check_share(**shares: float) -> None:
    """Check arguments that are shares, given as ``name=value``.

    Raises:
        ValueError: If one is not a number from 0 to 1.
    """
    for name, value in shares.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"Expected `{name}` to be a number from 0 to 1, but got {value!r}.")


def check_finite(source: SyntheticSource, samples: Tensor, logits: Tensor | None = None) -> None:
    """Check that samples of a source are finite, or the teacher's logits ``(N, C)`` for them.

    Raises:
        ValueError: If some are not; the message counts them.
    """
    rows = samples if logits is None else logits
    count = len(rows) - int(rows.flatten(1).isfinite().all(dim=1).sum())
    if not count:
        return
    title, share = getattr(source, "title", type(source).__name__), f"{count:,} of {len(rows):,}"
    if logits is None:
        raise ValueError(
            f"Expected finite samples, but {share} of the source {title} have NaN or infinite values. Check its method "
            f"`sample`, or use another source."
        )
    raise ValueError(
        f"Expected finite logits, but the teacher returns NaN or infinite values for {share} samples of the source "
        f"{title}. Check the weights of the teacher and the range of the samples, or use another source."
    )
