"""Sources of noise: the paper's baselines, and noise with the correlations that a teacher suggests."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kegnet_pl.compression.allocation import square_root
from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.validation import to_shape
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.base import Prior, SyntheticSource, check_share

Noise = Literal["uniform", "normal"]


class NoiseSource(SyntheticSource):
    """The paper's baselines: inputs from U(-1, 1) or N(0, 1), independent of everything.

    Args:
        distribution: ``"uniform"`` or ``"normal"``.
        input_shape: Shape of one sample, or a number of features.

    Raises:
        ValueError: If ``distribution`` is unknown.
    """

    title = "Noise"
    color = "#a0522d"
    marker = "<"
    prior: Prior = "none"

    def __init__(self, distribution: Noise, input_shape: int | Sequence[int]) -> None:
        super().__init__()
        if distribution not in get_args(Noise):
            raise ValueError(f"Expected `distribution` to be one of {get_args(Noise)}, but got {distribution!r}.")
        self.distribution = distribution
        self.input_shape = to_shape(input_shape)

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        generator = stream(seed, "synthetic")
        shape = (n, *self.input_shape)
        if self.distribution == "uniform":
            return torch.rand(shape, generator=generator) * 2 - 1
        return torch.randn(shape, generator=generator)


class UniformNoise(NoiseSource):
    """Noise from U(-1, 1); see :class:`NoiseSource`."""

    title = "Uniform"
    color = "#d9730d"
    marker = "^"

    def __init__(self, input_shape: int | Sequence[int]) -> None:
        super().__init__("uniform", input_shape)


class NormalNoise(NoiseSource):
    """Noise from N(0, 1); see :class:`NoiseSource`."""

    title = "Normal"
    color = "#0a8f6a"
    marker = "v"

    def __init__(self, input_shape: int | Sequence[int]) -> None:
        super().__init__("normal", input_shape)


class CorrelatedNoise(SyntheticSource):
    """Normal noise for rows of features, with correlations that are estimated from a teacher.

    Correlated features hardly vary in some directions, and training gives these directions large weights. So the
    inverse of the Gram matrix of the first dense layer resembles the covariance of the features. J is the Jacobian
    ``(out, features)`` of the layer's outputs at the input 0. The samples have the covariance ``(J^T J)^-power``,
    scaled to variances of 1. Directions to which the layer does not respond get the mean of the other eigenvalues. The
    teacher's features must be standardised.

    Args:
        teacher: Any network of rows of features; it is not changed.
        input_shape: ``(features,)``, or their number.
        power: Strength of the correlations, from 0 for independent features to 1.
        device: Device of the samples.

    Raises:
        ValueError: If samples are no rows of features, no dense layer of the teacher responds to them at the input 0,
            or ``power`` is out of range.
    """

    title = "Correlated"
    color = "#5b8c00"
    marker = "P"
    prior: Prior = "teacher"
    needs_teacher = True

    def __init__(
        self,
        teacher: nn.Module,
        input_shape: int | Sequence[int],
        power: float = 0.75,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.input_shape = to_shape(input_shape)
        self.device = torch.device(device)
        if len(self.input_shape) != 1:
            raise ValueError(
                f"Expected samples of shape (features,) for the source correlated, but got {self.input_shape}. Use "
                f"'sources=[procedural]'."
            )
        check_share(power=power)
        jacobian = _first_jacobian(teacher, self.input_shape[0])
        values, vectors = torch.linalg.eigh(jacobian.T @ jacobian)
        seen = values > 1e-6 * values[-1]
        values = torch.where(seen, values, values[seen].mean()) / values[-1]
        covariance = vectors @ torch.diag(values**-power) @ vectors.T
        scale = covariance.diagonal().rsqrt()
        self.root = square_root(scale[:, None] * covariance * scale, damping=0.0).float()

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, features)``."""
        return (torch.randn(n, *self.input_shape, generator=stream(seed, "synthetic")) @ self.root).to(self.device)


def _first_jacobian(teacher: nn.Module, features: int) -> Tensor:
    """Return the Jacobian ``(out, features)`` of the first dense layer that responds to the input 0, in float64."""
    weight = first_weight(teacher)
    dense = [name for name, layer in teacher.named_modules() if isinstance(layer, nn.Linear)]
    recorder = LayerRecorder(teacher, dense, lambda _, output: output, source="output")
    with torch.inference_mode(mode=False), torch.enable_grad(), eval_mode(teacher), recorder:
        x = torch.zeros(1, features, device=weight.device, dtype=weight.dtype).requires_grad_()
        outputs = recorder.call(x.clone())[1].values()
        for output in outputs:
            rows = output.flatten() if output.requires_grad else []
            found = [torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)[0] for value in rows]
            jacobian = torch.cat([torch.zeros_like(x), *(value for value in found if value is not None)])
            if bool(jacobian.isfinite().all()) and bool(jacobian.any()):
                return jacobian.double().cpu()
    raise ValueError(
        f"Expected a teacher with a dense layer that responds to the features, for the source correlated, but "
        f"{type(teacher).__name__} has none with a finite, non-zero Jacobian at the input 0. Use "
        f"'sources=[procedural]'."
    )
