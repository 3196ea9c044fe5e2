"""Batch-norm layers of a network: moments of their inputs, and their adaptation in a compressed network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kegnet_pl.networks.execution import at_least_float32, eval_mode
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.kept import Kept, kept_channels, select_kept

Moments = tuple[Tensor, Tensor]
"""Mean and variance ``(C,)`` of every channel."""

ADAPTING_SAMPLES = 1280
"""Number of synthetic samples for :func:`adapt_norm`; all their activations are in memory at once."""


def norm_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers of a network, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}


def stored_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers of a network that have stored statistics, by name."""
    return {name: layer for name, layer in norm_layers(network).items() if layer.running_mean is not None}


def lacks_statistics(network: nn.Module) -> bool:
    """Return True if a network has batch norm and no statistics: means 0 and variances 1 everywhere, or none stored."""
    layers = norm_layers(network).values()
    return bool(layers) and all(
        layer.running_mean is None
        or layer.running_var is None
        or not (layer.running_mean.any() or (layer.running_var != 1).any())
        for layer in layers
    )


def forget_counts(network: nn.Module) -> None:
    """Reset the batch counts of a student's batch norm with a cumulative average (``momentum=None``).

    The student starts with the teacher's count. After thousands of batches of the teacher, the batches of the student
    would have almost no weight in the average.
    """
    for layer in norm_layers(network).values():
        if layer.momentum is None and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()


class BatchNormMoments(nn.Module):
    """A network that returns its output, and the means and variances of the inputs of its batch-norm layers.

    Args:
        network: Returns a tensor. It is not copied, and keeps the hooks of this module.
        layers: Names of batch-norm layers; None for all.

    Raises:
        ValueError: If the network has no batch norm with stored statistics.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        self.network = network
        found = norm_layers(network)
        self.layers = found if layers is None else {name: found[name] for name in layers}
        if not self.layers or any(layer.running_mean is None for layer in self.layers.values()):
            raise ValueError(
                "Expected a teacher whose batch-norm layers have stored statistics, but it has none. Set the weight of "
                "StatisticsLoss to 0, on the command line generator.objective.statistics.weight=0."
            )
        self._recorder = LayerRecorder(network, tuple(self.layers), _collect_moments, source="input")
        self._recorder.open()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Moments]]:
        """Return the network's output, and for every layer mean and variance ``(C,)``, with the layer's epsilon.

        Raises:
            ValueError: If the network does not call one of the layers.
        """
        output, calls = self._recorder.call_each(x)
        moments = {name: _mean_moments(found) for name, found in calls.items()}
        if len(moments) < len(self.layers):
            raise ValueError(
                "Expected a teacher that calls all its batch-norm layers in evaluation mode, but it skips some "
                "(auxiliary heads for training?). Set the weight of StatisticsLoss to 0, on the command line "
                "generator.objective.statistics.weight=0, or remove the heads."
            )
        return output, [(moments[name][0], moments[name][1] + layer.eps) for name, layer in self.layers.items()]

    def stored(self) -> list[Moments]:
        """Return the running statistics of the layers, from the network's training data, with the layer's epsilon."""
        moments = []
        for layer in self.layers.values():
            assert layer.running_mean is not None and layer.running_var is not None
            moments.append((layer.running_mean, layer.running_var + layer.eps))
        return moments


@torch.no_grad()
def adapt_norm(student: nn.Module, teacher: nn.Module, x: Tensor) -> None:
    r"""Adapt the batch norm of a compressed network to synthetic samples, before its training.

    The teacher's statistics are those of its real data. They are wrong for the student, which computes another
    function. Training replaces them by statistics of synthetic samples, while the teacher, which labels the samples,
    still normalises by real ones. Outputs of the student's layers are then shifted and scaled against the teacher's.
    This function moves the difference to scale and shift of the layers, which training keeps. Let :math:`\mu` and
    :math:`\sigma` be the mean and deviation that the teacher has stored, and :math:`m_t, s_t` and :math:`m_s, s_s`
    those of the input of a layer of the teacher and of the student on the same synthetic samples. The student's layer
    gets

    .. math:: \text{statistics } m_s, s_s \qquad
              \gamma_s = \gamma \, \frac{s_t}{\sigma} \qquad \beta_s = \beta + \gamma \, \frac{m_t - \mu}{\sigma}

    Its output on synthetic samples then has the teacher's mean and deviation in every channel. On real data, it is
    normalised by the real statistics if compression only shifts and scales the channel. Layers are set in the order in
    which they compute, after all earlier layers. A layer that is called several times gets the mean moments of its
    calls, as its running statistics do; all other layers are then set a second time. Nothing is trained.

    Args:
        student: The compressed teacher; changed in place. Its mode is restored. A pruned one is compared with the
            channels that it has kept of the teacher.
        teacher: Network with batch-norm layers of the same names, with stored statistics, scale and shift.
        x: Synthetic samples ``(N, *input_shape)``, at least some hundreds, on the device of the networks.

    Raises:
        ValueError: If the batch-norm layers of the networks differ, or there are none.
    """
    layers, teacher_layers = norm_layers(student), norm_layers(teacher)
    usable = all(
        layer.affine and layer.running_mean is not None for layer in (*layers.values(), *teacher_layers.values())
    )
    kept = kept_channels(student, teacher)
    if not layers or not usable or _widths(layers, {}) != _widths(teacher_layers, kept):
        raise ValueError(
            f"Expected a student with the teacher's batch-norm layers (with statistics, scale and shift), but got "
            f"{', '.join(layers) or 'none'}, and {', '.join(teacher_layers) or 'none'} in the teacher. Set "
            f"student.norm=batch."
        )

    def set_layer(name: str, moments: Moments) -> None:
        layer, original = layers[name], teacher_layers[name]
        assert layer.running_mean is not None and layer.running_var is not None
        assert original.running_mean is not None and original.running_var is not None
        values = (*teacher_moments[name], original.running_mean, original.running_var, original.weight, original.bias)
        mean, variance, running_mean, running_var, weight, bias = (select_kept(kept, name, value) for value in values)
        deviation = (running_var + original.eps).sqrt()
        for target, value in zip((layer.running_mean, layer.running_var), moments, strict=True):
            target.copy_(value)
        layer.weight.copy_(weight * (variance + layer.eps).sqrt() / deviation)
        layer.bias.copy_(bias + weight * (mean - running_mean) / deviation)

    with LayerRecorder(teacher, tuple(layers), _collect_moments, source="input") as recorder, eval_mode(teacher):
        found = recorder.call_each(x)[1]
    teacher_moments = {name: _mean_moments(calls) for name, calls in found.items()}
    repeated = [name for name, calls in found.items() if len(calls) > 1]
    single = [name for name in layers if name not in repeated]

    def adapt_in_order(name: str, inputs: Tensor) -> None:
        set_layer(name, _moments(inputs))

    with eval_mode(student):
        with LayerRecorder(student, single, adapt_in_order, source="input") as recorder:
            recorder.call(x)
        if repeated:
            # The mean over all calls of a layer is known only after the last call, so the other layers are set again.
            with LayerRecorder(student, repeated, _collect_moments, source="input") as recorder:
                own = recorder.call_each(x)[1]
            for name, calls in own.items():
                set_layer(name, _mean_moments(calls))
            with LayerRecorder(student, single, adapt_in_order, source="input") as recorder:
                recorder.call(x)


def _widths(layers: dict[str, _BatchNorm], kept: Kept) -> dict[str, int]:
    return {name: len(kept.get(name, {}).get("out", range(layer.num_features))) for name, layer in layers.items()}


_EPSILON = 1e-12
"""Added to a variance before its inversion and subtracted after it, so that constant channels have variance 0."""


class _Moments(torch.autograd.Function):
    """Mean and variance of every channel, by the kernel of batch norm, in a third of the time of ``torch.var_mean``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean, inverse = torch.native_batch_norm(at_least_float32(x), None, None, None, None, True, 0.0, _EPSILON)
        return mean, (inverse.pow(-2) - _EPSILON).clamp_min(0)

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


def _moments(inputs: Tensor) -> Moments:
    """Return mean and variance of every channel of ``(N, C, ...)``, in float32 at least."""
    moments: Moments = _Moments.apply(inputs)
    return moments


def _mean_moments(calls: Sequence[Moments]) -> Moments:
    """Return the mean of the moments of all calls of a layer, which is what its running statistics converge to."""
    if len(calls) == 1:
        return calls[0]
    mean, variance = (torch.stack(values).mean(dim=0) for values in zip(*calls, strict=True))
    return mean, variance


def _collect_moments(name: str, inputs: Tensor) -> Moments:  # noqa: ARG001
    return _moments(inputs)
