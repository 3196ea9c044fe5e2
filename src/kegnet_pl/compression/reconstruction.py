"""Reconstruction: layers of a compressed network are fitted to the outputs of the teacher's layers.

For a layer with inputs p (patches, of the compressed network), the teacher's outputs y at the same positions, and the
sensitivity G of the teacher's logits to y, the fit minimises ``E (y - W p - b)^T G (y - W p - b)`` in closed form. W
has the ranks of the compressed layer, or any rank where the layer is not compressed.

Source:
    Asymmetric reconstruction after Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and
    Detection", 2016; the metric G is the Gauss-Newton matrix of the divergence between the outputs.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.compression.activations import (
    POSITIONS,
    Calibration,
    LayerMoments,
    chunks,
    patches,
    takes_batches,
    to_rows,
)
from kegnet_pl.compression.allocation import metric_root, weighted_inputs
from kegnet_pl.compression.cut import cut
from kegnet_pl.compression.tucker import (
    LARGE,
    Convolution,
    Factorisable,
    TuckerLayer,
    has_one_rank,
    kernel_size,
    read_weight,
    write_weight,
)
from kegnet_pl.networks.execution import eval_mode
from kegnet_pl.networks.handling import copy_network
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.kept import Kept, kept_channels, select_kept
from kegnet_pl.runtime.seeds import stream

IDENTITY_SHARE = 0.1
"""Share of the identity in the metric: no direction of the outputs is without cost."""

RIDGE = 1e-3
"""Weight of the distance to the teacher's weights, relative to the mean square of the inputs."""

ALTERNATIONS, _GRADIENT_STEPS = 10, 30
"""Rounds of the fit of a convolution, and steps of conjugate gradients in each. The error hardly falls after the third
round."""

_FEW_ALTERNATIONS, _FEW_GRADIENT_STEPS = 3, 8
"""The same for a convolution with more than LARGE inputs: its steps are slow."""

MOST_INPUTS = 6_000
"""Largest number of inputs (channels x kernel) of a layer that is fitted: a matrix of them squared is needed."""

_MOST_BYTES = 2**29
"""Limit for stored outputs of the teacher. Layers share a forward pass if their outputs fit into the limit; a single
layer may exceed it."""


@dataclass
class _Regression:
    """Moments of a regression from patches to the teacher's outputs, and the metric of the outputs, in float64.

    Attributes:
        inputs: Second moments of the patches, ``(D, D)``, damped.
        cross: Second moments of outputs and patches, ``(out, D)``, with the teacher's weights for the damping.
        metric: ``(out, out)``.
        mean_inputs: ``(D,)``; zero for a layer without a bias.
        mean_outputs: ``(out,)``; zero for a layer without a bias.
    """

    inputs: Tensor
    cross: Tensor
    metric: Tensor
    mean_inputs: Tensor
    mean_outputs: Tensor

    @functools.cached_property
    def metric_root(self) -> Tensor:
        """A square root of the metric."""
        return metric_root(self.metric)


def choose_positions(values: Tensor, rng: torch.Generator) -> Tensor:
    """Return values ``(B, positions, D)`` at :data:`POSITIONS` random positions, the same for each sample."""
    positions = values.shape[1]
    return values if positions <= POSITIONS else values[:, torch.randperm(positions, generator=rng)[:POSITIONS]]


Calls = list[tuple[Tensor, int] | None]
"""Outputs of the calls of a layer, each with the number of its positions; None for a call without a batch."""


class _TeacherOutputs:
    """Outputs of the teacher's layers on the samples of a calibration, at the positions of the fit.

    Args:
        teacher: The network.
        moments: Moments of its layers, in the order of the fit.
        calibration: The samples.
    """

    def __init__(self, teacher: nn.Module, moments: Mapping[str, LayerMoments], calibration: Calibration) -> None:
        self._teacher = teacher
        self._calibration = calibration
        self._moments = {name: measured for name, measured in moments.items() if can_fit(teacher.get_submodule(name))}
        self._found: dict[str, list[Calls]] = {}

    def take(self, name: str) -> list[Calls]:
        """Return the outputs ``(B, positions, out)`` of all calls of a layer for every chunk, with their positions.

        Layers are taken in the order of the fit.
        """
        if name not in self._found:
            self._found = self._record(name)
        return self._found.pop(name)

    def _record(self, first: str) -> dict[str, list[Calls]]:
        """Return the outputs of a layer, and of as many later layers as fit into the limit."""
        order = list(self._moments)
        names: list[str] = []
        total = 0
        for name in order[order.index(first) :]:
            measured = self._moments[name]
            positions = measured.calls * min(measured.positions, POSITIONS)
            total += 4 * len(self._calibration.samples) * positions * len(measured.outputs)
            if names and total > _MOST_BYTES:
                break
            names.append(name)
        streams = {name: stream(self._calibration.seed, "positions") for name in names}

        def collect(name: str, output: Tensor) -> tuple[Tensor, int] | None:
            layer: Factorisable = self._teacher.get_submodule(name)  # type: ignore[assignment]
            earlier = (recorder.values or {}).get(name)
            if earlier and self._moments[name].calls == 1:
                return earlier[0]  # type: ignore[no-any-return]
            if not takes_batches(layer, output):
                return None
            rows = to_rows(output, not isinstance(layer, nn.Linear))
            values = rows.reshape(len(output), -1, rows.shape[1])
            streams[name].set_state(states[name])  # each call of a layer has the positions of the first
            return choose_positions(values, streams[name]).clone(), values.shape[1]

        recorder = LayerRecorder(self._teacher, names, collect, source="output")
        calls = []
        with eval_mode(self._teacher), recorder, torch.no_grad():
            for x in chunks(self._calibration.samples):
                states = {name: generator.get_state() for name, generator in streams.items()}
                calls.append(recorder.call_each(x.clone())[1])
        return {name: [values.get(name, []) for values in calls] for name in names}


def _collect(
    outputs: list[Calls],
    layer: Factorisable,
    student: nn.Module,
    name: str,
    calibration: Calibration,
    moments: LayerMoments,
) -> _Regression | None:
    """Return the regression of a layer of the teacher; patches are of the student, ``outputs`` of the teacher.

    None if the calls do not match: a network may route samples by their values.
    """
    rng = stream(calibration.seed, "positions")
    weight = read_weight(layer).detach().cpu().double().flatten(1)
    outputs_of_layer, dimension = weight.shape
    square = torch.zeros(dimension, dimension, dtype=torch.float64)
    product = torch.zeros(outputs_of_layer, dimension, dtype=torch.float64)
    sums = torch.zeros(dimension, dtype=torch.float64), torch.zeros(outputs_of_layer, dtype=torch.float64)
    count = 0
    recorder = LayerRecorder(student, [name], lambda _, x: x.clone() if len(x) else None, source="input")
    with eval_mode(student), recorder, torch.no_grad():
        for x, targets in zip(chunks(calibration.samples), outputs, strict=True):
            values = _inputs_of(recorder, name, x, moments.calls)
            if len(values) != len(targets):
                return None
            state = rng.get_state()
            for target, value in zip(targets, values, strict=True):
                rng.set_state(state)  # each call has the positions of the first
                if target is None and value is None:
                    continue
                if target is None or value is None or not takes_batches(layer, value):
                    return None
                (y, positions), p = target, patches(layer, value)
                if p.shape[:2] != (len(y), positions):
                    return None
                p, y = choose_positions(p, rng).reshape(-1, dimension), y.flatten(0, 1)
                square += (p.T @ p).double().cpu()
                product += (y.T @ p).double().cpu()
                sums[0].add_(p.sum(dim=0).double().cpu())
                sums[1].add_(y.sum(dim=0).double().cpu())
                count += len(p)
    if not count:
        return None
    square, product, (mean_p, mean_y) = square / count, product / count, (value / count for value in sums)
    if layer.bias is None:
        mean_p, mean_y = torch.zeros_like(mean_p), torch.zeros_like(mean_y)
    inputs = square - torch.outer(mean_p, mean_p)
    # Where the inputs hardly vary, the rounding error of their mean square is larger than their variance.
    damping = RIDGE * max(float(inputs.diagonal().mean()), 1e-3 * float(square.diagonal().mean()), 1e-20)
    metric = moments.sensitivity / moments.sensitivity.diagonal().mean().clamp_min(1e-30)
    return _Regression(
        inputs + damping * torch.eye(dimension, dtype=torch.float64),
        product - torch.outer(mean_y, mean_p) + damping * weight,
        (1 - IDENTITY_SHARE) * metric + IDENTITY_SHARE * torch.eye(len(metric), dtype=torch.float64),
        mean_p,
        mean_y,
    )


def _reduced_rank(inputs: Tensor, cross: Tensor, root: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``B`` (out, rank) and ``C`` (rank, D) that minimise the error of ``B C`` in the metric ``root @ root``."""
    factor = torch.linalg.cholesky(inputs + 1e-12 * inputs.diagonal().mean() * torch.eye(len(inputs)).to(inputs))
    whitened = root @ torch.linalg.solve_triangular(factor, cross.T, upper=False).T
    values, vectors = torch.linalg.eigh(whitened @ whitened.T)
    kept = vectors[:, len(values) - rank :]
    solution = torch.cholesky_solve(cross.T, factor).T  # the regression without a limit of rank
    return torch.linalg.solve(root, kept), kept.T @ root @ solution


def _columns(factor: Tensor, rank: int) -> Tensor:
    """Return a factor with columns of zeros, up to a rank."""
    return functional.pad(factor, (0, rank - factor.shape[1]))


def _fit_matrix(layer: TuckerLayer, regression: _Regression, original: Factorisable) -> Tensor:
    """Fit a factorised layer without a kernel; return its weight ``(out, in)``."""
    rank = min(layer.ranks)
    left, right = _reduced_rank(regression.inputs, regression.cross, regression.metric_root, rank)
    # Orthonormal outer factors, as those of Tucker: the core holds the scale.
    q_in, r_in = torch.linalg.qr(right.T)
    q_out, r_out = torch.linalg.qr(left)
    in_rank, out_rank = layer.ranks
    core = functional.pad(r_out @ r_in.T, (0, in_rank - rank, 0, out_rank - rank))
    core = core.reshape(*core.shape, *(1,) * (original.weight.dim() - 2))
    layer.set_factors(_columns(q_in, in_rank), core, _columns(q_out, out_rank))
    return left @ right


def _fit_conv(layer: TuckerLayer, regression: _Regression, original: Convolution) -> Tensor:
    """Fit a factorised convolution; return its weight ``(out, in * kernel)``.

    The input factor starts from the directions of the channels that matter most to the logits. Then the output factor
    with the core, in closed form, and the input factor, by conjugate gradients, alternate.
    """
    in_rank, out_rank = layer.ranks
    channels, kernel = original.in_channels, kernel_size(original)
    inputs = regression.inputs.reshape(channels, kernel, channels, kernel)
    root, gram = weighted_inputs(original, torch.einsum("ckdk->cd", inputs) / kernel, regression.metric)
    directions = torch.linalg.eigh(gram)[1][:, channels - in_rank :]
    a = torch.linalg.qr(torch.linalg.solve(root, directions))[0].T
    cross = regression.cross.reshape(-1, channels, kernel)
    rank = min(out_rank, in_rank * kernel)
    rounds = ALTERNATIONS if channels * kernel <= LARGE else _FEW_ALTERNATIONS
    for step in range(rounds):
        reduced = torch.einsum("rc,ckdl,sd->rksl", a, inputs, a).reshape(in_rank * kernel, -1)
        product = torch.einsum("ock,rc->ork", cross, a).flatten(1)
        left, right = _reduced_rank(reduced, product, regression.metric_root, rank)
        if step < rounds - 1:
            a = torch.linalg.qr(_update_inputs(a, left, right.reshape(rank, in_rank, kernel), regression, cross).T)[0].T
    q_out, r_out = torch.linalg.qr(left)
    core = functional.pad(r_out @ right, (0, 0, 0, out_rank - rank))
    layer.set_factors(a.T, core.reshape(out_rank, in_rank, *original.kernel_size), _columns(q_out, out_rank))
    return torch.einsum("or,rsk,sc->ock", left, right.reshape(rank, in_rank, kernel), a).flatten(1)


def _update_inputs(a: Tensor, left: Tensor, right: Tensor, regression: _Regression, cross: Tensor) -> Tensor:
    """Return the input factor (r, in) that fits best to the other factors, by conjugate gradients from ``a``."""
    channels, kernel = a.shape[1], right.shape[2]
    metric = left.T @ regression.metric @ left

    def apply(value: Tensor) -> Tensor:
        weight = torch.einsum("qsk,sc->qck", right, value).flatten(1)
        error = (metric @ weight @ regression.inputs).reshape(-1, channels, kernel)
        return torch.einsum("qsk,qck->sc", right, error)

    target = torch.einsum("qsk,qck->sc", right, torch.einsum("oq,op,pck->qck", left, regression.metric, cross))
    residual = target - apply(a)
    direction, size = residual.clone(), residual.square().sum()
    start = size.clone()
    for _ in range(_GRADIENT_STEPS if channels * kernel <= LARGE else _FEW_GRADIENT_STEPS):
        if size <= 1e-12 * start or size == 0:
            break
        applied = apply(direction)
        rate = size / (direction * applied).sum().clamp_min(1e-300)
        a, residual = a + rate * direction, residual - rate * applied
        new = residual.square().sum()
        direction, size = residual + new / size * direction, new
    return a


@torch.no_grad()
def _fit(layer: nn.Module, original: Factorisable, regression: _Regression) -> None:
    """Fit a plain or factorised layer with its bias, in place."""
    if not isinstance(layer, TuckerLayer):
        weight = torch.linalg.solve(regression.inputs, regression.cross.T).T
        write_weight(layer, weight.reshape(read_weight(original).shape))
    elif isinstance(original, nn.Linear) or (has_one_rank(original) and len(layer) == 2):
        weight = _fit_matrix(layer, regression, original)
    else:
        weight = _fit_conv(layer, regression, original)
    bias = layer.bias
    if bias is not None:
        bias.copy_(regression.mean_outputs - weight @ regression.mean_inputs)  # type: ignore[operator]


@torch.no_grad()
def _log_probabilities(network: nn.Module, samples: Tensor) -> Tensor:
    with eval_mode(network):
        return torch.cat([network(x.clone()).double().log_softmax(dim=1) for x in chunks(samples)])


def _divergence(student: nn.Module, samples: Tensor, target: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of a student from the teacher's log-probabilities, in nats."""
    found = _log_probabilities(student, samples)
    return float(functional.kl_div(found, target, reduction="batchmean", log_target=True))


def measure_agreement(teacher: nn.Module, student: nn.Module, samples: Tensor) -> float | None:
    """Return the share of samples ``(N, *input_shape)`` with the same class; None if the teacher has one for all."""
    first, second = (_log_probabilities(network, samples).argmax(dim=1) for network in (teacher, student))
    return float((first == second).double().mean()) if len(first.unique()) > 1 else None


def can_fit(layer: nn.Module) -> bool:
    """Return False for a layer that is too large, or whose output a hook may change."""
    return read_weight(layer)[0].numel() <= MOST_INPUTS and not layer._forward_hooks


def reconstruct(
    teacher: nn.Module,
    student: nn.Module,
    moments: Mapping[str, LayerMoments],
    calibration: Calibration,
    on_progress: Callable[[float], None] = lambda _: None,
) -> list[str]:
    """Fit the layers of a compressed network one after another to the teacher's function; no gradient step is made.

    A fit is kept if it lowers the divergence from the teacher on samples that were not used to fit. In a pruned
    network, all fits are kept or none: each layer compensates for channels that are missing in all layers, so some fits
    alone do not help. Outputs of a pruned layer are fitted to the same channels of the teacher.

    Args:
        teacher: Returns logits ``(B, C)``; it is not changed.
        student: The compressed teacher, with factorised layers, or with fewer channels; changed in place.
        moments: Moments of the teacher's layers, in the order of the fit (:func:`measure_layers`).
        calibration: Samples, on the device of both networks.
        on_progress: Called with the share of the layers that are fitted, in [0, 1).

    Returns:
        The layers whose fit was kept.
    """
    target = _log_probabilities(teacher, calibration.held_out)
    kept_of_teacher = kept_channels(student, teacher)
    pruned = cut(copy_network(teacher), kept_of_teacher) if kept_of_teacher else teacher
    outputs = _TeacherOutputs(teacher, moments, calibration)
    kept, best = [], _divergence(student, calibration.held_out, target)
    start, whole = best, copy.deepcopy(student.state_dict()) if kept_of_teacher else None
    for index, (name, measured) in enumerate(moments.items()):
        on_progress(index / len(moments))
        layer, original = student.get_submodule(name), pruned.get_submodule(name)
        if not can_fit(teacher.get_submodule(name)):
            continue
        of_teacher = _select_outputs(outputs.take(name), kept_of_teacher, name)
        measured = _select_moments(measured, kept_of_teacher, name)
        regression = _collect(of_teacher, original, student, name, calibration, measured)  # type: ignore[arg-type]
        if regression is None:
            continue
        before = copy.deepcopy(layer.state_dict())
        try:
            _fit(layer, original, regression)  # type: ignore[arg-type]
            found = _divergence(student, calibration.held_out, target)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no arithmetic of this precision solves it
            found = math.inf
        if found < best or (kept_of_teacher and math.isfinite(found)):
            best = found
            kept.append(name)
        else:
            layer.load_state_dict(before)
    if whole is not None and not best < start:
        student.load_state_dict(whole)
        return []
    return kept


def _inputs_of(recorder: LayerRecorder, name: str, x: Tensor, calls: int) -> list[Tensor | None]:
    """Return the inputs of all calls of a layer; the forward pass stops at the first if there is only one."""
    if calls > 1:
        return recorder.call_each(x.clone())[1].get(name, [])
    value = recorder.call_first(x.clone())
    return [] if value is None else [value]


def _select_outputs(outputs: list[Calls], kept: Kept, name: str) -> list[Calls]:
    return [
        [None if one is None else (select_kept(kept, name, one[0], dim=2), one[1]) for one in calls]
        for calls in outputs
    ]


def _select_moments(moments: LayerMoments, kept: Kept, name: str) -> LayerMoments:
    sensitivity = select_kept(kept, name, select_kept(kept, name, moments.sensitivity), dim=1)
    return replace(moments, sensitivity=sensitivity)
