"""Moments of a network's layers on samples, and the sensitivity of its logits to them."""

import functools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.compression.tucker import Convolution, Factorisable, is_transposed
from kegnet_pl.networks.execution import at_least_float32, eval_mode
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.runtime.errors import first_line
from kegnet_pl.runtime.seeds import stream

POSITIONS = 64
"""Number of output positions of a convolution that are used per sample; positions of one sample are similar."""

_MOST, _LEAST, _VALUES = 128, 16, 2**21
"""Maximum and minimum number of samples per forward pass, and number of input values: it limits large images."""


@dataclass(frozen=True)
class Calibration:
    """Samples for a compression that preserves the function of a network, not only its weights.

    Attributes:
        samples: ``(N, *input_shape)``, for the choice of ranks and for the fit of layers.
        held_out: Samples that decide if the fit of a layer is kept.
        seed: Seed of random directions and positions.
    """

    samples: Tensor
    held_out: Tensor
    seed: int = 0


@dataclass
class LayerMoments:
    """Second moments of one layer, over samples and output positions, in float64.

    Attributes:
        calls: Calls of the layer in a forward pass.
        positions: Output positions per sample; 1 for a dense layer of feature rows.
        inputs: ``E[x x^T]`` of the input channels, ``(in, in)``; None if it was not measured.
        outputs: Covariance of the outputs, ``(out, out)``.
        sensitivity: ``E[J^T J]``, ``(out, out)``: J is the Jacobian of the centred logits by the output at a position,
            so that ``positions * e^T sensitivity e`` estimates the squared change of the logits by an error ``e``.
    """

    calls: int
    positions: int
    inputs: Tensor | None
    outputs: Tensor
    sensitivity: Tensor


def chunks(samples: Tensor) -> tuple[Tensor, ...]:
    """Split samples ``(N, *input_shape)`` into chunks for forward passes that store the outputs of all layers."""
    size = min(max(_VALUES // math.prod(samples.shape[1:]), _LEAST), _MOST)
    return tuple(samples.split(size))


def to_rows(x: Tensor, channels_first: bool) -> Tensor:
    """Return activations ``(B, C, *)`` if ``channels_first``, else ``(B, *, C)``, as rows of channels in float32."""
    return at_least_float32(
        (x.movedim(1, -1) if channels_first else x).reshape(-1, x.shape[1 if channels_first else -1])
    )


def patches(layer: Factorisable, x: Tensor) -> Tensor:
    """Return the inputs of all output positions ``(B, positions, D)``, so that the output is ``patches @ W^T``."""
    x = at_least_float32(x)
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
    x, stride = _pad(layer, x)
    for axis, (kernel, dilation, step) in enumerate(zip(layer.kernel_size, layer.dilation, stride, strict=True), 2):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, step)[..., ::dilation]
    axes = len(layer.kernel_size)  # x is (B, C, *positions, *kernel)
    x = x.movedim(1, 1 + axes).flatten(1, axes)
    return x.flatten(2)


def _pad(layer: Convolution, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input of a convolution with its padding, and the stride; of a transposed one with zeros in between."""
    if not is_transposed(layer):
        # As in torch's own forward, for "same" and other modes.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode), layer.stride
    sizes = [step * (size - 1) + 1 for step, size in zip(layer.stride, x.shape[2:], strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    places: Any = (..., *(slice(None, None, int(step)) for step in layer.stride))
    spread[places] = x
    pads: list[int] = []
    options: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.output_padding)
    for kernel, dilation, padding, extra in zip(*options, strict=True):
        border = dilation * (kernel - 1) - padding
        pads = [border, border + extra, *pads]  # of the last axis first
    return functional.pad(spread, pads), (1,) * len(sizes)


def takes_batches(layer: Factorisable, x: Tensor) -> bool:
    """Return True for an input that is a batch of samples; a layer also accepts a single sample, or none."""
    return len(x) > 0 and (x.dim() > 1 if isinstance(layer, nn.Linear) else x.dim() == len(layer.kernel_size) + 2)


def probe_gradients(
    logits: Tensor, outputs: Sequence[Tensor], rng: torch.Generator, probes: int
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield gradients of random combinations of the centred logits by the outputs of layers; their mean is unbiased."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    for _ in range(probes):
        direction = torch.randn(logits.shape, generator=rng).to(logits)
        yield torch.autograd.grad((centred * direction).sum(), outputs, retain_graph=True, allow_unused=True)


def _track(calls: Counter[str], name: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return input and output of a layer, the output with a gradient; None where gradients are off. Count the call."""
    x, y = pair
    calls[name] += 1
    if not torch.is_grad_enabled():
        return x, None
    return x.detach().clone(), y if y.requires_grad else y.detach().requires_grad_()


def _call(
    network: nn.Module, recorder: LayerRecorder, x: Tensor, rng: torch.Generator, probes: int
) -> Iterator[tuple[str, Tensor, Tensor, list[Tensor]]]:
    """Yield name, input, output and gradients of every call of a layer that has them."""
    try:
        logits, each = recorder.call_each(x.detach().requires_grad_().clone())  # the network may work in place
        values = [
            (name, *pair)
            for name, pairs in each.items()
            for pair in pairs
            if pair[1] is not None and takes_batches(network.get_submodule(name), pair[0])  # type: ignore[arg-type]
        ]
        if not values:
            return
        found = list(probe_gradients(logits, [output for *_, output in values], rng, probes))
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # out of memory
            raise
        raise ValueError(
            f"Expected a network {type(network).__name__} whose logits have gradients by the outputs of its layers, "
            f"but it failed: {first_line(error).rstrip('.')}. Use fit='weights', which needs none."
        ) from error
    for index, (name, inputs, output) in enumerate(values):
        gradients = [probe[index] for probe in found]
        yield name, inputs, output.detach(), [value for value in gradients if value is not None]


def measure_layers(
    network: nn.Module,
    layers: Sequence[str],
    samples: Tensor,
    *,
    probes: int = 2,
    seed: int = 0,
    of_inputs: Collection[str] | None = None,
) -> dict[str, LayerMoments]:
    """Return the moments of the layers that a network calls, in the order in which it calls them.

    Layers that it calls with gradients off, with named arguments or without a batch dimension are left out.

    Args:
        network: Returns logits ``(B, C)``; it is not changed.
        layers: Names of convolutions and dense layers.
        samples: Samples ``(N, *input_shape)``, on the network's device.
        probes: Random directions in the logits per sample.
        seed: Seed of the directions.
        of_inputs: Layers whose moments of the inputs are measured; None for all.

    Raises:
        ValueError: If the logits have no gradients, or values of a layer are not finite.
    """
    rng = stream(seed, "probes")
    sums: dict[str, tuple[int, int, list[Tensor]]] = {}
    calls: Counter[str] = Counter()
    recorder = LayerRecorder(
        network,
        layers,
        functools.partial(_track, calls),
        source="both",
        replace=lambda pair: None if pair[1] is None else pair[1].clone(),  # the next module may work in place
    )
    with eval_mode(network), recorder, torch.enable_grad():
        for x in chunks(samples):
            for name, inputs, output, gradients in _call(network, recorder, x, rng, probes):
                is_conv = not isinstance(network.get_submodule(name), nn.Linear)
                rows = to_rows(output, is_conv)
                found = [torch.zeros(()), _square(rows), rows.sum(dim=0).double().cpu(), torch.zeros(rows.shape[1], 1)]
                if of_inputs is None or name in of_inputs:
                    rows_in = to_rows(inputs, is_conv)
                    found[0] = _square(rows_in) / len(rows_in) * len(rows)
                for gradient in gradients:
                    found[3] = found[3] + _square(to_rows(gradient, is_conv)) / probes
                count, _, before = sums.get(name, (0, 0, [torch.zeros(())] * 4))
                total = [a + b for a, b in zip(before, found, strict=True)]
                sums[name] = (count + len(rows), max(len(rows) // len(x), 1), total)
    moments = {}
    for name, (count, positions, total) in sums.items():
        inputs, outputs, mean, sensitivity = (value.double() / count for value in total)
        if not all(bool(value.isfinite().all()) for value in (inputs, outputs, sensitivity)):
            raise ValueError(
                f"Expected samples for which layer {name!r} has finite values and gradients, but it has NaN or "
                f"infinite ones. Use another source of samples, or fit='weights'."
            )
        moments[name] = LayerMoments(
            math.ceil(calls[name] / len(chunks(samples))),
            positions,
            inputs if inputs.dim() else None,
            outputs - torch.outer(mean, mean),
            sensitivity.expand(len(mean), len(mean)),
        )
    return moments


def _square(rows: Tensor) -> Tensor:
    return (rows.T @ rows).double().cpu()
