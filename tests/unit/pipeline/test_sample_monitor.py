"""A look at generators while they train."""

import copy
import math
from pathlib import Path

import pytest
import torch

from kegnet_pl.networks import Decoder, DenseGenerator, StackedModule
from kegnet_pl.pipeline.sample_monitor import SAMPLES, SampleMonitor, describe_answers
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.training import GeneratorModule
from tests.unit.training.tiny import (
    CLASSES,
    FEATURES,
    NOISE,
    QUIET,
    State,
    adam,
    make_classifier,
    make_objective,
    make_trainer,
    snapshot,
)

pytestmark = QUIET


def test_confidence_is_in_the_class_that_samples_were_made_for() -> None:
    probabilities = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.5, 0.5], [0.2, 0.8]]])
    metrics, entropies = describe_answers(probabilities.log())
    assert metrics["samples/confidence_0"] == pytest.approx(0.8)
    assert metrics["samples/confidence_1"] == pytest.approx(0.65)
    assert metrics["samples/confidence"] == pytest.approx(0.725)
    expected = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.9, 0.7, 0.5, 0.2)]
    assert entropies.tolist() == pytest.approx(expected)
    assert metrics["samples/entropy"] == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize("count", [1, 2])
def test_training_goes_on_as_if_nobody_had_looked(tmp_path: Path, count: int) -> None:
    def train(watched: bool) -> tuple[State, StageCosts]:
        torch.manual_seed(0)
        generators = [DenseGenerator(FEATURES, CLASSES, NOISE, blocks=1, width=8) for _ in range(count)]
        decoders = [Decoder((FEATURES,), NOISE, blocks=1, width=8) for _ in range(count)]
        module = GeneratorModule(
            generators[0] if count == 1 else StackedModule(generators),
            decoders[0] if count == 1 else StackedModule(decoders),
            make_classifier(), make_objective(), adam, batch_size=12, steps_per_epoch=2,
        )  # fmt: skip
        names, costs = [f"generator_{index}" for index in range(count)], StageCosts()
        watch = SampleMonitor(make_classifier(), copy.deepcopy(generators[0]), names, tmp_path / "sheets", 0, costs)
        make_trainer(3, tmp_path, [watch] if watched else []).fit(module)
        return snapshot(module), costs

    (alone, _), (watched, costs) = train(False), train(True)
    for name, value in alone.items():
        assert torch.equal(value, watched[name]), name
    for index in range(count):
        sheets = sorted(path.name for path in (tmp_path / "sheets" / f"generator_{index}").iterdir())
        assert sheets == ["epoch_0001.png", "epoch_0002.png", "epoch_0003.png"], "1, 2, and the last"
    assert costs.samples_made == costs.teacher_forwards == 3 * count * CLASSES * SAMPLES


def test_sheets_differ_between_generators_and_epochs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generators = [DenseGenerator(FEATURES, CLASSES, NOISE, blocks=1, width=8) for _ in range(2)]
    decoders = [Decoder((FEATURES,), NOISE, blocks=1, width=8) for _ in range(2)]
    module = GeneratorModule(
        StackedModule(generators), StackedModule(decoders), make_classifier(), make_objective(), adam,
        batch_size=12, steps_per_epoch=2,
    )  # fmt: skip
    watch = SampleMonitor(make_classifier(), copy.deepcopy(generators[0]), ["a", "b"], tmp_path, 0, StageCosts())
    make_trainer(2, tmp_path, [watch]).fit(module)
    sheets = {path.read_bytes() for path in tmp_path.glob("*/epoch_*.png")}
    assert len(sheets) == 4


def test_many_classes_are_cut_and_looked_at_in_chunks(tmp_path: Path) -> None:
    classes, sizes = 200, []

    class Teacher(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    torch.manual_seed(0)
    generator, teacher = DenseGenerator(FEATURES, classes, NOISE, blocks=1, width=8), Teacher(FEATURES, classes)
    module = GeneratorModule(
        generator, Decoder((FEATURES,), NOISE, blocks=1, width=8), teacher, make_objective(), adam, batch_size=12,
        steps_per_epoch=1,
    )  # fmt: skip
    costs = StageCosts()
    watch = SampleMonitor(teacher, copy.deepcopy(generator), ["a"], tmp_path, 0, costs, batch_size=12)
    make_trainer(1, tmp_path, [watch]).fit(module)
    assert max(sizes) == 12 and sum(sizes) == 12 + 24 * 4
    assert costs.samples_made == costs.teacher_forwards == 24 * 4
    samples, logits = watch._sample(module, 0, [0, 199], 4)
    whole = SampleMonitor(teacher, copy.deepcopy(generator), ["a"], tmp_path, 0, costs)._sample(module, 0, [0, 199], 4)
    torch.testing.assert_close(logits, whole[1])
    assert [x.shape for x in samples] == [(4, FEATURES)] * 2
