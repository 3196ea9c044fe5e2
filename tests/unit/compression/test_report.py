import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.compression import CompressionPlan, CompressionReport, Rule, measure_size, restore_structure
from kegnet_pl.networks import LeNet5, ResNet14
from tests.unit.compression.networks import LAYERS, Small, count, equal, tensors


def _compressed() -> tuple[Small, nn.Module, CompressionReport]:
    network = Small()
    result = CompressionPlan([Rule("blocks.*", 2), Rule("fc1", {"in": 2, "out": 3})]).apply(network, Small.input_shape)
    return network, result.network, result.report


# Input (3, 8, 8): the stem halves it to 4x4, the transposed convolution doubles it again.
MACS = {
    "stem": 4 * 4 * 12 * 3 * 9,
    "blocks": 4 * (4 * 4 * 12 * 12 * 9),
    "blocks.0": 2 * (4 * 4 * 12 * 12 * 9),
    "blocks.0.conv1": 4 * 4 * 12 * 12 * 9,
    "depthwise": 4 * 4 * 12 * 1 * 9,
    "up": 4 * 4 * 12 * 6 * 4,
    "fc1": 6 * 20,
    "fc2": 20 * 5,
}


def test_cost_equals_the_hand_computed_one() -> None:
    cost = measure_size(Small(), Small.input_shape)

    assert cost.parameters == count(Small())
    assert {name: cost.layer_macs[name] for name in MACS} == MACS
    assert cost.macs == sum(MACS[name] for name in ("stem", "blocks", "depthwise", "up", "fc1", "fc2"))


def test_cost_of_lenet5() -> None:
    cost = measure_size(LeNet5(), (1, 32, 32))
    conv1, conv2, conv3 = 28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25, 120 * 16 * 25

    assert cost.macs == conv1 + conv2 + conv3 + 120 * 84 + 84 * 10
    assert cost.parameters == 61_706


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 5, 3, stride=2), (3, 9, 9), 4 * 4 * 5 * 3 * 9),
        (nn.Conv2d(3, 5, (1, 3), padding=(0, 1), stride=(3, 1)), (3, 9, 6), 3 * 6 * 5 * 3 * 3),
        (nn.Conv2d(4, 6, 3, dilation=2), (4, 7, 7), 3 * 3 * 6 * 4 * 9),
        (nn.Linear(7, 11), (7,), 77),
        (nn.Linear(7, 11), (5, 7), 5 * 77),
    ],
    ids=str,
)
def test_cost_of_one_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    cost = measure_size(nn.Sequential(layer), shape)

    assert (cost.macs, cost.layer_macs["0"]) == (macs, macs)


def test_a_layer_that_is_used_twice_costs_twice_and_has_its_weights_once() -> None:
    layer = nn.Linear(6, 6)
    cost = measure_size(nn.Sequential(layer, nn.ReLU(), layer), (6,))

    assert (cost.parameters, cost.macs) == (42, 72)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_mode_and_statistics_alone(training: bool) -> None:
    network = ResNet14().train(training)
    network.layers1.train(not training)
    modes = {name: module.training for name, module in network.named_modules()}
    before = tensors(network)
    measure_size(network, (3, 32, 32))

    assert {name: module.training for name, module in network.named_modules()} == modes
    assert equal(tensors(network), before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_mode_is_restored_after_an_error() -> None:
    network = Small().train()
    with pytest.raises(RuntimeError):
        measure_size(network, (4, 8, 8))

    assert all(module.training for module in network.modules())


def test_measures_in_the_networks_own_type() -> None:
    assert measure_size(nn.Sequential(nn.Linear(3, 4).double()), (3,)).macs == 12


def test_totals_equal_real_counts() -> None:
    network, small, report = _compressed()

    assert (report.parameters_before, report.parameters_after) == (count(network), count(small))
    assert report.macs_before == measure_size(network, Small.input_shape).macs
    assert report.macs_after == measure_size(small, Small.input_shape).macs
    assert report.compression_ratio == count(network) / count(small) > 1


def test_rows_equal_real_counts() -> None:
    network, small, report = _compressed()

    assert [row.layer for row in report.rows] == LAYERS
    for row in report.rows:
        assert row.parameters_before == count(network.get_submodule(row.layer))
        assert row.parameters_after == count(small.get_submodule(row.layer))
    kinds = [row.kind for row in report.rows]
    assert kinds == ["conv"] * 6 + ["transposed"] + ["linear"] * 2
    assert sum(row.macs_before for row in report.rows) == report.macs_before
    assert sum(row.macs_after for row in report.rows) == report.macs_after
    norms = 2 * count(network.blocks[0].norm)
    assert sum(row.parameters_before for row in report.rows) + norms == report.parameters_before
    assert sum(row.parameters_after for row in report.rows) + norms == report.parameters_after


def test_macs_of_compressed_layers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(160, 5))
    plan = CompressionPlan([Rule("0", {"in": 2, "out": 4}), Rule("2", {"in": 3, "out": 2})], when_larger="compress")
    rows = {row.layer: row for row in plan.apply(network, (3, 8, 8)).report.rows}

    # The first 1x1 convolution works at full resolution, 8x8; the core strides to 4x4.
    assert rows["0"].macs_before == 4 * 4 * 10 * 3 * 9
    assert rows["0"].macs_after == 8 * 8 * 3 * 2 + 4 * 4 * 2 * 4 * 9 + 4 * 4 * 4 * 10
    assert rows["2"].macs_before == 160 * 5
    assert rows["2"].macs_after == 160 * 3 + 3 * 2 + 2 * 5


def test_ranks_of_compressed_layers_alone() -> None:
    _, _, report = _compressed()

    blocks = ("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2")
    assert report.ranks == {**dict.fromkeys(blocks, (2, 2)), "fc1": (2, 3)}
    assert {row.layer: row.ranks for row in report.rows if row.ranks is None} == dict.fromkeys(
        ("stem", "depthwise", "up", "fc2")
    )


def test_to_dict_is_plain() -> None:
    _, _, report = _compressed()
    content = json.loads(json.dumps(report.to_dict()))

    assert content["compression_ratio"] == report.compression_ratio
    assert content["parameters_after"] == report.parameters_after
    assert content["rows"][1]["layer"] == "blocks.0.conv1"
    assert (content["rows"][1]["in_rank"], content["rows"][1]["out_rank"]) == (2, 2)
    assert content["rows"][0]["in_rank"] is None


def test_structure_and_weights_round_trip() -> None:
    _, small, report = _compressed()
    again = restore_structure(Small(), report.ranks)
    again.load_state_dict(small.state_dict())
    x = torch.randn(2, *Small.input_shape)

    assert equal(tensors(again), tensors(small))
    assert torch.equal(again.eval()(x), small.eval()(x))
    assert str(again) == str(small)


def test_restoring_changes_in_place_and_returns_the_network() -> None:
    network = Small()
    assert restore_structure(network, {"fc1": (2, 3)}) is network
    assert network.fc1[0].out_features == 2


def test_restoring_an_unknown_layer_is_refused() -> None:
    with pytest.raises(AttributeError, match="fc7"):
        restore_structure(Small(), {"fc7": (1, 1)})


def test_restoring_ranks_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in rank between 1 and 6 .* but got 30"):
        restore_structure(Small(), {"fc1": (30, 1)})


class Wrapper(nn.Module):
    """A network whose inner network has its own class name among the names."""

    def __init__(self) -> None:
        super().__init__()
        self.Wrapper = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.Wrapper(x)


def test_a_layer_named_like_the_network() -> None:
    assert measure_size(Wrapper(), (4,)).layer_macs == {"Wrapper": 16}


def test_a_note_of_several_layers_stands_below_the_table() -> None:
    report = _compressed()[2]
    rows = [dataclasses.replace(row, note="same" if index < 3 else "rare") for index, row in enumerate(report.rows[:5])]
    _, *layers, _, below = str(dataclasses.replace(report, rows=tuple(rows))).splitlines()
    assert [line.split()[-1] for line in layers] == ["(1)", "(1)", "(1)", "rare", "rare"] and below == "(1) same"


def test_a_report_is_printed_as_a_table() -> None:
    report = _compressed()[2]
    head, *layers, network = str(report).splitlines()[: len(report.rows) + 2]
    assert head.split() == ["layer", "kind", "ranks", "in,", "out", "parameters", "MACs", "note"]
    assert [line.split()[0] for line in layers] == [row.layer for row in report.rows]
    (line,) = (line for line in layers if line.startswith("fc1"))
    assert "2, 3" in line and "120 -> 78" in line and f"{report.parameters_after:,}" in network
    kinds = [line[head.index("kind") :].split()[0] for line in layers]
    assert kinds == [row.kind for row in report.rows], "aligned"
    assert network.endswith(f"{report.compression_ratio:.2f}x smaller")
