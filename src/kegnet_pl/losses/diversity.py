"""The diversity loss: samples from different noise differ."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss

Distance = Literal["l1", "l2", "cosine"]
"""Distance between samples."""

_COLUMNS = 512
"""Columns that are sorted together on a CPU: this bounds the memory without loss of speed."""


class _WeightedL1(torch.autograd.Function):
    r"""Sum over pairs :math:`\sum_{ij} |z_i - z_j|^2 \, |x_i - x_j|_1`, in less than quadratic time.

    The gradient with respect to :math:`x_{id}` is :math:`2 \sum_j w_{ij} sign(x_{id} - x_{jd})`. The weights
    :math:`w_{ij} = |z_i|^2 + |z_j|^2 - 2 z_i z_j` are a sum of Z + 2 products of a factor of i and a factor of j.
    Each column d is sorted once, and the sums over smaller and larger values are cumulative sums: B log B + B Z steps
    per column instead of B^2. The sum itself is the product of x with its gradient, since it is homogeneous in x.
    Equal values contribute zero, the middle of the subgradients.

    Inputs may have leading batch dimensions, one per generator.
    """

    @staticmethod
    def forward(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum ``(...)`` and its gradient along ``x``, for ``z (..., B, Z)`` and ``x (..., B, D)``."""
        z, x = z - z.mean(dim=-2, keepdim=True), x - x.mean(dim=-2, keepdim=True)
        squares = z.square().sum(dim=-1, keepdim=True)
        ones = torch.ones_like(squares)
        left, right = torch.cat([squares, ones, -2 * z], dim=-1), torch.cat([ones, squares, z], dim=-1)

        columns = _COLUMNS if x.device.type == "cpu" else x.shape[-1]
        gradient = 2 * torch.cat([_signed_sums(left, right, part) for part in x.split(columns, dim=-1)], dim=-1)
        return (x * gradient).sum(dim=(-2, -1)), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        z, x = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(z, x, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, x, gradient = ctx.saved_tensors
        outer = gradients[0][..., None, None]
        z_gradient = None
        if ctx.needs_input_grad[0]:  # noise is rarely learned, so quadratic time is acceptable
            distances = torch.cdist(x, x, p=1)
            z_gradient = 4 * outer * (z * distances.sum(dim=-1, keepdim=True) - distances @ z)
        return z_gradient, outer * gradient if ctx.needs_input_grad[1] else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        batched = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(inputs, in_dims, strict=True)
        ]
        return _WeightedL1.apply(*batched), (0, 0)


def _signed_sums(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`\sum_j w_{ij} sign(x_{id} - x_{jd})` for weights that are sums of products.

    The factors of i and of j are ``left (..., B, R)`` and ``right (..., B, R)``; the values are ``x (..., B, D)``.
    """
    values, order = x.mT.contiguous().sort(dim=-1)
    below, above = _ends_of_equals(values)
    signed, running = torch.zeros_like(values), functional.pad(torch.zeros_like(values), (1, 0))
    for a, b in zip(left.split(1, dim=-1), right.split(1, dim=-1), strict=True):
        running[..., 1:] = b.mT.expand_as(values).gather(-1, order).cumsum(dim=-1)
        difference = running.gather(-1, below).add_(running.gather(-1, above)).sub_(running[..., -1:])
        signed.add_(difference.mul_(a.mT.expand_as(values).gather(-1, order)))
    return torch.zeros_like(signed).scatter(-1, order, signed).mT


def _ends_of_equals(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each entry of sorted rows, the number of smaller entries and of entries that are not larger."""
    position = torch.arange(values.shape[-1], device=values.device)
    new = functional.pad(values[..., 1:] != values[..., :-1], (1, 0), value=True)
    below = torch.where(new, position, 0).cummax(dim=-1).values
    equals = torch.zeros_like(below).scatter_add_(-1, below, torch.ones_like(below))
    return below, below + equals.gather(-1, below)


def _mean_squared_difference(x: Tensor) -> Tensor:
    """Return the pairwise mean squared difference ``(B, B)`` of rows ``(B, D)``, without a ``(B, B, D)`` tensor.

    The rows are centred first, since |a|^2 + |b|^2 - 2ab loses fewer digits for shorter rows. Without a square root,
    the gradient of two equal rows is zero, not infinite.
    """
    x = x - x.mean(dim=0).detach()
    squares = x.square().sum(dim=1)
    return (squares[:, None] + squares[None, :] - 2 * x @ x.T) / x.shape[1]


def _cosine_distance(x: Tensor) -> Tensor:
    """Return the pairwise ``1 - cos`` ``(B, B)`` of rows ``(B, D)``."""
    unit = functional.normalize(x, dim=1)
    return 1 - unit @ unit.T


class DiversityLoss(GeneratorLoss):
    r"""Exponential penalty for samples that differ less than their noise.

    .. math:: L_{div} = \exp\Big(-\frac{1}{B^2} \sum_{ij} d_z(z_i, z_j)\, d_x(x_i, x_j)\Big)

    :math:`d_z` is the mean squared difference over the noise dimensions. Memory grows with ``B * B + B * D``, not with
    ``B * B * D``. Time grows with ``D * B * (log B + Z)`` for ``"l1"``.

    Args:
        distance: :math:`d_x` over all values of a sample: ``"l1"`` is the mean absolute difference (of the paper),
            ``"l2"`` the mean squared difference, ``"cosine"`` one minus the cosine.

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
        z, x = batch.z, batch.x.flatten(1)
        if self.distance == "l1":
            product = _WeightedL1.apply(z, x)[0] / (z.numel() * x.numel())
        else:
            distances = _mean_squared_difference(x) if self.distance == "l2" else _cosine_distance(x)
            product = (_mean_squared_difference(z) * distances).mean()
        return torch.exp(-product)
