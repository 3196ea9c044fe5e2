"""Latency of networks."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kegnet_pl.benchmark import LatencyReport, main, measure_latency


class _Counted(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(layers)))
        self.sizes: list[int] = []
        self.modes: set[bool] = set()
        self.threads: set[int] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        self.modes.add(self.training)
        self.threads.add(torch.get_num_threads())
        out: torch.Tensor = self.layers(x)
        return out


def test_networks_are_measured_in_turns() -> None:
    one, many, threads = _Counted(1).train(), _Counted(40), torch.get_num_threads()
    report = measure_latency({"one": one, "many": many}, (64,), batch_sizes=[1, 8], seconds=0.01, threads=1)
    assert [(row.network, row.batch_size) for row in report.rows] == [("one", 1), ("many", 1), ("one", 8), ("many", 8)]
    for row in report.rows:
        assert row.milliseconds > 0 and row.spread >= 0
        assert row.speedup == 1 if row.network == "one" else row.speedup < 0.6
    assert set(one.sizes) == {1, 8} and one.modes == {False} and one.training and one.threads == {1}
    assert torch.get_num_threads() == threads
    assert report.find("many", 8) == report.rows[3] and report.find("many", 2) is None
    assert LatencyReport.from_dict(report.to_dict()) == report
    assert str(report).splitlines()[5].endswith(", 1 thread")
    content = report.to_dict()
    content["rows"] = [row | {"milliseconds": 1.0, "spread": 0.1} for row in content["rows"]]
    assert len(str(LatencyReport.from_dict(content)).splitlines()) == 6
    content["rows"][3]["spread"] = 0.6
    assert str(LatencyReport.from_dict(content)).splitlines()[6].startswith("Speed-ups at batch size 8 are not reli")
    assert report.describe("one")["batches"]["8"]["speedup"] == 1


@pytest.mark.parametrize("accepted", [False, True])
def test_networks_are_measured_in_the_same_layout(accepted: bool) -> None:
    seen: set[bool] = set()

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.layer(x)
            logits = y.mean(dim=(2, 3)) if accepted else y.view(len(y), -1)
            seen.add(y.is_contiguous(memory_format=torch.channels_last))
            return {"logits": logits}

    teacher, student = Conv(), Conv().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = teacher.layer.weight.stride()
    measure_latency({"teacher": teacher, "student": student}, (3, 16, 16), batch_sizes=[2], seconds=0.001)
    assert seen == {accepted}
    assert teacher.layer.weight.stride() == before


def test_a_network_can_be_trained_after_a_measurement() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 4), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.scale is None:
                self.scale = x.new_ones(4)  # type: ignore[assignment]
            out: torch.Tensor = self.layer(x) * self.scale
            return out

    network = Caches()
    measure_latency({"network": network}, (4,), batch_sizes=[2], seconds=0.001)
    network(torch.randn(2, 4)).sum().backward()


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        ({}, {}, "at least one network, but got none"),
        ({"a": nn.Linear(2, 2)}, {"batch_sizes": [0]}, "`batch_sizes` to be whole numbers of at least 1"),
        ({"a": nn.Linear(2, 2)}, {"threads": 0}, "`threads` of at least 1, but got 0"),
        ({"a": nn.Linear(2, 2)}, {"device": "tpu?"}, "`device` to be"),
    ],
)
def test_mistakes_are_named(networks: dict[str, nn.Module], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_latency(networks, (2,), **options)  # type: ignore[arg-type]


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "Expected the folder of a finished run whose networks are in the store" in capsys.readouterr().err
