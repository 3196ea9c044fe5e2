"""Structured pruning: channels, units and heads that are removed, and networks that are left alone."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.compression import (
    Compressed,
    CompressionPlan,
    PruningPlan,
    Rule,
    costs,
    describe_structure,
    measure_size,
    pruning,
    restore_structure,
)
from kegnet_pl.compression.activations import Calibration
from kegnet_pl.compression.allocation import BudgetError
from kegnet_pl.compression.cut import cut, from_ranges, to_ranges
from kegnet_pl.compression.groups import find_groups
from kegnet_pl.networks import MLP, ResNet14, adapt_norm
from kegnet_pl.networks.kept import kept_channels
from kegnet_pl.runtime.errors import ConfigError, WeightsError
from kegnet_pl.sources import NoiseSource
from tests.unit.compression.networks import Small, count, equal, storages, tensors


class Residual(nn.Module):
    """Input (3, 8, 8), 5 classes: two stages of residual blocks, the second with a projection."""

    input_shape = (3, 8, 8)

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=bias), nn.BatchNorm2d(16)
        self.project = nn.Conv2d(8, 16, 1, stride=2, bias=bias)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.head((y + self.project(x)).relu().mean(dim=(2, 3)))


class Separable(nn.Module):
    """Input (3, 8, 8), 5 classes: depthwise and grouped convolutions, squeeze and excitation."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.grouped, self.norm = nn.Conv2d(12, 16, 3, groups=4), nn.GroupNorm(2, 16)
        self.head = nn.Linear(16 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.expand(x)).relu()
        x = x * self.excite(self.squeeze(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.norm(self.grouped(x)).relu().flatten(1))


class Dense(nn.Module):
    """Input (2, 16), 4 classes: signals, whose channels are concatenated."""

    input_shape = (2, 16)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.second, self.act = nn.Conv1d(8, 8, 3, padding=1), nn.PReLU(8)
        self.third = nn.Conv1d(16, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = torch.cat([x, self.act(self.second(x))], dim=1)
        return self.head(self.third(x).relu().mean(dim=2))


class Transformer(nn.Module):
    """Input (3, 8, 8), 5 classes: patches, a position for each, two encoder layers."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 4, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.encoder(x).mean(dim=1))


class Timm(nn.Module):
    """Input (3, 16, 16), 5 classes: a vision transformer of timm, whose projections are fused."""

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        self.inner = timm.models.vision_transformer.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=4, mlp_ratio=2, num_classes=5
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Rows(nn.Module):
    """Input (6,), 3 classes."""

    input_shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(6, 3, width=20, blocks=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Flat(nn.Sequential):
    """Input (1, 12, 12), 3 classes: as in LeNet-5, a dense layer reads all positions of the convolutions."""

    input_shape = (1, 12, 12)

    def __init__(self) -> None:
        convolutions = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 3), nn.ReLU()]
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 3))


NETWORKS: list[Callable[[], Any]] = [Residual, Separable, Dense, Transformer, Timm, Rows, Small, Flat]


def _make(kind: Callable[[], Any], seed: int = 0) -> Any:
    """Return a network in evaluation mode; its batch norm has statistics of samples."""
    torch.manual_seed(seed)
    network = kind()
    network.train()
    for _ in range(3):
        network(torch.randn(16, *network.input_shape) * 2 + 1)
    return network.eval()


def _calibrate(network: Any, n: int = 120) -> Calibration:
    chance = torch.Generator().manual_seed(5)
    x = torch.randn(n + n // 4, *network.input_shape, generator=chance) * 2 + 1
    return Calibration(x[:n], x[n:])


def _prune(network: Any, target: float = 1.5, **options: Any) -> Compressed:
    return PruningPlan(target, **options).apply(network, network.input_shape, _calibrate(network))


def _restored(kind: Callable[[], Any], network: nn.Module) -> nn.Module:
    """Return the network that the record and the weights describe."""
    structure = json.loads(json.dumps(describe_structure(network)))
    found = restore_structure(kind(), **structure)
    found.load_state_dict(network.state_dict())
    return found.eval()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("by", ["parameters", "macs"])
def test_a_pruned_network_reaches_the_target_and_is_rebuilt(kind: Callable[[], Any], by: str) -> None:
    network = _make(kind)
    before = tensors(network)
    small = _prune(network, 1.5, by=by)
    sizes = [measure_size(one, network.input_shape) for one in (_split(copy.deepcopy(network)), small.network)]
    assert 1.5 <= getattr(sizes[0], by) / getattr(sizes[1], by) < 2.0
    assert (small.report.parameters_before, small.report.parameters_after) == (count(network), count(small.network))
    assert small.report.macs_after == sizes[1].macs
    assert equal(before, tensors(network)), "the original was changed"
    assert not storages(network) & storages(small.network)
    x = torch.randn(4, *network.input_shape)
    expected = small.network.eval()(x)
    assert expected.shape == network(x).shape
    torch.testing.assert_close(_restored(kind, small.network)(x), expected)
    torch.testing.assert_close(copy.deepcopy(small.network)(x), expected)
    expected.sum().backward()
    assert all(value.grad is not None for value in small.network.parameters() if value.requires_grad)


@pytest.mark.parametrize("kind", NETWORKS)
def test_layers_are_plain_and_have_their_widths(kind: Callable[[], Any]) -> None:
    network = _make(kind)
    small = _prune(network)
    changed = 0
    for name, layer in small.network.named_modules():
        if isinstance(layer, nn.Linear):
            assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
        elif isinstance(layer, nn.modules.conv._ConvNd):
            widths = (layer.out_channels, layer.in_channels // layer.groups)
            assert tuple(layer.weight.shape[:2]) == (widths[::-1] if layer.transposed else widths)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None and len(layer.running_mean) == layer.num_features
        own = dict(network.named_modules()).get(name)
        changed += own is not None and str(own) != str(layer)
    assert changed >= 3
    rows = {row.layer: row for row in small.report.rows}
    for name, row in rows.items():
        if row.channels_after is not None:
            assert row.channels_before is not None
            assert all(a <= b for a, b in zip(row.channels_after, row.channels_before, strict=True)), name
            assert row.note or row.channels_after[1] < row.channels_before[1], name


def test_attentions_lose_whole_heads() -> None:
    for kind, name, projections in (
        (Transformer, "encoder.layers.0.self_attn", ("q_proj", "k_proj", "v_proj")),
        (Timm, "inner.blocks.0.attn", ("qkv",)),
    ):
        network = _make(kind)
        groups, _ = find_groups(_split(network), torch.randn(1, *network.input_shape))
        (group,) = [group for group in groups if any(part.name == name for part in group.parts)]
        assert (group.heads, group.size, group.per_unit) == (4, 16, 4)
        small = cut(copy.deepcopy(network), _kept(network, group, group.pick(torch.arange(16.0), 1)))
        attention = small.get_submodule(name)
        assert attention.num_heads == 3
        for projection in projections:
            assert attention.get_submodule(projection).out_features == 12 * (3 if projection == "qkv" else 1)
        x = torch.randn(2, *network.input_shape)
        network.get_submodule(f"{name}.{'proj' if kind is Timm else 'out_proj'}").weight.data[:, :4] = 0
        torch.testing.assert_close(small(x), network(x))


def _split(network: nn.Module) -> nn.Module:
    from kegnet_pl.compression import split_attention

    split_attention(network)
    return network


def _kept(network: nn.Module, group: Any, gone: Tensor) -> Any:
    from kegnet_pl.compression.groups import keep

    alive = torch.ones(group.size, dtype=torch.bool)
    alive[gone] = False
    return keep(network, [group], [alive])


def test_widths_are_rounded() -> None:
    small = _prune(_make(Residual), 1.5, round_to=4)
    pairs = [(row.channels_before, row.channels_after) for row in small.report.rows]
    assert any(a != b for a, b in pairs)
    assert all(x == y or x % 4 == 0 for a, b in pairs if a and b for y, x in zip(a, b, strict=True))


def test_a_target_of_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is faked by the operations of a network, so that the test depends on no machine."""
    network = _make(Residual)

    def seconds(networks: list[nn.Module], x: Tensor, **_: Any) -> list[float]:
        assert len(x) == 3
        return [float(measure_size(one, x.shape[1:]).macs + 1000) for one in networks]

    for module in (pruning, costs):
        monkeypatch.setattr(module, "shortest_times", seconds)
    small = _prune(network, 1.6, by="latency", batch_size=3, round_to=1)
    assert 1.6 * 0.97 <= (small.report.macs_before + 1000) / (small.report.macs_after + 1000) < 1.9
    monkeypatch.setattr(costs, "shortest_times", lambda networks, x, **_: [1.0] * len(networks))
    with pytest.raises(BudgetError, match=r"at most 1\.00 by latency, but got 1\.6"):
        _prune(network, 1.6, by="latency", batch_size=3, round_to=1)


@pytest.mark.parametrize("by", ["parameters", "latency"])
def test_too_large_a_multiple_of_channels(by: str) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    options: dict[str, Any] = {"by": by, "samples": 50, "oversampling": 1, "progress": False, "batch_size": 2}
    with pytest.raises(BudgetError, match=r"none has more than `round_to`=1000 of them\. Lower `round_to`"):
        kegnet_pl.compress(network, 6, 1.5, method="pruning", round_to=1000, **options)


@pytest.mark.parametrize("by", ["parameters", "macs"])
def test_a_target_out_of_reach(by: str) -> None:
    network = _make(Residual)
    with pytest.raises(BudgetError, match=rf"at most \d+\.\d\d by {by}, but got 1000") as caught:
        _prune(network, 1000.0, by=by)
    most = float(str(caught.value).split("at most ")[1].split(" ")[0])
    assert caught.value.smallest == pytest.approx(1 / most, rel=0.01)
    small = _prune(network, most, by=by)
    assert all(row.channels_after in ((3, 1), (1, 1), (1, 5)) for row in small.report.rows)


def test_channels_that_no_one_needs_go_first() -> None:
    """Channels without weight in the next layer, and copies of others, are removed; the function stays."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    )
    network.input_shape = (3, 8, 8)  # type: ignore[assignment]
    first, second = network[0], network[2]
    second.weight.data[:, [1, 4]] = 0
    first.weight.data[6], first.bias.data[6] = first.weight.data[2], first.bias.data[2]
    small = _prune(network.eval(), count(network) / (count(network) - 3 * (28 + 54)) - 1e-6)
    kept = kept_channels(small.network)["0"]["out"]
    assert len(kept) == 5 and {0, 3, 5, 7} <= set(kept) and len({2, 6} & set(kept)) == 1
    assert small.agreement == 1
    x = _calibrate(network).held_out
    difference = (small.network(x) - network(x)).abs().max() / network(x).abs().max()
    assert float(difference.detach()) < 0.02, "the copy took over"
    without = cut(copy.deepcopy(network), kept_channels(small.network))
    with torch.no_grad():
        errors = [float((one(x) - network(x)).abs().max()) for one in (without, small.network)]
    assert errors[0] > 5 * errors[1]


def test_classes_are_never_removed() -> None:
    for kind in NETWORKS:
        network = _make(kind)
        _, reasons = find_groups(_split(network), torch.randn(1, *network.input_shape))
        last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
        assert reasons[last] == "no layer reads them", kind


def test_layers_that_are_left_alone_have_a_reason() -> None:
    torch.manual_seed(0)
    teacher = ResNet14(3, 4).eval()
    groups, reasons = find_groups(teacher, torch.randn(1, 3, 32, 32))
    assert {group.name for group in groups} == {f"layers{i}.{j}.conv1" for i in (1, 2, 3) for j in (0, 1)}
    assert reasons["conv1"].startswith("the network fails without some of them")
    assert reasons["layers3.1.conv2"] == "they are the channels of 'conv1'"
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    tied[2].weight = tied[0].weight
    groups, reasons = find_groups(tied, torch.randn(1, 6))
    assert not groups and "is shared with another layer" in reasons["0"]


class Counting(nn.Module):
    """Its forward pass depends on the width of a layer, but not in shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) * self.first.out_features


class LastChannels(nn.Module):
    """Reads the last channels of a layer by their place, in which a removal of the first ones shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(torch.cat([self.second(x).relu(), x[:, -4:]], dim=1))


class Reversed(nn.Module):
    """Reverses the channels of a layer, after a norm over channels, or in a branch of little weight."""

    def __init__(self, norm: nn.Module, weight: float) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Conv2d(8, 3, 1)
        self.weight, self.head = weight, nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(self.norm(self.first(x)).relu().flip(1))
        return self.head((x + self.weight * branch).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Counting(), (6,)),
        (LastChannels(), (6,)),
        (Reversed(nn.GroupNorm(1, 8), 1.0), (3, 6, 6)),
        (Reversed(nn.Identity(), 1e-2), (3, 6, 6)),
    ],
    ids=["counting", "last", "norm", "small"],
)
def test_a_group_is_tried_before_it_is_used(network: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    groups, reasons = find_groups(network, torch.randn(1, *shape))
    assert "first" not in [group.name for group in groups]
    assert "without some of them" in reasons["first"] or "that read them mix them" in reasons["first"]


def test_norms_over_channels_do_not_hide_a_right_group() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    groups, _ = find_groups(network, torch.randn(1, 3, 6, 6))
    assert [group.name for group in groups] == ["0"]
    assert type(network[1]) is nn.GroupNorm, "the network itself is not changed"


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.second(self.first(x).relu())


@pytest.mark.parametrize("network", [Untraceable(), nn.Sequential(nn.Linear(6, 3))])
def test_networks_that_cannot_be_pruned(network: nn.Module) -> None:
    network.input_shape = (6,)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Untraceable|has none") as caught:
        _prune(network)
    assert "compression=ratio" in str(caught.value)


def test_the_library_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = MLP(6, 3, width=20, blocks=2).eval()
    network.input_shape = (6,)  # type: ignore[assignment]
    small = _prune(network).network
    save_network(small, tmp_path, "network", {"_target_": "kegnet_pl.networks.MLP", "features": 6, "classes": 3,
                                              "width": 20, "blocks": 2})  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match=r"pip install 'kegnet_pl\[pruning\]'"):
        PruningPlan(2.0)
    x = torch.randn(5, 6)
    torch.testing.assert_close(load_network(tmp_path)(x), small.eval()(x))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([1], "the channels of layers by name and side"),
        ({"layers.0": "0-3"}, "the channels of layers by name and side"),
        ({"layers.0": {"out": [0, 1]}}, "increasing channels below 20"),
        ({"layers.0": {"out": "3-1"}}, "increasing channels below 20"),
        ({"layers.0": {"out": "0-999999999"}}, "increasing channels below 20"),
        ({"layers.0": {"out": "1 1"}}, "increasing channels below 20"),
        ({"layers.0": {"out": ""}}, "increasing channels below 20"),
        ({"layers.0": {"out": "-1"}}, "increasing channels below 20"),
        ({"layers.99": {"out": "0"}}, "a layer 'layers.99' is missing"),
        ({"__class__": {"out": "0"}}, "a layer '__class__' is missing"),
        ({"layers.0.weight": {"0": "0"}}, "a parameter 'layers.0.weight' with a dimension 0 is missing"),
        ({"layers.0": {"forward": "0"}}, "increasing channels below 0"),
        ({"": {"heads": "0"}}, "channels cannot be removed from 'heads' of ''"),
    ],
)
def test_a_damaged_record_is_refused(kept: Any, said: str, tmp_path: Path) -> None:
    recipe = {"_target_": "kegnet_pl.networks.MLP", "features": 6, "classes": 3, "width": 20, "blocks": 2}
    save_network(MLP(6, 3, width=20, blocks=2), tmp_path, "network", recipe)
    path = tmp_path / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kept": kept}))
    with pytest.raises(WeightsError, match=said):
        load_network(tmp_path)


def test_groups_of_a_convolution_keep_the_same_number() -> None:
    conv = nn.Sequential(nn.Conv2d(8, 8, 1, groups=4))
    with pytest.raises(ValueError, match="different numbers of channels in its 4 groups"):
        cut(conv, {"0": {"out": [0, 1, 2, 4, 6]}})
    expected = conv(torch.arange(8.0).reshape(1, 8, 1, 1))[:, [0, 3, 5, 6]]
    torch.testing.assert_close(cut(conv, {"0": {"out": [0, 3, 5, 6]}})(torch.arange(8.0).reshape(1, 8, 1, 1)), expected)


def test_ranges() -> None:
    for channels in ([0], [3, 4, 5, 9], [0, 2, 4], list(range(50))):
        assert from_ranges(to_ranges(channels), 50) == channels
    assert to_ranges([0, 1, 2, 5, 7, 8]) == "0-2 5 7-8"


def test_a_network_is_pruned_twice_and_factorised() -> None:
    network = _make(Residual)
    once = _prune(network, 1.4).network.eval()
    once.input_shape = network.input_shape  # type: ignore[assignment]
    twice = _prune(once, 1.4).network.eval()
    kept, before = kept_channels(twice), kept_channels(once)
    assert all(set(kept[name][side]) <= set(before[name][side]) for name in before for side in before[name])
    both = CompressionPlan([Rule("*", "target")], 1.3, fold=True).apply(twice, network.input_shape)
    x = torch.randn(3, *network.input_shape)
    assert both.report.ranks
    torch.testing.assert_close(_restored(Residual, both.network)(x), both.network.eval()(x))
    with pytest.raises(ValueError, match="Prune it first, then factorise it"):
        _prune(_with_shape(both.network, network.input_shape))


def _with_shape(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    network.input_shape = shape  # type: ignore[assignment]
    return network


def test_batch_norm_is_adapted_to_the_kept_channels() -> None:
    """A student that was only cut has the teacher's statistics, so its layers return the teacher's means."""
    network = _make(Residual)
    small = _prune(network, 1.5).network.eval()
    x = _calibrate(network, 400).samples
    adapt_norm(small, network, x)
    found: dict[str, list[Tensor]] = {}
    for one in (network, small):
        for name in ("norm", "norm1"):
            layer = one.get_submodule(name)
            layer.register_forward_hook(lambda m, i, y, name=name: found.setdefault(name, []).append(y))
        one(x)
    assert kept_channels(small).keys() & found.keys()
    for name, (teacher, student) in found.items():
        kept = kept_channels(small).get(name, {}).get("out", list(range(teacher.shape[1])))
        for moment in (torch.mean, torch.std):
            torch.testing.assert_close(
                moment(student.transpose(0, 1).flatten(1), dim=1),
                moment(teacher[:, kept].transpose(0, 1).flatten(1), dim=1),
                rtol=1e-2, atol=1e-2,
            )  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"norm": "adapt", "feature_distillation": 5.0}, {"reconstruct": True}])
def test_a_pruned_student_is_trained(settings: dict[str, Any]) -> None:
    network = _make(Residual)
    small = kegnet_pl.compress(network, network.input_shape, 1.5, method="pruning", samples=60, oversampling=1,
                               source=NoiseSource("normal", network.input_shape), progress=False)  # fmt: skip
    data = kegnet_pl.SyntheticDataset(NoiseSource("normal", network.input_shape), network, 64)
    student = kegnet_pl.distill(small, data, epochs=2, batch_size=32, progress=False, device="cpu", **settings)
    assert count(student) == small.report.parameters_after
    assert kept_channels(student) == kept_channels(small.network)
    assert not equal(tensors(student), tensors(small.network))


def test_features_of_a_pruned_student_need_layers_with_channels() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(6, 20), nn.ReLU()), nn.Linear(20, 3)).eval()
    network.input_shape = (6,)  # type: ignore[assignment]
    small = _prune(network)
    data = kegnet_pl.SyntheticDataset(NoiseSource("normal", (6,)), network, 64)
    given: dict[str, Any] = {"epochs": 1, "batch_size": 32, "progress": False, "feature_distillation": 1.0}
    with pytest.raises(ValueError, match=r"since the student is pruned, but got 0\. Set"):
        kegnet_pl.distill(small, data, **given, feature_distillation_layers=["0"])
    kegnet_pl.distill(small, data, **given, feature_distillation_layers=["0.0"])


@pytest.mark.parametrize(
    "given", [{"rules": {"*": 3}}, {"fold": False}, {"when_larger": "compress"}, {"fit": "weights"}]
)
def test_arguments_of_ranks_have_no_meaning(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"`{next(iter(given))}` to be left out with method='pruning'"):
        kegnet_pl.compress(MLP(6, 3), 6, 2.0, method="pruning", progress=False, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": None}, "Expected `target` to be the ratio"),
        ({"target": 1.0}, "Expected `target` to be a compression ratio above 1"),
        ({"target": 2.0, "by": "watts"}, "Expected `by`"),
        ({"target": 2.0, "round_to": 0}, "Expected `round_to`"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PruningPlan(**given)
    with pytest.raises(ValueError, match="`method` to be 'auto', 'tucker' or 'pruning'"):
        kegnet_pl.compress(MLP(6, 3), 6, 2.0, method="magic", progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected samples for method='pruning'"):
        PruningPlan(2.0).apply(MLP(6, 3), (6,))


def test_the_report_is_a_table_of_channels() -> None:
    small = _prune(_make(Residual))
    (head, *rows), _ = small.report.cells()
    assert head[2] == "channels in, out" and len({len(row) for row in [head, *rows]}) == 1
    row = next(row for row in small.report.rows if row.layer == "conv2")
    assert row.width == f"16, 16 -> {row.channels_after[0]}, {row.channels_after[1]}"  # type: ignore[index]
    again = type(small.report).from_dict(json.loads(json.dumps(small.report.to_dict())))
    assert again.cells() == small.report.cells()
