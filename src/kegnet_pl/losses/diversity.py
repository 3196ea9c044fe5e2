"""Samples made from different noise shall differ."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss

Distance = Literal["l1", "l2", "cosine"]


class _PairwiseL1(torch.autograd.Function):
    """Pairwise sums of absolute differences ``(B, B)`` of rows ``(B, D)``.

    Forward is torch's; its backward on a GPU would hold ``(B, B, D)`` values inside, so that one goes a few rows at a
    time. Two equal rows pull at each other with zero, the middle of the subgradients.
    """

    rows = 16
    """Rows at a time; memory of the backward pass is ``rows * B * D`` values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.cdist(x, x, p=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        weights = gradients[0] + gradients[0].T
        pieces = [
            torch.einsum("ij,ijd->id", w, torch.sign(part[:, None] - x[None]))
            for w, part in zip(weights.split(_PairwiseL1.rows), x.split(_PairwiseL1.rows), strict=True)
        ]
        return torch.cat(pieces)


def _mean_absolute_difference(x: Tensor) -> Tensor:
    """Pairwise mean absolute difference ``(B, B)`` of rows ``(B, D)``, without a ``(B, B, D)`` tensor."""
    # The CPU's own backward pass holds nothing and is faster than ours.
    total: Tensor = _PairwiseL1.apply(x) if x.is_cuda else torch.cdist(x, x, p=1)
    return total / x.shape[1]


def _mean_squared_difference(x: Tensor) -> Tensor:
    """Pairwise mean squared difference ``(B, B)`` of rows ``(B, D)``, without a ``(B, B, D)`` tensor.

    The rows are centred first: |a|^2 + |b|^2 - 2ab loses fewer digits the shorter the rows are. No square root is
    taken, so the gradient of two equal rows is zero, not infinite.
    """
    x = x - x.mean(dim=0).detach()
    squares = x.square().sum(dim=1)
    return (squares[:, None] + squares[None, :] - 2 * x @ x.T) / x.shape[1]


def _cosine_distance(x: Tensor) -> Tensor:
    """Pairwise ``1 - cos`` ``(B, B)`` of rows ``(B, D)``."""
    unit = functional.normalize(x, dim=1)
    return 1 - unit @ unit.T


_DISTANCES = {"l1": _mean_absolute_difference, "l2": _mean_squared_difference, "cosine": _cosine_distance}


class DiversityLoss(GeneratorLoss):
    r"""Rewards samples that differ as much as their noise does.

    .. math:: L_{div} = \exp\Big(-\frac{1}{B^2} \sum_{ij} d_z(z_i, z_j)\, d_x(x_i, x_j)\Big)

    :math:`d_z` is the mean squared difference over the noise dimensions. Memory grows with ``B * B + B * D``, never
    with ``B * B * D``.

    Args:
        distance: :math:`d_x` over all values of a sample: ``"l1"`` mean absolute difference (the paper's), ``"l2"``
            mean squared difference, ``"cosine"`` one minus the cosine.

    Shapes:
        ``batch.z (B, Z)``, ``batch.x (B, *input_shape)``; output a scalar in (0, 1].

    Raises:
        ValueError: If ``distance`` is unknown.

    Source:
        KegNet equation 5 (PAPER section 2).
    """

    def __init__(self, distance: Distance = "l1") -> None:
        super().__init__()
        if distance not in get_args(Distance):
            raise ValueError(f"Expected `distance` to be one of {get_args(Distance)}, but got {distance!r}.")
        self.distance = distance

    def forward(self, batch: GeneratedBatch) -> Tensor:
        """Return the loss; the mean includes the pairs i = j."""
        d_z = _mean_squared_difference(batch.z)
        d_x = _DISTANCES[self.distance](batch.x.flatten(1))
        return torch.exp(-(d_z * d_x).mean())
