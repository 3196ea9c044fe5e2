"""Costs of layers at given ranks: parameters, multiply-accumulates, or measured time."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from kegnet_pl.compression.report import count_parameters
from kegnet_pl.compression.tucker import (
    Factorisable,
    Ranks,
    empty_copy,
    factorised_parameters,
    has_one_rank,
    is_transposed,
    kernel_size,
    sides,
)
from kegnet_pl.networks.execution import copies_to_time, eval_mode, is_channels_last
from kegnet_pl.networks.handling import move
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.runtime.timing import time_in_turns

CostName = Literal["parameters", "macs", "latency"]
"""Quantity that a compression reduces."""

_REPEATS = 7
"""Number of measurements of a layer. The shortest counts, since other work on the machine only adds time."""

_SHORTEST = 1e-3
"""Minimum seconds of one measurement."""


class Cost(ABC):
    """Costs of the layers of a network, unchanged and factorised.

    Attributes:
        layers: The layers, by name.
        total: Cost of the whole network.
    """

    layers: Mapping[str, Factorisable]
    total: float

    @abstractmethod
    def of_layer(self, name: str) -> float:
        """Return the cost of an unchanged layer."""

    @abstractmethod
    def of_factors(self, name: str, in_ranks: np.ndarray, out_ranks: np.ndarray) -> np.ndarray:
        """Return the costs of a layer that is factorised at pairs of ranks, both ``(n,)``."""


class ParameterCost(Cost):
    """Weights and biases.

    Args:
        layers: Layers that may be factorised, by name.
        total: Parameters of the whole network.
        fold: See :class:`TuckerLayer`.
    """

    def __init__(self, layers: Mapping[str, Factorisable], total: int, fold: bool) -> None:
        self.layers, self.total, self.fold = layers, total, fold

    def of_layer(self, name: str) -> float:
        """Return the parameters of a layer."""
        return count_parameters(self.layers[name])

    def of_factors(self, name: str, in_ranks: np.ndarray, out_ranks: np.ndarray) -> np.ndarray:
        """Return the parameters of a factorised layer."""
        return np.asarray(factorised_parameters(self.layers[name], (in_ranks, out_ranks), self.fold), dtype=float)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LayerShape:
    """Shapes of one call of a layer in a forward pass of one sample.

    Attributes:
        inputs: Shape of its input.
        outputs: Shape of its output.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def positions(self, layer: Factorisable) -> tuple[int, int]:
        """Return the positions of input and output: rows of a dense layer, or pixels of a convolution."""
        if isinstance(layer, nn.Linear):
            return math.prod(self.inputs[:-1]), math.prod(self.outputs[:-1])
        return self.inputs[0] * math.prod(self.inputs[2:]), self.outputs[0] * math.prod(self.outputs[2:])


def observe_shapes(network: nn.Module, layers: Sequence[str], sample: Tensor) -> dict[str, list[LayerShape]]:
    """Return the shapes of every call of the layers that a network calls for one sample ``(1, *input_shape)``."""
    found: dict[str, list[LayerShape]] = {}

    def collect(name: str, pair: tuple[Tensor, Tensor]) -> None:
        found.setdefault(name, []).append(LayerShape(tuple(pair[0].shape), tuple(pair[1].shape)))

    recorder = LayerRecorder(network, layers, collect, source="both")
    with eval_mode(network), recorder, torch.no_grad():
        recorder.call(sample.clone())
    return found


class MacCost(Cost):
    """Multiply-accumulates for one sample.

    Args:
        layers: Layers that may be factorised, by name.
        shapes: The shapes of their calls (:func:`observe_shapes`).
        total: Multiply-accumulates of the whole network.
        fold: See :class:`TuckerLayer`.
    """

    def __init__(
        self, layers: Mapping[str, Factorisable], shapes: Mapping[str, Sequence[LayerShape]], total: int, fold: bool
    ) -> None:
        self.layers, self.shapes, self.total, self.fold = layers, shapes, total, fold

    def of_layer(self, name: str) -> float:
        """Return the multiply-accumulates of a layer."""
        layer = self.layers[name]
        return math.prod(sides(layer)) * kernel_size(layer) * self._positions(name)[2]

    def of_factors(self, name: str, in_ranks: np.ndarray, out_ranks: np.ndarray) -> np.ndarray:
        """Return the multiply-accumulates of a factorised layer."""
        layer = self.layers[name]
        (n_in, n_out), (before, after, of_kernel) = sides(layer), self._positions(name)
        if self.fold and has_one_rank(layer):
            rank = np.minimum(in_ranks, out_ranks)
            return rank * float(n_in * of_kernel + n_out * after)  # type: ignore[no-any-return]
        first, last = n_in * in_ranks * before, n_out * out_ranks * after
        if self.fold:
            first, last = first * (in_ranks < n_in), last * (out_ranks < n_out)
        core = in_ranks * out_ranks * kernel_size(layer) * of_kernel
        return (first + core + last).astype(float)  # type: ignore[no-any-return]

    def _positions(self, name: str) -> tuple[int, int, int]:
        """Return the positions of input and output and those of the kernel, over all calls of a layer."""
        layer = self.layers[name]
        before, after = (
            sum(counts) for counts in zip(*(one.positions(layer) for one in self.shapes[name]), strict=True)
        )
        return before, after, before if is_transposed(layer) else after


class LatencyCost(Cost):
    """Seconds for a batch on this device, measured layer by layer.

    Each layer is measured unchanged and at a few ranks. At other ranks, its time is
    ``a + b r_in + c r_out + d r_in r_out``. The coefficients are at least 0 and fitted by least squares, separately for
    each form (the set of parts that exist). Layers of equal shape are measured once. The whole network is also
    measured. The part of its time that these layers do not explain is taken as constant.

    Args:
        network: The network, on the device.
        layers: Layers that may be factorised, by name.
        shapes: The shapes of their calls (:func:`observe_shapes`).
        batch: Samples ``(B, *input_shape)``, on the device.
        fold: See :class:`TuckerLayer`.
        on_progress: Called with the share of the layers that are measured, in [0, 1).
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, Factorisable],
        shapes: Mapping[str, Sequence[LayerShape]],
        batch: Tensor,
        fold: bool,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.layers, self.shapes, self.fold, self._batch = layers, shapes, fold, batch
        (network,) = copies_to_time([network], batch.shape[1:])
        with eval_mode(network):
            (self.total,) = shortest_times([network], batch)
        last = is_channels_last(network)
        self._models: dict[str, list[_TimeModel]] = {}
        known: dict[str, _TimeModel] = {}
        for index, (name, layer) in enumerate(layers.items()):
            on_progress(index / len(layers))
            keys = [f"{layer} {shape.inputs}" for shape in shapes[name]]
            for key, shape in zip(keys, shapes[name], strict=True):
                if key not in known:
                    first, *rest = shape.inputs
                    x = torch.randn(first * len(batch), *rest, device=batch.device, dtype=layer.weight.dtype)
                    known[key] = _TimeModel(network.get_submodule(name), x, fold, last)  # type: ignore[arg-type]
            self._models[name] = [known[key] for key in keys]

    def speedup(self, network: nn.Module, other: nn.Module) -> float:
        """Return the time of a network divided by that of another one."""
        return measure_speedup(network, other, self._batch)

    def of_layer(self, name: str) -> float:
        """Return the seconds of a layer."""
        return sum(model.whole for model in self._models[name])

    def of_factors(self, name: str, in_ranks: np.ndarray, out_ranks: np.ndarray) -> np.ndarray:
        """Return the seconds of a factorised layer."""
        return np.sum([model.predict(in_ranks, out_ranks) for model in self._models[name]], axis=0)  # type: ignore[no-any-return]


class _TimeModel:
    """Seconds of an unchanged layer, and of its factorised forms as a function of the ranks."""

    def __init__(self, layer: Factorisable, x: Tensor, fold: bool, channels_last: bool) -> None:
        self.full, self.one_rank = sides(layer), fold and has_one_rank(layer)
        self._fold = fold
        pairs = self._pairs()
        forms: list[nn.Module] = [empty_copy(layer, pair, fold).eval() for pair in pairs]
        if channels_last and x.dim() == 4 and layer.weight.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
            forms = [move(form, memory_format=torch.channels_last) for form in forms]
        times = shortest_times([layer, *forms], x)
        self.whole = times[0]
        measured: dict[str, list[tuple[Ranks, float]]] = {}
        for pair, seconds in zip(pairs, times[1:], strict=True):
            measured.setdefault(self._form(*pair), []).append((pair, seconds))
        self._weights = {
            form: nnls(self._terms(*np.array([pair for pair, _ in found]).T), np.array([value for _, value in found]))[
                0
            ]
            for form, found in measured.items()
        }

    def _pairs(self) -> list[Ranks]:
        """Return the ranks to measure: some for each form."""
        n_in, n_out = self.full
        if self.one_rank:
            return [(rank, rank) for rank in _some(min(self.full))]
        pairs = [(a, b) for a, b in itertools.product(_some(n_in - 1), _some(n_out - 1))]
        return [*pairs, *((n_in, b) for b in _some(n_out - 1)), *((a, n_out) for a in _some(n_in - 1)), self.full]

    def _form(self, in_rank: int, out_rank: int) -> str:
        """Return the name of the parts at a pair of ranks."""
        if self.one_rank or not self._fold:
            return ""
        return f"{in_rank < self.full[0]} {out_rank < self.full[1]}"

    @staticmethod
    def _terms(in_ranks: np.ndarray, out_ranks: np.ndarray) -> np.ndarray:
        columns = [np.ones(len(in_ranks)), in_ranks, out_ranks, in_ranks * out_ranks]
        return np.stack(columns, axis=1).astype(float)

    def predict(self, in_ranks: np.ndarray, out_ranks: np.ndarray) -> np.ndarray:
        """Return the seconds at pairs of ranks."""
        terms = self._terms(in_ranks, out_ranks)
        forms = np.array([self._form(a, b) for a, b in zip(in_ranks, out_ranks, strict=True)])
        seconds = np.empty(len(terms))
        for form in np.unique(forms):
            seconds[forms == form] = terms[forms == form] @ self._weights[form]
        return seconds


def _some(most: int) -> list[int]:
    """Return about four ranks from 1 to ``most``, denser for small ones; none for 0."""
    return sorted({max(round(most * share), 1) for share in (0.1, 0.3, 0.6, 1.0)}) if most > 0 else []


def make_batch(samples: Tensor, size: int) -> Tensor:
    """Return a batch of different samples, repeated if there are too few.

    The time of some layers depends on the values, for example of max pooling on a CPU.
    """
    return samples[torch.arange(size, device=samples.device) % len(samples)]


def measure_speedup(network: nn.Module, other: nn.Module, batch: Tensor) -> float:
    """Return the time of a network for a batch, divided by that of another one, in the same memory layout."""
    copies = copies_to_time([network, other], batch.shape[1:])
    with ExitStack() as stack:
        for copied in copies:
            stack.enter_context(eval_mode(copied))
        first, second = shortest_times(copies, batch, rounds=(15, 100), seconds=0.5)
    return first / second


@torch.no_grad()
def shortest_times(
    networks: Sequence[nn.Module], x: Tensor, rounds: tuple[int, int] = (_REPEATS, _REPEATS), seconds: float = 0.0
) -> list[float]:
    """Return the shortest seconds of a call of each network or layer; see :func:`time_in_turns`."""
    calls = [(network, x) for network in networks]
    times = time_in_turns(calls, shortest=_SHORTEST, rounds=rounds, seconds=seconds)
    return [min(found) for found in times]
