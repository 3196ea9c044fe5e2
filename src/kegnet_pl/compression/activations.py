"""Moments of a network's layers on samples, and the sensitivity of its logits to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.compression.tucker import Factorisable
from kegnet_pl.networks.execution import eval_mode
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.runtime.seeds import stream

POSITIONS = 64
"""Output positions of a convolution that are used per sample; positions of one sample are much alike."""

_CHUNK = 128


@dataclass(frozen=True)
class Calibration:
    """Samples for a compression that looks at the function of a network, not only at its weights.

    Attributes:
        samples: ``(N, *input_shape)``, for the choice of ranks and for the fit of layers.
        held_out: Samples for the decision whether the fit of a layer is kept.
        seed: Seed of random directions and positions.
    """

    samples: Tensor
    held_out: Tensor
    seed: int = 0


@dataclass
class LayerMoments:
    """Second moments of one layer, over samples and output positions, in float64.

    Attributes:
        positions: Output positions per sample; 1 for a dense layer of feature rows.
        inputs: ``E[x x^T]`` of the input channels, ``(in, in)``.
        outputs: Covariance of the outputs, ``(out, out)``.
        sensitivity: ``E[J^T J]``, ``(out, out)``: J is the Jacobian of the centred logits by the output at a position,
            so that ``positions * e^T sensitivity e`` estimates the squared change of the logits by an error ``e``.
    """

    positions: int
    inputs: Tensor
    outputs: Tensor
    sensitivity: Tensor


def to_rows(x: Tensor, channels_first: bool) -> Tensor:
    """Return activations as rows of channels: ``(B, C, *)`` if ``channels_first``, else ``(B, *, C)``."""
    return (x.movedim(1, -1) if channels_first else x).reshape(-1, x.shape[1 if channels_first else -1])


def patches(layer: Factorisable, x: Tensor) -> Tensor:
    """Return the inputs of all output positions ``(B, positions, D)``, so that the output is ``patches @ W^T``."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        sides = layer._reversed_padding_repeated_twice  # of torch's own forward, for "same" and other modes
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = functional.pad(x, sides, mode=mode)
        padding: int | tuple[int, ...] = 0
    else:
        padding = layer.padding
    return functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride).transpose(1, 2)


def probe_gradients(
    logits: Tensor, outputs: Sequence[Tensor], rng: torch.Generator, probes: int
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield gradients of random combinations of the centred logits by the outputs of layers; their mean is unbiased."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    for _ in range(probes):
        direction = torch.randn(logits.shape, generator=rng).to(logits)
        yield torch.autograd.grad((centred * direction).sum(), outputs, retain_graph=True, allow_unused=True)


def measure_layers(
    network: nn.Module, layers: Sequence[str], samples: Tensor, *, probes: int = 2, seed: int = 0
) -> dict[str, LayerMoments]:
    """Return the moments of the layers that a network calls, in the order in which it calls them.

    Args:
        network: Returns logits ``(B, C)``; it is not changed.
        layers: Names of convolutions and dense layers.
        samples: Samples ``(N, *input_shape)``, on the network's device.
        probes: Random directions in the logits per sample.
        seed: Seed of the directions.
    """
    rng = stream(seed, "probes")
    sums: dict[str, tuple[int, int, list[Tensor]]] = {}
    recorder = LayerRecorder(network, layers, lambda _, pair: pair, source="both", replace=lambda pair: pair[1].clone())
    # A clone, as the next module may work in place.
    with eval_mode(network), recorder, torch.enable_grad():
        for x in samples.split(_CHUNK):
            logits, values = recorder.call(x.detach().requires_grad_())
            outputs = [output for _, output in values.values()]
            sensitivities = [torch.zeros(1, dtype=torch.float64)] * len(outputs)
            for gradients in probe_gradients(logits, outputs, rng, probes):
                for index, (name, gradient) in enumerate(zip(values, gradients, strict=True)):
                    if gradient is not None:
                        rows = to_rows(gradient, isinstance(network.get_submodule(name), nn.Conv2d))
                        sensitivities[index] = sensitivities[index] + (rows.T @ rows).double().cpu() / probes
            for (name, (inputs, output)), sensitivity in zip(values.items(), sensitivities, strict=True):
                is_conv = isinstance(network.get_submodule(name), nn.Conv2d)
                rows_in, rows_out = to_rows(inputs.detach(), is_conv), to_rows(output.detach(), is_conv)
                found = [
                    (rows_in.T @ rows_in).double().cpu() / len(rows_in) * len(rows_out),
                    (rows_out.T @ rows_out).double().cpu(),
                    rows_out.sum(dim=0).double().cpu(),
                    sensitivity.expand(rows_out.shape[1], rows_out.shape[1]),
                ]
                count, _, before = sums.get(name, (0, 0, [torch.zeros(())] * 4))
                total = [a + b for a, b in zip(before, found, strict=True)]
                sums[name] = (count + len(rows_out), len(rows_out) // len(x), total)
    moments = {}
    for name, (count, positions, total) in sums.items():
        of_inputs, of_outputs, mean, sensitivity = (value / count for value in total)
        moments[name] = LayerMoments(positions, of_inputs, of_outputs - torch.outer(mean, mean), sensitivity)
    return moments
