"""The choice of a preset by a network's inputs, batch norm and size."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kegnet_pl.networks import MLP, LeNet5, ResNet14
from kegnet_pl.pipeline import preset as presets
from kegnet_pl.pipeline.preset import (
    build_untrained,
    choose_compression,
    choose_preset,
    describe_choice,
    describe_time,
    estimate_seconds,
    fit_to_budget,
    without_given,
)
from kegnet_pl.settings import RunSettings
from tests.integration.conftest import configure

CPU = torch.device("cpu")
NO_LAYERS = ("student.norm=batch", "student.feature_distillation.weight=0", "student.reconstruct=false")

NO_FEATURES = ("student.norm=frozen", "student.feature_distillation.weight=0")


def _convolutions(norms: int) -> nn.Module:
    layers = [layer for _ in range(norms) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 2))


def _signal_network() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 2))


def _rows_by_convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize(
    ("make", "shape", "name", "overrides"),
    [
        (lambda: LeNet5(), (1, 32, 32), "custom/image", ()),
        (lambda: ResNet14(), (3, 32, 32), "custom/batch_norm", ()),
        (lambda: _convolutions(10), (3, 8, 8), "custom/batch_norm", ()),
        (lambda: _convolutions(9), (3, 8, 8), "custom/batch_norm", NO_FEATURES),
        (lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), (3, 8, 8), "custom/image", ()),
        (lambda: MLP(8, 2, width=4, blocks=1), (8,), "custom/table", ()),
        (_rows_by_convolution, (8,), "custom/table", ("sources=[procedural]",)),
        (_signal_network, (2, 8), "custom/signal", ()),
    ],
)
def test_inputs_and_batch_norm_decide(make: Any, shape: tuple[int, ...], name: str, overrides: tuple[str, ...]) -> None:
    chosen = choose_preset(make(), shape, same_layers=True)
    assert (chosen.name, chosen.overrides) == (name, overrides)
    others = NO_LAYERS if overrides == NO_FEATURES else (*overrides, *NO_LAYERS)
    assert choose_preset(make(), shape, same_layers=False).overrides == others


def _settings(*overrides: str) -> RunSettings:
    return RunSettings.from_config(configure("experiment=custom/image", "teacher.weights=w.pt", *overrides))


def test_a_small_network_is_within_the_budget() -> None:
    assert fit_to_budget(_settings(), LeNet5(), CPU) == []


def test_a_large_network_has_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, network = _settings("student.samples=3000", "compression.samples=1000"), LeNet5()
    monkeypatch.setitem(presets.BUDGETS, "cpu", 5e9)
    (samples, _) = smaller = fit_to_budget(settings, network, CPU)
    assert [line.partition("=")[0] for line in smaller] == ["student.samples", "compression.samples"]
    assert 1000 <= int(samples.partition("=")[2]) < 3000
    monkeypatch.setitem(presets.BUDGETS, "cpu", 1e3)
    least = ["student.samples=1000", "compression.samples=200"]
    assert fit_to_budget(settings, network, CPU) == least
    assert fit_to_budget(_settings("compression.fit=weights"), network, CPU) == least[:1]


def test_matched_samples_are_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ("experiment=custom/batch_norm", "data.input_shape=[3,32,32]", "sources=[procedural]")

    def find_samples(*overrides: str, network: nn.Module) -> list[str]:
        config = configure(*plain, "teacher.weights=w.pt", "student.resample_each_epoch=false", *overrides)
        return fit_to_budget(RunSettings.from_config(config), network, CPU)

    network = ResNet14()
    monkeypatch.setitem(presets.BUDGETS, "cpu", 6e12)
    assert find_samples("student.matching=0", "compression.matching=0", network=network) == []
    assert [line.partition("=")[0] for line in find_samples("student.matching=1", network=network)] == [
        "student.samples", "compression.samples",
    ]  # fmt: skip
    lenet = ("data.input_shape=[1,32,32]", "student.matching=1")
    assert find_samples(*lenet, network=LeNet5()) == []


def test_the_command_line_wins() -> None:
    wanted = ["sources=[procedural]", "student.samples=1000"]
    assert without_given(wanted, ["+student.samples=5", "seed=1"]) == ["sources=[procedural]"]


def test_the_estimate_names_the_stages() -> None:
    settings = _settings("sources=[{kegnet: 0.5, procedural: 0.5}, normal]", "student.samples=1000")
    network = build_untrained(settings)
    assert network is not None
    seconds = estimate_seconds(settings, network, CPU)
    assert list(seconds) == ["compression", "generators", "KegNet 50 % + Procedural 50 %", "Normal"]
    assert all(value > 0 for value in seconds.values())
    chosen = choose_preset(network, (1, 32, 32), same_layers=True)
    line = describe_choice(chosen, network, CPU, ["sources=[normal]"])
    assert line == (
        "preset=auto: experiment=custom/image 'sources=[normal]' (images, no batch norm, 61,706 parameters, cpu)."
    )


def test_noise_and_real_data_are_not_matched() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10)).eval()
    given = ["student.samples=1000", "student.matching=1", "compression.fit=weights", "student.optimizer.lr=0.001"]
    seconds = estimate_seconds(_settings("sources=[procedural,normal,real]", *given), network, CPU)
    assert seconds["Procedural"] > 3 * max(seconds["Normal"], seconds["Real"])
    many = [*given, "student.samples=100000000"]
    assert fit_to_budget(_settings("sources=[normal,procedural]", *many), network, CPU) == ["student.samples=11421780"]
    assert fit_to_budget(_settings("sources=[normal]", *many), network, CPU) == []
    assert fit_to_budget(_settings("sources=[]", *given), network, CPU) == []


def test_the_estimate_is_described() -> None:
    shorter = "For less time, add 'sources=[procedural]' student.epochs=2 student.samples=1000."
    expected = "Expected time on this machine: about 3.0 h (generators 60 min, Normal 2.0 h)."
    long = {"generators": 3600.0, "Normal": 7200.0}
    assert describe_time(long, stored=False) == f"{expected} {shorter}"
    assert describe_time(long, stored=True) == (
        f"{expected} It is less if the store already has stages of this run. {shorter}"
    )
    short = describe_time({"generators": 3.0, "Normal": 50.0}, stored=True)
    assert short.endswith("about a minute or less."), "start and report are not in the estimate"


def test_a_network_that_does_not_fit_is_left_to_the_stage_of_the_teacher() -> None:
    assert build_untrained(_settings("data.input_shape=[3,8,8]")) is None


def test_the_steps_of_a_program_are_measured(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 1, 32, 32),), dynamic_shapes=shapes), tmp_path / "n.pt2"
    )
    given = ["teacher=file", f"teacher.path={tmp_path / 'n.pt2'}", "student=lenet5"]
    settings = RunSettings.from_config(configure("experiment=custom/image", *given))
    program = build_untrained(settings)
    assert program is not None and estimate_seconds(settings, program, CPU)["Procedural"] > 0


def test_methods_of_compression_are_compared_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings()
    assert choose_compression(settings, ["compression.target=3", "seed=1"]) == ["compression=auto"]
    for given in ("compression=ratio", "compression.fold=true", "compression.rules=[]", "+compression.method=tucker"):
        assert choose_compression(settings, [given]) == []
    assert choose_compression(_settings("student=lenet5"), []) == []
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert choose_compression(settings, []) == []
