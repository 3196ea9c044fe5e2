"""Compression by function: moments of layers, allocation of ranks, reconstruction of layers."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from kegnet_pl.compression import (
    Calibration,
    CompressionPlan,
    Rule,
    allocate_ranks,
    allocation,
    factorise,
    measure_layers,
    reconstruction,
)
from kegnet_pl.compression.activations import LayerMoments, chunks, patches
from kegnet_pl.compression.allocation import truncation_losses
from kegnet_pl.compression.reconstruction import reconstruct
from kegnet_pl.compression.tucker import factorised_parameters
from kegnet_pl.networks import LeNet5
from kegnet_pl.sources import RandomFields


class Small(nn.Module):
    """A convolution with stride, batch norm, a skip connection and a dense layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv1(x), inplace=True)
        x = x + self.norm(self.conv2(x)).relu()
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


LAYERS = ["conv1", "conv2", "fc"]
SHAPE = (3, 12, 12)


@pytest.fixture
def network() -> nn.Module:
    return Small(2).eval().requires_grad_(False)


@pytest.fixture
def samples() -> torch.Tensor:
    return RandomFields(SHAPE).sample(200, 0)


@pytest.mark.parametrize(
    ("shape", "size"), [((16,), 128), ((3, 64, 64), 128), ((3, 128, 128), 42), ((3, 224, 224), 16)]
)
def test_large_images_come_in_small_chunks(shape: tuple[int, ...], size: int) -> None:
    assert [len(part) for part in chunks(torch.zeros(1).expand(130, *shape))] == [
        *[size] * (130 // size), *([130 % size] if 130 % size else [])
    ]  # fmt: skip


def test_moments_of_a_dense_layer_are_exact() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    network, x = nn.Sequential(first, second).requires_grad_(False), torch.randn(300, 4)
    moments = measure_layers(network, ["0"], x, probes=400)["0"]
    y = first(x).double()
    jacobian = (second.weight - second.weight.mean(dim=0)).double()
    torch.testing.assert_close(moments.inputs, (x.T @ x).double() / 300, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.outputs, torch.cov(y.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.sensitivity, jacobian.T @ jacobian, rtol=0.02, atol=0.005)
    assert moments.positions == 1


def test_moments_are_of_every_layer_and_leave_the_network_as_it_is(network: nn.Module, samples: torch.Tensor) -> None:
    before = copy.deepcopy(network.state_dict())
    moments = measure_layers(network, LAYERS, samples)
    assert list(moments) == LAYERS
    assert [value.positions for value in moments.values()] == [36, 36, 1]
    assert moments["conv2"].outputs.shape == moments["conv2"].sensitivity.shape == (12, 12)
    y = network.conv1(samples).movedim(1, -1).reshape(-1, 12).double()  # type: ignore[operator]
    torch.testing.assert_close(moments["conv1"].outputs, torch.cov(y.T, correction=0), rtol=1e-4, atol=1e-5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": (2, 1), "dilation": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
def test_patches_times_weights_are_the_convolution(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 4, (3, 3), bias=False, **options), torch.randn(5, 2, 9, 8)
    product = patches(layer, x) @ layer.weight.flatten(1).T
    torch.testing.assert_close(product, layer(x).flatten(2).transpose(1, 2))


def _moments(layer: nn.Module, seed: int) -> LayerMoments:
    torch.manual_seed(seed)
    n_in, n_out = layer.weight.shape[1], layer.weight.shape[0]  # type: ignore[union-attr, index]
    matrices = [torch.randn(2 * n, n, dtype=torch.float64) for n in (n_in, n_out, n_out)]
    inputs, outputs, sensitivity = (matrix.T @ matrix for matrix in matrices)
    return LayerMoments(1, seed + 1, inputs, outputs, sensitivity)


def test_losses_fall_to_zero_and_those_of_a_dense_layer_are_its_error() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4, bias=False), torch.randn(500, 6)
    head = torch.randn(3, 4)
    network = nn.Sequential(layer, nn.Linear(4, 3, bias=False)).requires_grad_(False)
    network[1].weight.copy_(head - head.mean(dim=0))  # type: ignore[operator]
    moments = measure_layers(network, ["0"], x, probes=600)["0"]
    losses = truncation_losses(layer, moments)
    for values in losses:
        assert list(values) == sorted(values, reverse=True) and values[-1] == pytest.approx(0, abs=1e-6)
    # The best rank-1 approximation of the logits, less their mean.
    logits = network(x).double()
    squares = torch.linalg.svdvals(logits - logits.mean(dim=0)) ** 2 / len(x)
    assert losses[1][0] == pytest.approx(float(squares[1:].sum()), rel=0.05)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_allocation_is_nearly_the_best_of_all(share: float) -> None:
    layers = {"conv": nn.Conv2d(4, 5, 3), "fc": nn.Linear(6, 7)}
    moments = {name: _moments(layer, seed) for seed, (name, layer) in enumerate(layers.items())}
    budget = int(share * sum(p.numel() for layer in layers.values() for p in layer.parameters()))
    free: dict[str, tuple[int | None, int | None]] = dict.fromkeys(layers, (None, None))
    chosen = allocate_ranks(layers, free, moments, budget)
    losses = {name: truncation_losses(layer, moments[name]) for name, layer in layers.items()}

    def size(ranks: dict[str, tuple[int, int]]) -> int:
        return sum(
            factorised_parameters(layer, ranks[name]) if name in ranks else sum(p.numel() for p in layer.parameters())
            for name, layer in layers.items()
        )

    def loss(ranks: dict[str, tuple[int, int]]) -> float:
        found = {
            name: losses[name][1][b - 1] + (losses[name][0][a - 1] if name == "conv" else 0.0)
            for name, (a, b) in ranks.items()
        }
        return sum(found.values())

    pairs = [None, *itertools.product(range(1, 5), range(1, 6))]
    every = [
        {**({"conv": pair} if pair else {}), **({"fc": (rank, rank)} if rank else {})}
        for pair, rank in itertools.product(pairs, range(7))
    ]
    best = min(loss(ranks) for ranks in every if size(ranks) <= budget)
    assert size(chosen) <= budget
    assert loss(chosen) <= 1.25 * best + 1e-12


def test_given_ranks_stay_and_a_budget_out_of_reach_is_refused() -> None:
    layer = nn.Conv2d(8, 8, 3)
    moments = {"conv": _moments(layer, 0)}
    ranks = allocate_ranks({"conv": layer}, {"conv": (3, None)}, moments, 250)
    assert ranks["conv"][0] == 3 and factorised_parameters(layer, ranks["conv"]) <= 250
    with pytest.raises(ValueError, match="at least 33, the cost of the layers at the smallest ranks, but got 20"):
        allocate_ranks({"conv": layer}, {"conv": (None, None)}, moments, 20)


def _error(teacher: nn.Module, student: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((teacher(x) - student(x)).square().mean())


def _reconstruct(teacher: nn.Module, student: nn.Module, layers: Sequence[str], x: torch.Tensor) -> list[str]:
    return reconstruct(teacher, student, measure_layers(teacher, layers, x), Calibration(x, x))


@pytest.mark.parametrize("name", LAYERS)
def test_a_fit_is_better_than_the_factors_of_the_weights(network: nn.Module, samples: torch.Tensor, name: str) -> None:
    ranks = {"conv1": (3, 3), "conv2": (4, 3), "fc": (2, 2)}
    student = copy.deepcopy(network)
    setattr(student, name, factorise(getattr(student, name), ranks[name]))
    plain = _error(network, student, samples)
    kept = _reconstruct(network, student, [name], samples)
    assert kept == [name]
    assert _error(network, student, samples) < 0.8 * plain


def test_layers_after_a_compressed_one_compensate_for_it(network: nn.Module, samples: torch.Tensor) -> None:
    student = copy.deepcopy(network)
    student.conv1 = factorise(student.conv1, (2, 3))  # type: ignore[arg-type]
    _reconstruct(network, student, ["conv1"], samples)
    alone = _error(network, student, samples)
    kept = _reconstruct(network, student, ["conv2", "fc"], samples)
    assert kept and _error(network, student, samples) < alone


def test_the_fit_of_a_network_that_is_equal_changes_nothing(network: nn.Module, samples: torch.Tensor) -> None:
    student = copy.deepcopy(network)
    assert _reconstruct(network, student, LAYERS, samples) == []
    for name, value in student.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_a_fit_that_fails_on_held_out_samples_is_undone(
    network: nn.Module, samples: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = copy.deepcopy(network)
    student.conv2 = factorise(student.conv2, (6, 6))  # type: ignore[arg-type]
    before = copy.deepcopy(student.state_dict())
    divergences = itertools.count(1.0)
    monkeypatch.setattr(reconstruction, "_divergence", lambda *_: next(divergences))
    assert _reconstruct(network, student, LAYERS, samples) == []
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_plan_with_a_calibration_reaches_its_target_with_a_smaller_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = LeNet5().eval()
    fields = RandomFields((1, 32, 32))
    calibration = Calibration(fields.sample(300, 0), fields.sample(100, 1))
    plan = CompressionPlan([Rule("fc2", "full"), Rule("*", "target")], 6.0)
    plain, fitted = (plan.apply(network, (1, 32, 32), samples) for samples in (None, calibration))
    assert 6.0 <= fitted.report.compression_ratio < 6.3
    assert set(fitted.fitted) <= {"conv1", "conv2", "conv3", "fc1", "fc2"} and fitted.fitted
    assert plain.fitted == ()
    x = fields.sample(200, 2)
    assert _error(network, fitted.network, x) < 0.5 * _error(network, plain.network, x)
    monkeypatch.setattr(reconstruction, "_MOST_BYTES", 1)  # a pass of the teacher for each layer
    shares: list[float] = []
    again = plan.apply(network, (1, 32, 32), calibration, shares.append)
    assert shares == sorted(shares) and shares[0] == 0 and max(shares) < 1
    for name, value in fitted.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), "the same samples, the same bits"


def test_a_target_out_of_reach_is_named() -> None:
    fields = RandomFields((1, 32, 32))
    calibration = Calibration(fields.sample(20, 0), fields.sample(10, 1))
    with pytest.raises(
        ValueError, match=r"at most .* by parameters, but got 1000\.0\. Layers have at least .*Lower the target, prune"
    ):
        CompressionPlan([Rule("*", "target")], 1000.0).apply(LeNet5(), (1, 32, 32), calibration)


class Call(nn.Module):
    """Two dense layers, and a third whose use depends on the kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 40), nn.Linear(40, 5), nn.Linear(16, 16)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        if self.kind == "works in place on its input":
            x = x.clamp_(-1, 1)
        elif self.kind == "input without gradients":
            x = x.detach()
        elif self.kind == "sometimes" and x.sum() > 0:
            x = self.c(x)
        elif self.kind == "without gradients":
            with torch.no_grad():
                x = self.c(x)
        elif self.kind == "by name":
            x = self.c(input=x)
        elif self.kind == "twice":
            x = self.c(self.c(x).relu())
        elif self.kind == "tokens first":
            x = x.reshape(n, -1, 16).transpose(0, 1)
        elif self.kind == "windows":
            x = x.reshape(-1, 2, 80, 16)
        x = self.b(self.a(x).relu_())
        if self.kind == "tokens first":
            x = x.mean(dim=0)
        return x if x.dim() == 2 else x.reshape(n, -1, 5).mean(dim=1)


@pytest.mark.parametrize(
    "kind",
    ["works in place on its input", "input without gradients", "sometimes", "without gradients", "by name", "twice"],
)
def test_layers_are_compressed_however_they_are_called(kind: str) -> None:
    network = Call(kind)
    rules = [Rule(["a", "b"] if kind in ("without gradients", "by name") else "*", "target")]
    x = torch.randn(300, 16)
    before = x.clone()
    compressed = CompressionPlan(rules, 1.3).apply(network, (16,), Calibration(x, x[:100]))
    assert compressed.report.compression_ratio >= 1.3 and compressed.fitted
    assert torch.equal(x, before) or kind != "works in place on its input"


class Twice(nn.Module):
    """A convolution of many positions that is called twice, and one that is only called for positive samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.a(x).relu()).relu()
        positive = x[:, 0, 0, 0] > x[:, 1, 0, 0] + 1e3
        y = torch.empty_like(x)
        y[positive], y[~positive] = self.b(x[positive]), x[~positive]
        return self.fc(y.mean(dim=(2, 3)))


def test_a_layer_that_is_called_twice_is_fitted_at_the_same_positions() -> None:
    network, x = Twice().eval(), torch.randn(200, 3, 12, 12)
    moments = measure_layers(network, ["a"], x)
    calibration = Calibration(x, x)
    outputs = reconstruction._TeacherOutputs(network, moments, calibration).take("a")
    found = reconstruction._collect(outputs, network.a, network, "a", calibration, moments["a"])
    assert found is not None and moments["a"].calls == 2
    weight = torch.linalg.solve(found.inputs, found.cross.T).T
    torch.testing.assert_close(weight.float(), network.a.weight.detach().flatten(1), rtol=0, atol=1e-4)


def test_a_layer_without_samples_is_left_out() -> None:
    network, x = Twice().eval(), torch.randn(200, 3, 12, 12)
    compressed = CompressionPlan([Rule(["a", "fc"], "target")], 1.2).apply(network, (3, 12, 12), Calibration(x, x[:50]))
    assert compressed.report.compression_ratio >= 1.2 and "b" not in compressed.fitted


@pytest.mark.parametrize(("kind", "shape"), [("tokens first", (100, 16)), ("windows", (4, 80, 16))])
def test_the_batch_of_a_layer_need_not_be_that_of_the_network(kind: str, shape: tuple[int, ...]) -> None:
    network, x = Call(kind), torch.randn(150, *shape)
    compressed = CompressionPlan([Rule("a", "target"), Rule("b", "target")], 1.3).apply(
        network, shape, Calibration(x, x[:50])
    )
    assert compressed.report.compression_ratio >= 1.3 and compressed.fitted


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_layers_that_return_constants_are_no_obstacle(value: float) -> None:
    network, x = Small(0).eval(), RandomFields(SHAPE).sample(150, 0)
    nn.init.zeros_(network.conv1.weight)
    nn.init.constant_(network.conv1.bias, value)  # type: ignore[arg-type]
    compressed = CompressionPlan([Rule("*", "target")], 1.5).apply(network, SHAPE, Calibration(x, x[:50]))
    assert all(bool(weight.isfinite().all()) for weight in compressed.network.parameters())
    assert _error(network, compressed.network.eval(), x) < 1e-3


def test_ranks_that_are_given_on_both_sides_are_used_whatever_the_budget() -> None:
    network, x = Small(0).eval(), RandomFields(SHAPE).sample(150, 0)
    plan = CompressionPlan([Rule("conv2", 5), Rule("*", "target")], 1.2)
    compressed = plan.apply(network, SHAPE, Calibration(x, x[:50]))
    assert compressed.report.ranks["conv2"] == (5, 5) and compressed.report.compression_ratio >= 1.2


def test_moments_of_a_large_dense_layer_take_no_square_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "MOST_INPUTS", 100)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(432, 20), nn.ReLU(), nn.Linear(20, 5)), torch.randn(150, *SHAPE)
    assert measure_layers(network, ["1"], x, of_inputs=())["1"].inputs is None
    compressed = CompressionPlan([Rule("*", "target")], 2.0).apply(network, SHAPE, Calibration(x, x[:50]))
    assert compressed.report.compression_ratio >= 2 and "1" not in compressed.fitted


def test_forward_hooks_stay_and_computed_weights_are_left() -> None:
    network, x = Small(0).eval(), RandomFields(SHAPE).sample(150, 0)
    network.conv1.register_forward_hook(lambda _, __, output: 2 * output)
    network.conv2.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    plan = CompressionPlan([Rule("conv*", "full"), Rule("fc", "full")], when_larger="compress")
    assert _error(network, plan.apply(network, SHAPE).network, x) < 1e-8
    compressed = CompressionPlan([Rule("*", "target")], 1.5).apply(network, SHAPE, Calibration(x, x[:50]))
    assert compressed.report.compression_ratio >= 1.5 and "conv1" not in compressed.fitted
    nn.utils.spectral_norm(network.conv2)
    computed = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(432, 5)))
    (row,) = CompressionPlan([Rule("*", 0.2)]).apply(computed, SHAPE).report.rows
    assert "remove that first" in row.note and row.ranks is None
    report = CompressionPlan([Rule("*", 0.2)]).apply(network, SHAPE).report
    assert "remove that first" in next(row.note for row in report.rows if row.layer == "conv2")


def test_a_network_without_gradients_or_finite_values_is_refused() -> None:
    class Detached(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    x = RandomFields(SHAPE).sample(20, 0)
    with pytest.raises(ValueError, match=r"have gradients .*Use fit='weights'"):
        measure_layers(Detached().eval(), LAYERS, x)
    with pytest.raises(ValueError, match="layer 'conv1' has finite values"):
        measure_layers(Small().eval(), LAYERS, 1e30 * x)
    plan = CompressionPlan([Rule("c", "target")], 1.5)
    rows = torch.randn(20, 16)
    with pytest.raises(ValueError, match="Layers without gradients or a batch cannot be used: c"):
        plan.apply(Call("without gradients"), (16,), Calibration(rows, rows))
    grouped = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="Expected layers that can be factorised"):
        CompressionPlan([Rule("*", "target")], 1.5).apply(grouped, SHAPE, Calibration(x, x))


def test_fields_of_one_value_and_of_many_features() -> None:
    assert RandomFields((8, 1, 1)).sample(500, 0).std().item() == pytest.approx(1, abs=0.1)
    rows = RandomFields(3000).sample(200, 0)
    assert rows.shape == (200, 3000) and rows.std().item() == pytest.approx(1, abs=0.1)


class Again(nn.Module):
    """Calls one convolution and one dense layer twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.fc, self.head = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = torch.relu(self.conv(x))
        x = x.mean(dim=(2, 3))
        for _ in range(2):
            x = torch.tanh(self.fc(x))
        logits: torch.Tensor = self.head(x)
        return logits


def test_all_calls_of_a_layer_are_measured_and_fitted(samples: torch.Tensor) -> None:
    network = Again().eval()
    moments = measure_layers(network, ["conv", "fc"], samples)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        handle = network.fc.register_forward_hook(lambda _, __, output: seen.append(output))
        network(samples)
        handle.remove()
    rows = torch.cat(seen).double()
    assert moments["fc"].calls == 2 and len(seen) == 2
    torch.testing.assert_close(moments["fc"].outputs, rows.T.cov(correction=0), rtol=1e-4, atol=1e-6)
    plan = CompressionPlan([Rule("conv", "target"), Rule("fc", "target")], 1.6, fold=True)
    calibration = Calibration(samples[:150], samples[150:])
    by_function = plan.apply(network, SHAPE, calibration)
    assert set(by_function.fitted) & {"conv", "fc"}
    assert _error(network, by_function.network, samples) < _error(network, plan.apply(network, SHAPE).network, samples)


class Odd(nn.Module):
    """Does not call its layer in the usual way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.first, self.layer, self.fc = kind, nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        if self.kind == "class":
            x = self.layer(x) if type(self.layer) is nn.Linear else x
        elif self.kind == "weight":
            x = functional.linear(x, self.layer.weight, self.layer.bias)
        else:
            x = x + self.layer(x) * torch.rand(1)
        logits: torch.Tensor = self.fc(x)
        return logits


@pytest.mark.parametrize(("kind", "left"), [("class", True), ("weight", False), ("random", False)])
def test_a_layer_that_cannot_be_replaced_unnoticed_is_left_out_by_name(kind: str, left: bool) -> None:
    report = CompressionPlan([Rule("*", 2)]).apply(Odd(kind), (16,)).report
    (row,) = (row for row in report.rows if row.layer == "layer")
    assert (row.ranks is None) == left
    assert ("the network returns other outputs" in row.note) == left
    assert {"first", "fc"} <= set(report.ranks)


def test_complex_weights_are_left_out_by_name() -> None:
    network = nn.Sequential(nn.Linear(6, 6, dtype=torch.cfloat), nn.Flatten())
    plan = CompressionPlan([Rule("*", "full")])
    network.forward = lambda x: nn.Sequential.forward(network, x.to(torch.cfloat)).abs()  # type: ignore[method-assign]
    (row,) = plan.apply(network, (6,)).report.rows
    assert row.note == "unchanged: its weight is complex64, not real"


def test_frozen_layers_stay_frozen_unless_all_are() -> None:
    network = Small()
    network.conv1.requires_grad_(False)
    plan = CompressionPlan([Rule("*", 3)])
    small = plan.apply(network, SHAPE).network
    frozen = {name.split(".")[0] for name, value in small.named_parameters() if not value.requires_grad}
    assert frozen == {"conv1"}
    small = plan.apply(network.requires_grad_(False), SHAPE).network
    assert all(value.requires_grad for value in small.parameters())


@pytest.mark.parametrize("samples", [40, 3_000])
def test_the_roots_of_a_large_metric_agree(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Cholesky gives the errors of the symmetric one, also for a singular metric in single precision."""
    torch.manual_seed(0)
    rows, outputs = torch.randn(samples, 1_001), torch.randn(60, 1_001, dtype=torch.float64)
    metric, outputs = (rows.T @ rows).double() / samples, outputs.T @ outputs / 60
    layer = nn.Linear(3, 1_001, bias=False)
    moments = LayerMoments(1, 1, None, outputs, metric)
    fast, root = truncation_losses(layer, moments)[1], allocation.metric_root(metric)
    torch.testing.assert_close(root.T @ root, metric, rtol=1e-5, atol=2e-5)
    assert float(root.tril(-1).abs().max()) == 0, "it is triangular"
    monkeypatch.setattr(allocation, "_LARGE_METRIC", 2_000)
    slow = truncation_losses(layer, moments)[1]
    assert np.abs(fast - slow).max() < 1e-4 * slow.max()
