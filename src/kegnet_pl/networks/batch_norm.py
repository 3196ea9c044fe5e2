"""What enters the batch norm of a network: of a teacher while generators train, of a compressed network."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kegnet_pl.networks.execution import at_least_float32, eval_mode

ADAPTING_SAMPLES = 1280
"""Enough for means and variances of a channel; their activations are in memory at once."""


def norm_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers of a network, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}


def lacks_statistics(network: nn.Module) -> bool:
    """Return whether a network has batch norm that has never seen a sample: all means 0 and variances 1, or none."""
    layers = norm_layers(network).values()
    return bool(layers) and all(
        layer.running_mean is None
        or layer.running_var is None
        or not (layer.running_mean.any() or (layer.running_var != 1).any())
        for layer in layers
    )


class NormWatch(nn.Module):
    """A network, called as it is, that returns mean and variance of what enters its batch norm beside its own output.

    Args:
        network: Returns a tensor; it is not copied, and keeps the hooks that watch it.

    Raises:
        ValueError: If the network has no batch norm with stored statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(norm_layers(network).values())
        if not self.layers or any(layer.running_mean is None for layer in self.layers):
            raise ValueError(
                "Expected a teacher whose batch-norm layers have stored statistics, but it has none: set the weight of "
                "StatisticsLoss to 0, on the command line generator.objective.statistics.weight=0."
            )
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._watching = False
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(functools.partial(self._keep, index))

    def _keep(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._watching:
            mean, variance = _moments(inputs[0])
            self._seen[index] = mean, variance + module.eps  # type: ignore[operator]

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the network's output, and for every layer mean and variance ``(C,)``, with the layer's epsilon."""
        self._watching = True
        try:
            output: Tensor = self.network(x)
            if len(self._seen) < len(self.layers):
                raise ValueError(
                    "Expected a teacher that passes all its batch-norm layers in evaluation mode, but it leaves some "
                    "out (of a head that only training has): set the weight of StatisticsLoss to 0, on the command "
                    "line generator.objective.statistics.weight=0, or take the head off."
                )
            return output, [self._seen[index] for index in range(len(self.layers))]
        finally:
            self._watching = False
            self._seen.clear()

    def stored(self) -> list[tuple[Tensor, Tensor]]:
        """Return the same of the network's training data, as its layers have stored it."""
        moments = []
        for layer in self.layers:
            assert layer.running_mean is not None and layer.running_var is not None
            moments.append((layer.running_mean, layer.running_var + layer.eps))
        return moments


@torch.no_grad()
def adapt_norm(student: nn.Module, teacher: nn.Module, x: Tensor) -> None:
    r"""Make a compressed network ready to be trained with batch norm on synthetic samples.

    The teacher's statistics are those of its real data, and wrong for the student, which computes something else. As
    soon as it trains, they are overwritten by those of synthetic samples, while the teacher that labels them still
    normalises by real ones: what the student's layers return is shifted and scaled against the teacher's, and against
    what it will see. So the difference is put where it stays. With mean :math:`\mu` and deviation :math:`\sigma` that
    the teacher has stored, and :math:`m_t, s_t` and :math:`m_s, s_s` of what enters a layer of the teacher and of the
    student on the same synthetic samples, the student's layer gets

    .. math:: \text{statistics } m_s, s_s \qquad
              \gamma_s = \gamma \, \frac{s_t}{\sigma} \qquad \beta_s = \beta + \gamma \, \frac{m_t - \mu}{\sigma}

    and its output has the teacher's mean and deviation in every channel, on synthetic samples. On real data it is
    normalised by what would be the real statistics, if compression did to a channel no more than to shift and scale it.
    Layers are set in the order in which they compute, each with those before it set. Nothing here is trained.

    Args:
        student: The teacher, compressed; changed in place. Its mode stays.
        teacher: Has batch-norm layers of the same names, with stored statistics, scale and shift.
        x: Synthetic samples ``(N, *input_shape)``, some hundred, where the networks are.

    Raises:
        ValueError: If the networks have other batch-norm layers, or none.
    """
    mine, theirs = norm_layers(student), norm_layers(teacher)
    usable = all(layer.affine and layer.running_mean is not None for layer in (*mine.values(), *theirs.values()))
    if not mine or not usable or _widths(mine) != _widths(theirs):
        raise ValueError(
            f"Expected a student with the teacher's batch-norm layers (with statistics, scale and shift), but got "
            f"{', '.join(mine) or 'none'} beside {', '.join(theirs) or 'none'}. Set student.norm=batch."
        )
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str, inputs: Tensor) -> None:
        seen[name] = _moments(inputs)

    def set_layer(name: str, inputs: Tensor) -> None:
        layer, theirs_here, (mean, variance) = mine[name], theirs[name], seen[name]
        assert layer.running_mean is not None and layer.running_var is not None
        assert theirs_here.running_mean is not None and theirs_here.running_var is not None
        deviation = (theirs_here.running_var + theirs_here.eps).sqrt()
        for target, value in zip((layer.running_mean, layer.running_var), _moments(inputs), strict=True):
            target.copy_(value)
        layer.weight.copy_(theirs_here.weight * (variance + layer.eps).sqrt() / deviation)
        layer.bias.copy_(theirs_here.bias + theirs_here.weight * (mean - theirs_here.running_mean) / deviation)

    for network, look in ((teacher, remember), (student, set_layer)):
        with _looking(network, look):
            network(x)


def _widths(layers: dict[str, _BatchNorm]) -> dict[str, int]:
    return {name: layer.num_features for name, layer in layers.items()}


_LEAST = 1e-12
"""Is added to a variance before it is inverted, and subtracted again: a constant channel has none."""


class _Moments(torch.autograd.Function):
    """Mean and variance of every channel, by the kernel of batch norm: a third of the time of ``torch.var_mean``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean, inverse = torch.native_batch_norm(at_least_float32(x), None, None, None, None, True, 0.0, _LEAST)
        return mean, (inverse.pow(-2) - _LEAST).clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = 2 * gradients[1] / count
        shape = [1, -1, *[1] * (x.ndim - 2)]
        constant = gradients[0] / count - slope * mean
        gradient: Tensor = x * slope.view(shape).to(x.dtype) + constant.view(shape).to(x.dtype)
        return gradient


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel of ``(N, C, ...)``, in float32 at least."""
    moments: tuple[Tensor, Tensor] = _Moments.apply(inputs)
    return moments


@contextmanager
def _looking(network: nn.Module, look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show what enters every batch-norm layer of a network, in evaluation mode."""
    hooks = []
    for name, layer in norm_layers(network).items():

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:  # noqa: ARG001
            look(name, inputs[0])

        hooks.append(layer.register_forward_pre_hook(hook))
    try:
        with eval_mode(network):
            yield
    finally:
        for handle in hooks:
            handle.remove()
