"""Ranks chosen so that the whole network reaches a compression ratio."""

import functools
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from kegnet_pl.compression import CompressionPlan, Rule, rules
from kegnet_pl.compression.plan import WhenLarger
from kegnet_pl.compression.rules import Candidate
from tests.unit.compression.networks import Small, count

BOTH: tuple[WhenLarger, ...] = ("keep", "compress")
each_when_larger = pytest.mark.parametrize("when_larger", BOTH)


class Net(nn.Module):
    """Input (2, 8, 8); three convolutions with signal and noise, so that every side has a spectrum of its own."""

    input_shape = (2, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 9, 3)
        self.conv2 = nn.Conv2d(9, 8, 3, stride=2)
        self.conv3 = nn.Conv2d(8, 7, 2)
        chance = torch.Generator().manual_seed(3)
        for layer in (self.conv1, self.conv2, self.conv3):
            left = torch.randn(layer.weight.shape[0], 3, generator=chance)
            right = torch.randn(3, layer.weight[0].numel(), generator=chance)
            noise = torch.randn(layer.weight.shape, generator=chance)
            layer.weight.data.copy_((left @ right).view_as(noise) + 0.5 * noise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.conv2(self.conv1(x).relu()).relu())


def _energies(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative shares of the squared singular values, input side and output side."""

    def energy(matrix: torch.Tensor) -> np.ndarray:
        squares = torch.linalg.svdvals(matrix.detach().double()).square().numpy()
        return np.cumsum(squares) / squares.sum()

    return energy(weight.transpose(0, 1).flatten(1)), energy(weight.flatten(1))


@pytest.mark.parametrize("layer", [nn.Linear(30, 20), nn.Linear(20, 30), nn.Conv2d(6, 70, 3), nn.Conv2d(8, 4, 3)])
@pytest.mark.parametrize("side", [0, 1])
def test_energies_of_a_large_layer_are_those_of_a_small_one(
    layer: nn.Conv2d | nn.Linear, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _energies(layer.weight)[side]
    for large in (1_024, 0):
        monkeypatch.setattr(rules, "LARGE", large)
        found = Candidate("layer", layer, ("target", "target")).energy(side)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def _ratio(network: nn.Module, ranks: dict[str, tuple[int, int]], when_larger: WhenLarger) -> float:
    """Real parameter counts of the network that is really built at these ranks."""
    rules = [Rule(name, {"in": pair[0], "out": pair[1]}) for name, pair in ranks.items()]
    small = CompressionPlan(rules, when_larger=when_larger).apply(network, Net.input_shape).network
    return count(network) / count(small)


@functools.cache
def _all(when_larger: WhenLarger) -> list[tuple[float, dict[str, tuple[int, int]]]]:
    """Ratio and ranks at every share of kept energy at which some rank changes."""
    network = Net()
    energies = {name: _energies(network.get_submodule(name).weight) for name in ("conv1", "conv2", "conv3")}
    shares = sorted({0.0, *itertools.chain(*(side for pair in energies.values() for side in pair))})
    found: list[tuple[float, dict[str, tuple[int, int]]]] = []
    for share in shares:
        ranks = {}
        for name, pair in energies.items():
            needed = [next(r for r, kept in enumerate(side, 1) if kept >= share - 1e-9) for side in pair]
            ranks[name] = (needed[0], needed[1])
        found.append((_ratio(network, ranks, when_larger), ranks))
    return found


@each_when_larger
@pytest.mark.parametrize("target", [1.05, 1.2, 1.5, 2.0, 3.0, 4.5])
def test_equals_brute_force(target: float, when_larger: WhenLarger) -> None:
    report = CompressionPlan([Rule("*", "target")], target, when_larger).apply(Net(), Net.input_shape).report
    enough = [pair for pair in _all(when_larger) if pair[0] >= target]
    ratio, ranks = min(enough, key=lambda pair: pair[0])
    if ratio > 1.05 * target:  # then some ranks are larger
        assert target <= report.compression_ratio <= ratio
        assert all(mine[side] >= ranks[name][side] for name, mine in report.ranks.items() for side in (0, 1))
        return

    assert report.compression_ratio == pytest.approx(ratio, rel=1e-12)
    assert report.compression_ratio >= target
    assert 0 < len(report.ranks) <= 3
    assert report.ranks.items() <= ranks.items()


def test_both_sides_of_a_square_dense_layer_get_one_rank() -> None:
    """They have the same singular values, so ranks that differ would come from rounding, and vary by machine."""
    network = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24))
    for target in (1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.4, 3.0, 4.0):
        ranks = CompressionPlan([Rule("*", "target")], target).apply(network, (24,)).report.ranks
        assert all(pair[0] == pair[1] for pair in ranks.values()), f"target {target}: {ranks}"


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("target", [1.05, 1.2, 1.3])
def test_one_free_side_is_the_largest_rank_that_reaches_the_target(side: str, target: float) -> None:
    network = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    pair: dict[str, int | float | str] = {"in": 6, "out": 6} | {side: "target"}
    report = CompressionPlan([Rule("0", pair)], target).apply(network, (20,)).report

    def ratio(rank: int) -> float:
        r_in, r_out = (rank, 6) if side == "in" else (6, rank)
        return count(network) / (20 * r_in + r_in * r_out + r_out * 30 + 30 + 310)

    best = max(rank for rank in range(1, 21) if ratio(rank) >= target)
    assert report.ranks == {"0": (best, 6) if side == "in" else (6, best)}
    assert report.compression_ratio == ratio(best) >= target > ratio(best + 1)


def test_fixed_and_free_layers_together() -> None:
    rules = [Rule("fc1", 2), Rule("stem", "full"), Rule("blocks.*", "target")]
    report = CompressionPlan(rules, target=3.0).apply(Small(), Small.input_shape).report

    assert report.ranks["fc1"] == (2, 2)
    assert report.compression_ratio >= 3
    free = {name: pair for name, pair in report.ranks.items() if name.startswith("blocks")}
    assert len(free) == 4
    assert any(rank > 1 for pair in free.values() for rank in pair)


def test_a_higher_target_never_gives_more_parameters() -> None:
    network = Small()
    after = [
        CompressionPlan([Rule("*", "target")], target).apply(network, Small.input_shape).report.parameters_after
        for target in (1.2, 1.5, 2.0, 3.0, 5.0)
    ]

    assert after == sorted(after, reverse=True)
    assert len(set(after)) == 5


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # tensorly's relative error of nothing
def test_weights_without_signal_do_not_break_the_search() -> None:
    network = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    nn.init.zeros_(network[0].weight)
    report = CompressionPlan([Rule("*", "target")], 2.0).apply(network, (20,)).report

    assert report.compression_ratio >= 2
    assert report.ranks["0"] == (1, 1)


@pytest.mark.parametrize("width", [17, 20, 30, 41])
def test_an_unreachable_target_is_refused_and_the_message_names_one_within_reach(width: int) -> None:
    network = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 10))
    plan = CompressionPlan([Rule("*", "target")], target=1000.0)
    with pytest.raises(ValueError, match=r"`target` of at most .* but got 1000\.0\. Every rank") as error:
        plan.apply(network, (width,))
    found = re.search(r"at most (\S+) by", str(error.value))
    assert found is not None
    report = CompressionPlan([Rule("*", "target")], float(found[1])).apply(network, (width,)).report

    assert report.compression_ratio == pytest.approx(float(found[1]), abs=0.05)


@pytest.mark.parametrize("target", [1.0, 0.5, -2.0, math.inf, math.nan])
def test_bad_target_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=rf"`target` to be a compression ratio above 1, but got {target}"):
        CompressionPlan([Rule("*", "target")], target)


def test_target_and_target_ranks_come_together() -> None:
    with pytest.raises(
        ValueError, match=r"`target`, a compression ratio, since a rule has the rank 'target', but got None"
    ):
        CompressionPlan([Rule("*", {"in": "target", "out": 3})])
    with pytest.raises(ValueError, match=r"rule with the rank 'target' to reach target=2\.0, but there is none"):
        CompressionPlan([Rule("*", 3)], target=2.0)


class Lopsided(nn.Module):
    """Input (1, 8, 8); nearly all parameters are in the head, whose ranks come in steps of a thousand parameters."""

    input_shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().flatten(1))


@pytest.mark.parametrize("target", [2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
def test_what_a_large_layer_cannot_use_is_spent_on_the_others(target: float) -> None:
    network = Lopsided()
    small = CompressionPlan([Rule("*", "target")], target).apply(network, Lopsided.input_shape)
    reached = count(network) / count(small.network)
    assert target <= reached
    head = small.report.ranks["head"]
    assert head[0] == head[1], "a matrix has one rank"
    if reached <= 1.05 * target:
        return
    # No convolution could have one rank more: the target would be missed, or the layer be as large as it was.
    for name in ("conv1", "conv2"):
        layer = network.get_submodule(name)
        r_in, r_out = small.report.ranks.get(name, (layer.in_channels, layer.out_channels))
        for more in ((r_in + 1, r_out), (r_in, r_out + 1)):
            if more[0] > layer.in_channels or more[1] > layer.out_channels:
                continue
            rules = [Rule(name, {"in": more[0], "out": more[1]}), Rule("head", {"in": head[0], "out": head[1]})]
            larger = CompressionPlan(rules, when_larger="compress").apply(network, Lopsided.input_shape)
            assert count(larger.network.get_submodule(name)) >= count(layer)


def test_a_target_is_met_closely() -> None:
    network = Lopsided()
    reached = {}
    for target in (2.0, 3.0, 4.0, 5.0, 6.0):
        small = CompressionPlan([Rule("*", "target")], target).apply(network, Lopsided.input_shape)
        reached[target] = count(network) / count(small.network)
    assert all(ratio < 1.05 * target for target, ratio in reached.items()), reached


def test_nothing_to_factorise() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match=r"layers that can be factorised, to reach target=2\.0, but got none"):
        CompressionPlan([Rule("*", "target")], 2.0).apply(grouped, (4, 8, 8))
    with pytest.raises(ValueError, match="dense layers, but it has none"):
        CompressionPlan([Rule("*", 1)]).apply(nn.Sequential(nn.ReLU()), (3,))
