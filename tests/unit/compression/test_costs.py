"""Costs of layers, and targets of operations and of latency."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.compression import (
    Calibration,
    CompressionPlan,
    PruningPlan,
    Rule,
    TuckerLayer,
    costs,
    measure_size,
    pruning,
)
from kegnet_pl.compression.costs import LatencyCost, MacCost, ParameterCost, observe_shapes, shortest_times
from kegnet_pl.compression.tucker import empty_copy
from tests.unit.compression.networks import count


class _Network(nn.Module):
    shape = (3, 12, 10)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(16, 20, 3, padding=1)
        self.point = nn.Conv2d(20, 24, 1, stride=2)
        self.fc = nn.Linear(24, 30)
        self.out = nn.Linear(30, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x).relu()).relu()
        x = self.point(x).relu().flatten(2).transpose(1, 2)
        return self.out(self.fc(x).relu().mean(dim=1))


def _network() -> tuple[_Network, dict[str, Any]]:
    torch.manual_seed(0)
    network = _Network().eval()
    return network, dict(network.named_children())


@pytest.mark.parametrize("fold", [False, True])
def test_parameters_and_macs_are_those_of_the_factorised_network(fold: bool) -> None:
    network, layers = _network()
    size, sample = measure_size(network, network.shape), torch.zeros(1, *network.shape)
    shapes = observe_shapes(network, list(layers), sample)
    macs, parameters = MacCost(layers, shapes, size.macs, fold), ParameterCost(layers, size.parameters, fold)
    for name, layer in layers.items():
        assert macs.of_layer(name) == size.layer_macs[name]
        assert parameters.of_layer(name) == count(layer)
        for ranks in ((2, 3), (layer.weight.shape[1], 4), (3, layer.weight.shape[0])):
            changed, other = _network()
            setattr(changed, name, empty_copy(other[name], ranks, fold))
            new = measure_size(changed, network.shape)
            pair = [np.array([rank]) for rank in ranks]
            assert macs.of_factors(name, *pair)[0] == new.layer_macs[name], (name, ranks)
            assert size.parameters - count(layer) + parameters.of_factors(name, *pair)[0] == new.parameters


def _fake_times(networks: list[nn.Module], x: Tensor, **_: Any) -> list[float]:
    """Seconds that grow with the parameters: a machine without noise."""
    assert len(x) == 16
    return [1e-3 + 1e-6 * count(network) for network in networks]


def _compress(network: nn.Module, shape: tuple[int, ...], **options: Any) -> Any:
    x = torch.randn(150, *shape, generator=torch.Generator().manual_seed(0))
    return CompressionPlan([Rule("*", "target")], **options).apply(network, shape, Calibration(x[:100], x[100:]))


@pytest.mark.parametrize("sizes", [(12, 4), (4, 12)])
def test_a_layer_that_is_called_with_several_sizes(sizes: tuple[int, int]) -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(8, 30, 3, padding=1), nn.Linear(30, 4)

        def forward(self, x: Tensor) -> Tensor:
            maps = [self.conv(nn.functional.interpolate(x, size)) for size in sizes]
            return self.fc(sum(one.relu().mean(dim=(2, 3)) for one in maps))

    torch.manual_seed(0)
    report = _compress(Scales().eval(), (8, 12, 12), target=1.4, by="macs", fold=True).report
    assert 1.4 <= report.macs_before / report.macs_after < 1.6


@pytest.mark.parametrize("target", [1.3, 2.0])
def test_a_target_of_macs_is_reached(target: float) -> None:
    network, _ = _network()
    report = _compress(network, network.shape, target=target, by="macs", fold=True).report
    assert target <= report.macs_before / report.macs_after < 1.1 * target
    other = _compress(network, network.shape, target=target, fold=True).report
    assert other.ranks != report.ranks, "parameters are saved elsewhere"


@pytest.mark.parametrize(("by", "unit"), [("parameters", ""), ("macs", "2784 MACs"), ("latency", "microseconds")])
def test_a_layer_stays_if_its_factors_cost_more_by_the_quantity_of_the_target(by: Any, unit: str) -> None:
    network, _ = _network()
    x = torch.randn(150, *network.shape, generator=torch.Generator().manual_seed(0))

    def slow_factors(networks: list[nn.Module], x: Tensor, **_: Any) -> list[float]:
        return [1e-3 * len(list(network.modules())) for network in networks]

    with mock.patch.object(costs, "shortest_times", slow_factors):
        plan = CompressionPlan([Rule("point", 8)], by=by, batch_size=16)
        report = plan.apply(network, network.shape, Calibration(x[:100], x[100:])).report
        always = CompressionPlan([Rule("point", 8)], when_larger="compress", by=by, batch_size=16)
        ranks = always.apply(network, network.shape, Calibration(x[:100], x[100:])).report.ranks
    (row,) = (row for row in report.rows if row.layer == "point")
    assert (row.in_rank is None) == bool(unit), "a strided 1x1 convolution gets fewer parameters and more MACs"
    assert unit in row.note
    assert ranks["point"] == (8, 8)


def test_a_target_of_latency_is_reached() -> None:
    network, _ = _network()
    with mock.patch.object(costs, "shortest_times", _fake_times):
        compressed = _compress(network, network.shape, target=1.5, by="latency", batch_size=16, fold=True, round_to=1)
        first, second = _fake_times([network, compressed.network], torch.zeros(16))
        assert 1.5 <= first / second < 1.6
        with pytest.raises(ValueError, match=r"at most [2-9]\.\d\d by latency, but got 20.*has this speed-up"):
            _compress(network, network.shape, target=20, by="latency", batch_size=16, fold=True, round_to=1)


def test_times_of_forms_are_fitted() -> None:
    network, layers = _network()
    shapes = observe_shapes(network, list(layers), torch.zeros(1, *network.shape))
    with mock.patch.object(costs, "shortest_times", _fake_times):
        cost = LatencyCost(network, layers, shapes, torch.zeros(16, *network.shape), fold=True)
    for name, layer in layers.items():
        n_out, n_in = layer.weight.shape[:2]
        assert cost.of_layer(name) == pytest.approx(1e-3 + 1e-6 * count(layer))
        for ranks in ((2, 3), (n_in, 5), (2, n_out)):
            expected = 1e-3 + 1e-6 * count(empty_copy(layer, ranks, True))
            if name in ("fc", "out", "point"):  # a matrix has one rank
                ranks = (min(ranks),) * 2
            found = cost.of_factors(name, *(np.array([rank]) for rank in ranks))[0]
            assert found == pytest.approx(expected, rel=1e-6), (name, ranks)


@pytest.mark.parametrize("method", ["tucker", "pruning"])
def test_latency_is_measured_in_channels_last_memory_with_different_samples(method: Any) -> None:
    """A student is trained in channels-last memory, where convolutions are faster."""
    network, _ = _network()
    x = torch.randn(150, *network.shape, generator=torch.Generator().manual_seed(0))
    plan = (
        PruningPlan(1.3, by="latency", batch_size=16)
        if method == "pruning"
        else CompressionPlan([Rule("*", "target")], target=1.3, by="latency", batch_size=16, fold=True)
    )

    def times(networks: list[nn.Module], x: Tensor, **_: Any) -> list[float]:
        for one in networks:
            weights = [value for value in one.parameters() if value.dim() == 4]
            assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
        assert len(x) == 16 and not torch.equal(x[0], x[1])
        return _fake_times(networks, x)

    with mock.patch.object(costs, "shortest_times", times), mock.patch.object(pruning, "shortest_times", times):
        plan.apply(network, network.shape, Calibration(x[:100], x[100:]))
    assert all(value.is_contiguous() for value in network.parameters())


def test_too_few_samples_are_repeated() -> None:
    batch = costs.make_batch(torch.arange(3.0)[:, None], 7)
    assert batch.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_layers_of_equal_shape_are_measured_once() -> None:
    network = nn.Sequential(*(nn.Linear(9, 9) for _ in range(4)))
    layers: dict[str, Any] = dict(network.named_children())
    shapes = observe_shapes(network, list(layers), torch.zeros(1, 9))
    with mock.patch.object(costs, "shortest_times", side_effect=_fake_times) as measured:
        LatencyCost(network, layers, shapes, torch.zeros(16, 9), fold=True)
    assert measured.call_count == 2, "the network and one layer"


def test_measured_times_tell_a_large_network_from_a_small_one() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*(nn.Linear(600, 600) for _ in range(4)))
    (seconds,) = shortest_times([small], torch.randn(16, 8))
    (more,) = shortest_times([large], torch.randn(16, 600))
    assert 0 < seconds < more


@pytest.mark.parametrize(
    ("by", "given", "expected"), [("parameters", None, 1), ("macs", None, 1), ("latency", None, 8), ("latency", 1, 1)]
)
def test_targets_of_latency_round_by_default(by: Any, given: int | None, expected: int) -> None:
    assert CompressionPlan([Rule("*", "target")], 2.0, by=by, round_to=given).choice.round_to == expected
    assert PruningPlan(2.0, by=by, round_to=given).round_to == expected


@pytest.mark.parametrize("round_to", [4, 8])
def test_ranks_are_rounded(round_to: int) -> None:
    network, layers = _network()
    compressed = _compress(network, network.shape, target=1.6, round_to=round_to, fold=True)
    found = [layer for layer in compressed.network.children() if isinstance(layer, TuckerLayer)]
    assert found and compressed.report.compression_ratio >= 1.6
    for name, ranks in compressed.report.ranks.items():
        full = (layers[name].weight.shape[1], layers[name].weight.shape[0])
        assert all(rank % round_to == 0 or rank in (side, min(full)) for rank, side in zip(ranks, full, strict=True))


def test_a_layer_with_more_operations_gets_a_note() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 8, 3, stride=4), nn.Flatten(), nn.Linear(32, 4))
    (row, *_) = CompressionPlan([Rule("0", {"in": 24, "out": 2})]).apply(network, (32, 9, 9)).report.rows
    assert row.parameters_after < row.parameters_before and row.macs_after > row.macs_before
    assert row.note == f"more MACs than before: {row.macs_after / row.macs_before:.2f}x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "time"}, "`by` to be one of .* but got 'time'"),
        ({"round_to": 0}, "`round_to` to be a whole number of at least 1, but got 0"),
        ({"batch_size": 1.5}, "`batch_size` to be a whole number of at least 1, but got 1.5"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressionPlan([Rule("*", "target")], 2.0, **options)


@pytest.mark.parametrize("options", [{"by": "macs"}, {"round_to": 8}])
def test_samples_are_needed(options: dict[str, Any]) -> None:
    network, _ = _network()
    with pytest.raises(ValueError, match="Use fit='function'"):
        CompressionPlan([Rule("*", "target")], 2.0, **options).apply(network, network.shape)
