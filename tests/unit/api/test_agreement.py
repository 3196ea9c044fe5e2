"""Agreement of students with their teacher on synthetic samples."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.agreement import OF_IMAGES, OF_ROWS, AgreementReport, default_sources
from kegnet_pl.networks import MLP, LeNet5
from kegnet_pl.sources import NormalNoise, Waves


class _Answer(nn.Module):
    """Logits are the first three features; a class may be taken for another."""

    def __init__(self, mistaken: int | None = None, constant: bool = False) -> None:
        super().__init__()
        self.mistaken, self.constant = mistaken, constant

    def forward(self, x: Tensor) -> Tensor:
        logits = 5 * x[:, :4].clone()
        logits[:, 3] = -50.0  # a class that no sample reaches
        if self.constant:
            logits[:, 0] = 50.0
        if self.mistaken is not None:
            wrong = logits.argmax(dim=1) == self.mistaken
            logits[wrong] = logits[wrong].roll(1, dims=1)
        return logits


def _measure(student: nn.Module, teacher: nn.Module | None = None, **options: Any) -> AgreementReport:
    return kegnet_pl.measure_agreement(student, teacher or _Answer(), 5, **{"samples": 300} | options)


def test_a_network_agrees_with_itself() -> None:
    report = _measure(_Answer())
    assert tuple(report.sources) == OF_ROWS
    for one in report.sources.values():
        assert (one.agreement, one.share, one.divergence, one.samples) == (1, 1, 0, 300)


def test_the_worst_class_is_named() -> None:
    report = _measure(_Answer(mistaken=1), sources=["normal"])
    one, worst = report.sources["normal"], report.worst()
    assert one.by_class == {0: 1, 1: 0, 2: 1} and one.equal[1] == 0
    assert one.agreement == pytest.approx(2 / 3) and one.share == pytest.approx(1 - one.counts[1] / 300)
    assert one.divergence > 1
    assert worst is not None and (worst.label, worst.source, worst.samples, worst.agreement) == (
        1, "normal", one.counts[1], 0,
    )  # fmt: skip
    assert report.worst([]) is None and report.mean([]) is None
    header, line = str(report).splitlines()
    assert header.split() == ["source", "samples", "classes", "agreement", "divergence", "worst", "class"]
    assert line.split() == ["normal", "300", "3", "66.7", "%", f"{one.divergence:.4f}", "1:", "0.0", "%"]


def test_a_class_of_few_samples_is_not_judged() -> None:
    x = torch.eye(3).repeat_interleave(torch.tensor([100, 9, 20]), dim=0)
    report = _measure(_Answer(mistaken=1), sources={"mine": torch.cat([x, torch.zeros(129, 2)], dim=1)})
    assert report.sources["mine"].by_class == {0: 1, 2: 1} and report.mean() == 1


def test_what_samples_do_not_tell_is_said() -> None:
    assert _measure(_Answer()).unreached == [3]
    constant = _measure(_Answer(), _Answer(constant=True))
    assert all(one.same_class for one in constant.sources.values())
    assert not any(one.same_class for one in _measure(_Answer()).sources.values())


def test_own_sources_are_left_out_of_the_mean() -> None:
    report = _measure(_Answer(mistaken=1))
    row = report.describe({"normal", "fields"}, {"uniform"})
    assert row["over"] == ["uniform"] and row["worst"]["source"] == "uniform"
    assert row["mean"] == pytest.approx(report.sources["uniform"].agreement, abs=1e-4)
    assert {name: one["own"] for name, one in row["sources"].items()} == {
        "procedural": False, "fields": True, "normal": True, "uniform": False,
    }  # fmt: skip
    assert row["unreached"] == [3] and row["unreached_classes"] == 1
    nothing = report.describe(set(OF_ROWS), set())
    assert nothing["mean"] is None and nothing["worst"] is None


def test_the_same_seed_gives_the_same_samples_for_all_networks() -> None:
    first, again, other = (_measure(_Answer(1), seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == again != other
    assert AgreementReport.from_dict(first).to_dict() == first
    source = {"waves": Waves((1, 32, 32), mean=0.3, std=0.4)}
    teacher, student = LeNet5(), LeNet5()
    options: dict[str, Any] = {"samples": 60}
    mine = kegnet_pl.measure_agreement(student, teacher, (1, 32, 32), sources=source, **options)
    named = kegnet_pl.measure_agreement(student, teacher, (1, 32, 32), sources=["waves"], mean=0.3, std=0.4, **options)
    plain = kegnet_pl.measure_agreement(student, teacher, (1, 32, 32), sources=["waves"], **options)
    assert mine == named != plain, "mean and std are those of the pixels"


def test_default_sources_fit_the_shape() -> None:
    assert default_sources((3, 8, 8)) == default_sources((2, 40)) == OF_IMAGES
    assert default_sources((7,)) == default_sources((1, 4, 4, 4)) == OF_ROWS
    report = kegnet_pl.measure_agreement(LeNet5(), LeNet5(), (1, 32, 32), samples=20)
    assert tuple(report.sources) == OF_IMAGES


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        _measure(_Answer(), sources=[])
    with pytest.raises(ValueError, match="4 classes, but got 3"):
        _measure(MLP(features=5, classes=3, width=8, blocks=1), sources={"normal": NormalNoise(5)})
    with pytest.raises(ValueError, match="`samples` to be a whole number"):
        _measure(_Answer(), samples=0)
