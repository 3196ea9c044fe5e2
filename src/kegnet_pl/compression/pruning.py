"""Structured pruning: channels, units and attention heads are removed from all layers that share them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from kegnet_pl.compression.activations import Calibration, LayerMoments, measure_layers
from kegnet_pl.compression.allocation import BudgetError, TargetError
from kegnet_pl.compression.choice import check_target, default_round_to, lower_round_to, search_speed
from kegnet_pl.compression.costs import CostName, make_batch, measure_speedup, shortest_times
from kegnet_pl.compression.cut import CUTTABLE, cut
from kegnet_pl.compression.dependencies import import_library
from kegnet_pl.compression.elimination import WidthCosts, eliminate
from kegnet_pl.compression.groups import ChannelGroup, find_groups, keep
from kegnet_pl.compression.importance import prepare
from kegnet_pl.compression.plan import find_layers, kind_of, measure_original, to_compress
from kegnet_pl.compression.reconstruction import can_fit, measure_agreement, reconstruct
from kegnet_pl.compression.report import (
    Compressed,
    CompressionReport,
    LayerReport,
    ModelSize,
    count_parameters,
    measure_size,
)
from kegnet_pl.compression.rules import fittable_layers
from kegnet_pl.compression.tucker import Factorisable, TuckerLayer, sides
from kegnet_pl.networks.execution import copies_to_time, eval_mode
from kegnet_pl.networks.handling import copy_network, freeze
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.kept import Kept


class PruningPlan:
    """A plan of structured pruning: a target, for any network that Torch-Pruning can follow.

    Groups of channels come from its dependency graph. Each group is tried (:func:`find_groups`). Channels are removed
    in the order of :func:`eliminate`. Then all layers are fitted to the network's function (:func:`reconstruct`).

    Args:
        target: Ratio of the whole network before / after, above 1, of what ``by`` names.
        by: ``"parameters"``, ``"macs"`` (multiply-accumulates), or ``"latency"``, the time for a batch, which is
            measured on the device of the samples.
        round_to: A layer keeps a multiple of this number of channels, or all. None: 8 for ``by="latency"``, otherwise
            1.
        batch_size: Samples of the batch for ``by="latency"``.

    Raises:
        ValueError: If an argument is out of range.
        ConfigError: If Torch-Pruning is not installed.
    """

    def __init__(
        self, target: float | None, *, by: CostName = "parameters", round_to: int | None = None, batch_size: int = 64
    ) -> None:
        if target is None:
            raise ValueError(
                "Expected `target` to be the ratio that pruning must reach, but got None. Set it, for example to 2.0."
            )
        round_to = default_round_to(by) if round_to is None else round_to
        check_target(target, by, round_to, batch_size)
        import_library()
        self.target, self.by, self.round_to, self.batch_size = target, by, round_to, batch_size

    @threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # many small matrices: threads only wait
    def apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Compressed:
        """Prune a copy of a network.

        Args:
            network: Any network without factorised layers; it is not changed.
            input_shape: Shape of one sample.
            calibration: Samples; None is an error.
            on_progress: Called with the finished share, in [0, 1).

        Returns:
            The smaller network and its report. Frozen layers stay frozen; if all are, all weights are trainable.

        Raises:
            BudgetError: If the target cannot be reached; the message has the highest ratio found.
            ValueError: If the library cannot follow the network, no channel can be removed, weights are not finite, or
                the network does not accept such samples.
        """
        if calibration is None:
            raise ValueError("Expected samples for method='pruning', but got none. Use fit='function'.")
        if any(isinstance(layer, TuckerLayer) for layer in network.modules()):
            raise ValueError(
                "Expected a network without factorised layers for method='pruning', but got one with them. Prune it "
                "first, then factorise it."
            )
        with to_compress(network, input_shape) as copied:
            return self._apply(copied, input_shape, calibration, on_progress)

    def _apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration,
        on_progress: Callable[[float], None],
    ) -> Compressed:
        layers = find_layers(network)
        before = measure_original(network, input_shape)
        teacher = freeze(copy_network(network))
        sample = calibration.samples[:1].clone()  # the network may work in place
        groups, reasons = find_groups(network, sample)
        fittable = fittable_layers(teacher)
        readers = {part.name for group in groups for part in group.readers}
        names = [name for name in layers if name in readers or name in fittable]
        moments = measure_layers(teacher, names, calibration.samples, seed=calibration.seed, of_inputs=())
        usable = [group for group in groups if any(part.name in moments for part in group.readers)]
        if not usable:
            found = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
            raise ValueError(
                f"Expected a network with channels that can be removed, but {type(network).__name__} has none"
                f"{f' ({found})' if found else ''}. Use method='tucker', on the command line compression=ratio."
            )
        on_progress(0.1)
        kept = self._choose(teacher, usable, moments, fittable, calibration, before, input_shape)
        on_progress(0.5)
        student = cut(network, kept)
        fitted = reconstruct(
            teacher,
            student,
            {name: measured for name, measured in moments.items() if name in fittable},
            calibration,
            lambda share: on_progress(0.5 + 0.5 * share),
        )
        after = measure_size(student, input_shape)
        rows = tuple(_describe(name, teacher.get_submodule(name), student, before, after, reasons) for name in layers)
        report = CompressionReport(rows, before.parameters, after.parameters, before.macs, after.macs)
        agreement = measure_agreement(teacher, student, calibration.held_out)
        return Compressed(student, report, tuple(fitted), agreement, "pruning")

    def _choose(
        self,
        network: nn.Module,
        groups: Sequence[ChannelGroup],
        moments: Mapping[str, LayerMoments],
        fittable: Sequence[str],
        calibration: Calibration,
        before: ModelSize,
        input_shape: Sequence[int],
    ) -> Kept:
        """Return the channels to keep, as many as the target allows."""
        fitted = [name for name in fittable if can_fit(network.get_submodule(name))]
        importances = prepare(network, groups, moments, fitted, calibration.samples, calibration.seed)
        batch = make_batch(calibration.samples, self.batch_size) if self.by == "latency" else None
        costs = _measure_costs(network, groups, before, self.by, batch)
        steps = eliminate(importances, costs, self.round_to)
        if batch is not None:
            history = [(index, channels, costs.left) for index, channels in steps]
            if not history:
                raise BudgetError(1.0, 1 / self.target, self._nothing_to_remove())
            return self._search(network, groups, history, costs.total, batch)
        alive = [torch.ones(group.size, dtype=torch.bool) for group in groups]
        for index, channels in steps:
            alive[index][channels] = False
            if costs.left * self.target <= costs.total:
                kept = keep(network, groups, alive)
                if self._ratio(network, kept, before, input_shape) >= self.target:
                    return kept
        most = self._ratio(network, keep(network, groups, alive), before, input_shape)
        if all(bool(mask.all()) for mask in alive):
            raise BudgetError(1.0, 1 / self.target, self._nothing_to_remove())
        raise TargetError(most, self.target, self.by, "Every layer keeps some channels. Lower the target.")

    def _nothing_to_remove(self) -> str:
        return (
            f"Expected layers that can lose channels, but none has more than `round_to`={self.round_to} of them. Lower "
            f"`round_to`."
        )

    def _ratio(self, network: nn.Module, kept: Kept, before: ModelSize, input_shape: Sequence[int]) -> float:
        small = cut(copy_network(network), kept)
        if self.by == "parameters":
            return before.parameters / count_parameters(small)
        return before.macs / measure_size(small, input_shape).macs

    def _search(
        self,
        network: nn.Module,
        groups: Sequence[ChannelGroup],
        history: Sequence[tuple[int, Tensor, float]],
        total: float,
        batch: Tensor,
    ) -> Kept:
        """Return the channels to keep for a target of latency, as measured."""

        def allocate(budget: float) -> Kept:
            alive = [torch.ones(group.size, dtype=torch.bool) for group in groups]
            for index, channels, left in history:
                alive[index][channels] = False
                if left <= budget:
                    return keep(network, groups, alive)
            raise BudgetError(history[-1][2], budget)

        def measure(kept: Kept) -> float:
            return measure_speedup(network, cut(copy_network(network), kept), batch)

        remedy = (
            f"Pruning convolutions with few channels increases the speed only slightly. Lower the target"
            f"{lower_round_to(self.round_to)}."
        )
        return search_speed(self.target, total / self.target, total, allocate, measure, remedy)


def _measure_costs(
    network: nn.Module, groups: Sequence[ChannelGroup], size: ModelSize, by: CostName, batch: Tensor | None
) -> WidthCosts:
    """Return the costs of the layers, parameters and attentions of groups."""
    names = list(dict.fromkeys(part.name for group in groups for part in group.parts))
    modules, values = dict(network.named_modules()), dict(network.named_parameters())
    costs: dict[str, float] = {}
    if batch is not None:
        total, costs = _measure_seconds(network, [name for name in names if name in modules], batch)
    elif by == "parameters":
        total = size.parameters
        for name in names:
            own = [values[name]] if name in values else modules[name].parameters(recurse=False)
            costs[name] = sum(value.numel() for value in own)
    else:
        total = size.macs
        for name in names:
            inside = [f"{name}.{child}" for child, _ in modules[name].named_children()] if name in modules else []
            costs[name] = size.layer_macs.get(name, 0) - sum(size.layer_macs.get(child, 0) for child in inside)
    return WidthCosts(network, groups, costs, total)


def _measure_seconds(network: nn.Module, names: Sequence[str], batch: Tensor) -> tuple[float, dict[str, float]]:
    """Return the seconds of a network for a batch, and the seconds of some of its layers."""
    (network,) = copies_to_time([network], batch.shape[1:])
    names = [name for name in names if isinstance(network.get_submodule(name), CUTTABLE)]
    inputs: dict[str, list[Tensor]] = {}
    recorder = LayerRecorder(network, names, lambda name, x: inputs.setdefault(name, []).append(x), source="input")
    known: dict[str, float] = {}

    def seconds(name: str, x: Tensor) -> float:
        layer = network.get_submodule(name)
        key = f"{layer} {tuple(x.shape)}"
        if key not in known:
            (known[key],) = shortest_times([layer], x)
        return known[key]

    with eval_mode(network), torch.no_grad():
        with recorder:
            recorder.call(batch.clone())
        (total,) = shortest_times([network], batch)
        return total, {name: sum(seconds(name, x) for x in found) for name, found in inputs.items()}


def _describe(
    name: str,
    layer: nn.Module,
    student: nn.Module,
    before: ModelSize,
    after: ModelSize,
    reasons: Mapping[str, str],
) -> LayerReport:
    """Return the row of a layer in the report."""
    own = student.get_submodule(name)
    first, second = (sides(one) if isinstance(one, Factorisable) else None for one in (layer, own))
    note = ""
    if first is None:
        note = f"unchanged: {type(layer).__name__} cannot be pruned"
    elif second is not None and first[1] == second[1]:
        note = f"outputs unchanged: {reasons.get(name, 'other channels change the logits less')}"
    return LayerReport(
        layer=name,
        kind=kind_of(layer),
        in_rank=None,
        out_rank=None,
        parameters_before=count_parameters(layer),
        parameters_after=count_parameters(own),
        macs_before=before.layer_macs.get(name, 0),
        macs_after=after.layer_macs.get(name, 0),
        note=note,
        channels_before=first,
        channels_after=second,
    )
