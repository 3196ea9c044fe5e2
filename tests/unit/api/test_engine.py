"""The engine wires modules and leaves training to a fit: here one that only writes down what it was given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from kegnet_pl.api.engine import GeneratorTask, fit_generators, fit_student
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.networks import StackedModule
from kegnet_pl.settings import DistillationSettings, GeneratorTrainingSettings
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training.progress import StageProgress, make_console
from tests.unit.training import tiny
from tests.unit.training.tiny import FEATURES, adam, make_classifier

BAR = StageProgress("test", make_console(quiet=True))


@dataclass
class FakeFit:
    """Adds 1 to every weight that is trained, and keeps its arguments."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    modules: list[Any] = field(default_factory=list)

    def __call__(self, module: LightningModule, data: Any, *, callbacks: Sequence[Any] = (), **options: Any) -> Any:
        with torch.no_grad():
            for parameter in module.trained_parameters():  # type: ignore[operator]
                parameter.add_(1.0)
        self.calls.append({"data": data, "callbacks": list(callbacks), **options})
        self.modules.append(module)
        return {"train/loss": 0.5}


def make_task(count: int, parallel: str) -> GeneratorTask:
    return tiny.make_task(GeneratorTrainingSettings(count=count, epochs=7, seed=3, parallel=parallel))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parallel", "names"), [("vmap", ["generator_0-generator_1"]), ("sequential", ["generator_0", "generator_1"])]
)
def test_generators_are_fitted_together_or_one_after_another(parallel: str, names: list[str]) -> None:
    task, fit = make_task(2, parallel), FakeFit()
    trained = fit_generators(task, fit, BAR, lambda names, network: [f"callback of {names}"])
    assert [call["name"] for call in fit.calls] == names
    assert all(call["epochs"] == 7 and call["data"] is None for call in fit.calls)
    assert [len(call["callbacks"]) for call in fit.calls] == [2] * len(names), "with the progress"
    assert [isinstance(module.generator, StackedModule) for module in fit.modules] == [parallel == "vmap"] * len(names)
    for index, pair in enumerate(zip(trained.networks, trained.decoders, strict=True)):
        for network, initial in zip(pair, task.make_pair(index), strict=True):
            for value, before in zip(network.parameters(), initial.parameters(), strict=True):
                torch.testing.assert_close(value, before + 1.0)
            assert not network.training


def test_a_student_is_fitted_on_the_samples_that_the_teacher_labels() -> None:
    teacher, student, fit = make_classifier(), make_classifier(seed=1), FakeFit()
    before = [value.clone() for value in student.parameters()]
    data = SyntheticDataModule(NoiseSource("normal", (FEATURES,)), teacher, samples=32, batch_size=8)
    settings = DistillationSettings(epochs=5, temperature=2.0)
    module, metrics = fit_student(student, data, settings, partial(torch.optim.SGD, lr=0.1), fit, BAR, "noise")
    (call,) = fit.calls
    assert (call["name"], call["epochs"], call["data"]) == ("noise", 5, data)
    assert metrics == {"train/loss": 0.5}
    assert module.network is student and not student.training
    for value, old in zip(student.parameters(), before, strict=True):
        torch.testing.assert_close(value, old + 1.0)
    samples, logits = data.splits["train"]
    torch.testing.assert_close(logits, teacher.eval()(samples).detach())


def test_layers_are_compared_only_where_they_have_a_weight() -> None:
    for weight, compared in ((0.0, False), (2.0, True)):
        fit = FakeFit()
        data = SyntheticDataModule(NoiseSource("normal", (4,)), _NormNet(), samples=16, batch_size=8)
        settings = DistillationSettings.model_validate({"feature_distillation": {"weight": weight}})
        module, _ = fit_student(_NormNet(), data, settings, adam, fit, BAR)
        assert (module.feature_distillation is not None) is compared


class _NormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc2(self.norm(self.fc1(x)))
        return logits
