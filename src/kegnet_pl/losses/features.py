"""The feature loss: outputs of the student's layers match the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kegnet_pl.networks.execution import at_least_float32

_DEAD = 1e-6
"""Variance below which a channel of the teacher counts as constant."""


class FeatureLoss(nn.Module):
    r"""Mean squared difference between outputs of layers, divided by the variance of the teacher's.

    .. math:: \frac{1}{L} \sum_l \frac{1}{C_l} \sum_c \frac{mean (s_{lc} - t_{lc})^2}{var (t_{lc})}

    Mean and variance are over the batch and all positions. For a channel in which the teacher is constant, the layer's
    mean variance is the divisor. A compressed network has the teacher's layers, or some of their channels, so no
    regressor between them is needed. Layers that return the teacher's mean have a loss of 1.

    Shapes:
        Two lists of L outputs ``(B, C_l, ...)``, the student's and the teacher's; output a scalar.

    Raises:
        ValueError: If the shapes of the outputs differ.

    Source:
        Hints of Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, extended to several layers.
    """

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the mean over layers and channels."""
        shapes = [[tuple(output.shape) for output in outputs] for outputs in (student, teacher)]
        if shapes[0] != shapes[1] or not shapes[0]:
            raise ValueError(f"Expected outputs of the teacher's shapes {shapes[1]}, but got {shapes[0]}.")
        return torch.stack([_difference(*pair) for pair in zip(student, teacher, strict=True)]).mean()


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    over = [dim for dim in range(teacher.ndim) if dim != 1]
    variance = teacher.var(dim=over, correction=0)
    variance = torch.where(variance < _DEAD, variance.mean().clamp_min(_DEAD), variance)
    return ((student - teacher).square().mean(dim=over) / variance).mean()
