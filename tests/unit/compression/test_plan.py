from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.compression import Compressed, CompressionPlan, LayerReport, Rule, TuckerLayer, evbmf
from tests.unit.compression.networks import LAYERS, Small, count, equal, storages, tensors

CONVOLUTIONS = ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]


def _apply(*rules: Rule, network: nn.Module | None = None, **options: Any) -> Compressed:
    return CompressionPlan(rules, **options).apply(network or Small(), Small.input_shape)


def _row(result: Compressed, layer: str) -> LayerReport:
    return next(row for row in result.report.rows if row.layer == layer)


def test_the_first_rule_that_matches_decides() -> None:
    rules = [Rule("blocks.1.conv1", 3), Rule("blocks.1.*", 2), Rule("blocks.*", 4)]
    ranks = _apply(*rules).report.ranks

    assert ranks == dict(zip(CONVOLUTIONS, [(4, 4), (4, 4), (3, 3), (2, 2)], strict=True))
    assert _apply(*reversed(rules)).report.ranks == dict.fromkeys(CONVOLUTIONS, (4, 4))


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        ("blocks.*.conv1", ["blocks.0.conv1", "blocks.1.conv1"]),
        ("blocks.0.*", ["blocks.0.conv1", "blocks.0.conv2"]),
        ("*conv[2]", ["blocks.0.conv2", "blocks.1.conv2"]),
        ("blocks.?.conv1", ["blocks.0.conv1", "blocks.1.conv1"]),
        (["blocks.0.conv1", "*1.conv2"], ["blocks.0.conv1", "blocks.1.conv2"]),
        ("*", ["stem", *CONVOLUTIONS, "up", "fc1", "fc2"]),
    ],
)
def test_patterns(patterns: str | list[str], named: list[str]) -> None:
    result = _apply(Rule(patterns, 1))

    assert list(result.report.ranks) == named
    for name in named:
        assert isinstance(result.network.get_submodule(name), TuckerLayer)


@pytest.mark.parametrize("pattern", ["conv1", "blocks", "STEM", "blocks.0.norm", "blocks.*.conv3"])
def test_a_pattern_that_matches_nothing_is_refused_and_the_layers_are_listed(pattern: str) -> None:
    with pytest.raises(ValueError) as error:
        _apply(Rule("*", 1), Rule(["fc1", pattern], 1))

    assert f"`layers` to name layers of the network, but {pattern!r} matches none of: " in str(error.value)
    assert str(error.value).endswith(f"{', '.join(LAYERS)}.")


@pytest.mark.parametrize(
    ("rank", "ranks"),
    [
        (3, (3, 3)),
        ({"in": 2, "out": 5}, (2, 5)),
        ({"in": "full", "out": 1}, (12, 1)),
        (0.25, (3, 3)),
        (0.65, (8, 8)),  # 7.8, rounded
        (0.01, (1, 1)),  # never a layer of rank 0
        ({"in": 0.5, "out": 2}, (6, 2)),
        ({"in": 1, "out": 1.0}, (1, 12)),
    ],
)
def test_ranks(rank: int | float | dict[str, int | float | str], ranks: tuple[int, int]) -> None:
    result = _apply(Rule("blocks.0.conv1", rank))
    row = _row(result, "blocks.0.conv1")

    assert (row.in_rank, row.out_rank, row.note) == (*ranks, "")
    assert row.parameters_after == 12 * ranks[0] + 9 * ranks[0] * ranks[1] + 12 * ranks[1] + 12
    first, core, last = result.network.get_submodule("blocks.0.conv1")
    assert (first.out_channels, core.in_channels, core.out_channels, last.in_channels) == (ranks[0], *ranks, ranks[1])


def test_fractions_follow_each_side() -> None:
    ranks = _apply(Rule("fc1", 0.5), Rule("stem", {"in": 0.4, "out": 0.5}), when_larger="compress").report.ranks

    assert ranks == {"stem": (1, 6), "fc1": (3, 10)}


def _low_rank_network() -> Small:
    """Input side of blocks.0.conv1 of rank 2, output side of rank 3, and a little noise."""
    network, chance = Small(), torch.Generator().manual_seed(5)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=chance)

    weight = torch.einsum("op,pqhw,qi->oihw", normal(12, 3), normal(3, 2, 3, 3), normal(2, 12))
    network.blocks[0].conv1.weight.data.copy_(weight + 0.02 * normal(12, 12, 3, 3))
    network.blocks[1].conv1.weight.data.copy_(normal(12, 12, 3, 3))  # noise alone
    return network


def test_evbmf_asks_both_unfoldings() -> None:
    network = _low_rank_network()
    weight = network.blocks[0].conv1.weight.detach().double()
    result = _apply(Rule("blocks.0.conv1", "evbmf"), network=network)

    assert result.report.ranks == {"blocks.0.conv1": (2, 3)}
    assert _row(result, "blocks.0.conv1").note == ""
    assert evbmf(weight.transpose(0, 1).flatten(1).numpy()).rank == 2
    assert evbmf(weight.flatten(1).numpy()).rank == 3


def test_evbmf_rank_zero_is_raised_to_one_with_a_note() -> None:
    network = _low_rank_network()
    assert evbmf(network.blocks[1].conv1.weight.detach().flatten(1).double().numpy()).rank == 0
    result = _apply(Rule("blocks.1.conv1", "evbmf"), network=network)
    row = _row(result, "blocks.1.conv1")

    assert row.ranks == (1, 1)
    assert row.note == "EVBMF found in rank 0, raised to 1; EVBMF found out rank 0, raised to 1"


def test_evbmf_on_one_side() -> None:
    result = _apply(Rule("blocks.0.conv1", {"in": 5, "out": "evbmf"}), network=_low_rank_network())
    assert result.report.ranks == {"blocks.0.conv1": (5, 3)}


def test_what_cannot_be_factorised_is_left_alone_with_a_reason() -> None:
    result = _apply(Rule("*", 1), when_larger="compress")

    assert _row(result, "depthwise").note == "unchanged: grouped convolution"
    row = _row(result, "depthwise")
    assert row.ranks is None
    assert (row.parameters_after, row.macs_after) == (row.parameters_before, row.macs_before)
    assert type(result.network.depthwise) is nn.Conv2d

    recurrent = nn.Sequential(nn.GRU(4, 4), _First(), nn.Linear(4, 30))
    rows = {row.layer: row for row in CompressionPlan([Rule("*", 1)]).apply(recurrent, (6, 4)).report.rows}
    assert (rows["0"].kind, rows["0"].note) == ("GRU", "unchanged: GRU cannot be factorised here")
    assert rows["2"].ranks == (1, 1)


class _First(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[0]


def test_what_no_rule_names_is_left_alone_with_a_reason() -> None:
    result = _apply(Rule("blocks.*", 1))
    assert {row.note for row in result.report.rows if row.ranks is None} == {"unchanged: no rule matches it"}


@pytest.mark.parametrize(
    ("layer", "ranks", "larger"),
    [
        ("blocks.0.conv1", (12, 12), 2 * 12 * 12),
        ("blocks.0.conv1", (11, 11), 9 * 11 * 11 + 2 * 11 * 12 - 9 * 12 * 12),
        ("fc1", (4, 4), 0),  # 6 * 4 + 4 * 4 + 4 * 20 = 6 * 20: it saves none
    ],
)
def test_a_layer_that_would_grow_is_kept_with_a_reason(layer: str, ranks: tuple[int, int], larger: int) -> None:
    network = Small()
    result = _apply(Rule(layer, {"in": ranks[0], "out": ranks[1]}), network=network, when_larger="keep")
    row = _row(result, layer)

    assert row.ranks is None
    reason = f"would not reduce its cost (+{larger} parameters)"
    assert row.note == f"unchanged: ranks in {ranks[0]}, out {ranks[1]} {reason}"
    assert equal(tensors(result.network), tensors(network))


def test_a_layer_that_would_shrink_by_little_is_compressed() -> None:
    row = _row(_apply(Rule("fc1", {"in": 4, "out": 3})), "fc1")

    assert row.ranks == (4, 3)
    assert row.parameters_before - row.parameters_after == 24


def test_a_layer_that_would_grow_is_compressed_on_request() -> None:
    network = Small()
    result = _apply(Rule("blocks.0.conv1", "full"), network=network, when_larger="compress")
    row = _row(result, "blocks.0.conv1")
    x = torch.randn(2, *Small.input_shape)

    assert row.ranks == (12, 12)
    assert row.parameters_after == row.parameters_before + 2 * 12 * 12
    assert result.report.compression_ratio < 1
    torch.testing.assert_close(result.network.eval()(x), network.eval()(x), rtol=1e-4, atol=1e-5)


def test_keep_is_the_default() -> None:
    assert _apply(Rule("blocks.0.conv1", "full")).report.ranks == {}


@pytest.mark.parametrize("training", [True, False])
def test_the_original_stays_as_it_is_and_nothing_is_shared(training: bool) -> None:
    network = Small().train(training)
    before, structure = tensors(network), str(network)
    result = _apply(Rule("blocks.*", 2), network=network)
    modes = {module.training for module in network.modules()}
    with torch.no_grad():
        for tensor in [*result.network.parameters(), *result.network.buffers()]:
            tensor.zero_()

    assert equal(tensors(network), before)
    assert str(network) == structure
    assert modes == {training}
    assert not storages(network) & storages(result.network)


def test_what_is_left_alone_keeps_weights_and_statistics() -> None:
    network = Small()
    network(torch.randn(8, *Small.input_shape))
    kept = {name: tensor for name, tensor in tensors(network).items() if ".conv" not in name}
    after = tensors(_apply(Rule("blocks.*", 2), network=network).network)

    assert all(torch.equal(after[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_rank_beyond_the_side_is_refused_by_name(side: str) -> None:
    ranks = {"in": 1, "out": 1} | {side: 21}
    full = {"in": 6, "out": 20}[side]
    message = rf"`rank` between 1 and {full} for layer 'fc1' \({full} {side}put units\), but got 21\. Lower it, or"
    with pytest.raises(ValueError, match=message):
        _apply(Rule("fc1", ranks))
    with pytest.raises(ValueError, match=r"for layer 'stem' \(3 input channels\), but got 4"):
        _apply(Rule("stem", 4))


@pytest.mark.parametrize("rank", [0, -1, 0.0, -0.5, 1.5, True, "half", None, float("nan"), [2, 3]])
def test_bad_ranks_are_refused(rank: Any) -> None:
    for wrong in (rank, {"in": 1, "out": rank}):
        with pytest.raises(
            ValueError, match=r"`rank` to be one of .*'evbmf', 'full', 'target'.* an integer from 1"
        ) as error:
            Rule("*", wrong)
        assert f"but got {rank!r}." in str(error.value)


@pytest.mark.parametrize("rank", [{"in": 1}, {"in": 1, "out": 2, "both": 3}, {}, {"input": 1, "output": 2}])
def test_bad_pairs_are_refused(rank: Mapping[str, int]) -> None:
    with pytest.raises(ValueError, match=r"`rank` as a pair \{in: \.\.\., out: \.\.\.\}, but got"):
        Rule("*", rank)


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`layers` to hold at least one pattern"):
        Rule([], 1)
    with pytest.raises(ValueError, match=r"`rules` to hold at least one rule"):
        CompressionPlan([])
    with pytest.raises(ValueError, match=r"`when_larger` to be one of \('keep', 'compress'\), but got 'grow'"):
        CompressionPlan([Rule("*", 1)], when_larger="grow")  # type: ignore[arg-type]


class Shared(nn.Module):
    """One dense layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(30, 30)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_a_layer_under_two_names_stays_one_layer() -> None:
    network = CompressionPlan([Rule("*", 3)]).apply(Shared(), (30,)).network

    assert network.first is network.second
    assert count(network) <= count(Shared())


class Attention(nn.Module):
    """Its inner layer is a Linear whose weight is read, not called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True)
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(x, x, x)[0].mean(dim=1))


def test_a_layer_that_is_not_called_is_left_alone() -> None:
    result = CompressionPlan([Rule("*", 2)]).apply(Attention(), (5, 16))

    assert list(result.report.ranks) == ["fc"]
    assert result.network(torch.randn(2, 5, 16)).shape == (2, 16)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    network = Small()
    with torch.no_grad():
        next(network.parameters())[0] = float("nan")
    name = next(name for name, _ in network.named_parameters())
    with pytest.raises(ValueError, match=rf"finite weights, but got NaN or infinite values in {name}\."):
        CompressionPlan([Rule("*", 2)]).apply(network, (3, 9, 9))


def test_random_numbers_and_modes_of_the_caller_stay() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    network[1].eval()
    state = torch.random.get_rng_state()
    small = CompressionPlan([Rule("*", 1)]).apply(network, (6,)).network
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in small] == [True, False, True]
    assert small[0].training and small[0][0].training


@pytest.mark.parametrize("with_bias_kv", [False, True])
def test_layers_of_a_transformer_encoder(with_bias_kv: bool) -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 64, batch_first=True)
    if with_bias_kv:
        encoder.self_attn = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
    network = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 30)).eval()
    report = CompressionPlan([Rule("*", 2)]).apply(network, (5, 8)).report
    notes = {row.layer: row.note for row in report.rows}
    if with_bias_kv:
        assert "TransformerEncoderLayer reads its weight directly" in notes["0.linear1"]
        assert set(report.ranks) == {"2"}
    else:
        layers = ["q_proj", "k_proj", "v_proj", "out_proj"]
        assert set(report.ranks) == {*(f"0.self_attn.{name}" for name in layers), "0.linear1", "0.linear2", "2"}


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.fc.weight


def test_a_network_may_read_weights_directly() -> None:
    network, x = _Reader(), torch.randn(3, 6)
    small = CompressionPlan([Rule("*", 6)], when_larger="compress").apply(network, (6,)).network
    assert torch.allclose(small(x), network(x), atol=1e-5)


class _Data(_Reader):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.fc.weight_of_another_class  # type: ignore[operator]


def test_refuses_a_network_that_needs_another_class_of_layer() -> None:
    network = _Data()
    network.fc.weight_of_another_class = nn.Parameter(torch.ones(6, 6))
    with pytest.raises(ValueError, match=r"_Data failed after they were factorised.*Leave those layers out of `rules`"):
        CompressionPlan([Rule("*", 1)]).apply(network, (6,))
