"""Learning rates that short trainings choose."""

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kegnet_pl
from kegnet_pl.api.learning_rate import (
    FIRST,
    LARGER,
    MOST_TRIALS,
    SMALLER,
    Trial,
    best,
    count_steps,
    recall_trials,
    try_learning_rates,
)
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.networks import MLP
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import StudentModule

FEATURES = 6


def make_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


def make_module(network: nn.Module, lr: float) -> StudentModule:
    return StudentModule(network, DistillationLoss(4.0), partial(torch.optim.Adam, lr=lr))


def make_data(teacher: nn.Module, samples: int = 640) -> SyntheticDataModule:
    data = SyntheticDataModule(NoiseSource("normal", (FEATURES,)), teacher, samples=samples, batch_size=32)
    data.setup()
    return data


def test_a_network_equal_to_its_teacher_gets_a_small_rate_and_a_new_one_a_large_rate() -> None:
    teacher = make_network()
    data = make_data(teacher)
    same, new = copy.deepcopy(teacher), make_network(1)
    before = copy.deepcopy(same.state_dict())
    trials = try_learning_rates(same, data, 8, lambda network, lr: make_module(network, 100 * lr))  # above rounding
    assert [trial.lr for trial in trials] == [FIRST, *SMALLER], "no larger one"
    assert best(trials).lr in SMALLER and best(trials).agreement > 0.95
    assert all(torch.equal(value, before[name]) for name, value in same.state_dict().items())
    trials = try_learning_rates(new, data, 80, make_module)
    assert [trial.lr for trial in trials] == [FIRST, SMALLER[0], *LARGER], "smaller ones are tried once"
    assert best(trials).lr == LARGER[-1] and len(trials) == MOST_TRIALS
    assert data.costs.seconds["student_training"] > 0


def test_a_rate_whose_training_diverges_is_not_chosen() -> None:
    teacher = make_network()

    def diverging(network: nn.Module, lr: float) -> StudentModule:
        return make_module(network, 1e30 if lr == SMALLER[0] else lr)

    trials = try_learning_rates(copy.deepcopy(teacher), make_data(teacher), 2, diverging)
    assert [trial.lr for trial in trials] == [FIRST, SMALLER[0], LARGER[0]]
    assert trials[1].loss == float("inf") and best(trials).lr == FIRST


def test_a_rate_whose_loss_is_not_a_number_is_not_chosen() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 if self.training else float("nan"))

    def breaking(network: nn.Module, lr: float) -> StudentModule:
        if lr == FIRST:
            network[2].__class__ = Broken  # type: ignore[operator]
        return make_module(network, lr)

    trials = try_learning_rates(make_network(), make_data(make_network(1)), 2, breaking)
    assert trials[0].loss == float("inf") and best(trials) is not trials[0]


def test_a_resumed_training_recalls_its_trials(tmp_path: Path) -> None:
    file, trials = tmp_path / "checkpoints" / "trials.json", [Trial(3e-4, float("inf"), 0.0), Trial(1e-4, 0.5, 0.75)]
    assert recall_trials(file, lambda: trials) == trials
    assert recall_trials(file, list) == trials
    assert recall_trials(None, list) == []
    for damaged in ("[]", "[{}]", "3", "{", '[{"lr": "x"}]'):
        file.write_text(damaged)
        assert recall_trials(file, lambda: trials[1:]) == trials[1:], damaged


@pytest.mark.parametrize("samples", [1, 4, 33])
def test_few_samples_are_enough(samples: int) -> None:
    trials = try_learning_rates(make_network(), make_data(make_network(), samples), 1, make_module)
    assert all(0 <= trial.agreement <= 1 and trial.loss < float("inf") for trial in trials)


def test_a_trial_is_a_share_of_the_training() -> None:
    assert [count_steps(500, epochs, 10) for epochs in (1, 8, 1000)] == [20, 100, 200]


def test_the_student_equals_one_that_is_given_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    teacher, options = MLP(8, 3, width=16, blocks=1), {"device": "cpu", "epochs": 2}
    data = kegnet_pl.SyntheticDataset(NoiseSource("normal", (8,)), teacher, 256, device="cpu")
    start = copy.deepcopy(teacher)
    found = kegnet_pl.distill(start, data, **options)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    chosen, tried = re.search(
        r"student: learning rate (\S+), by short trainings with (0\.0003 \(loss .*)", printed
    ).groups()
    assert f"{chosen} (loss " in tried
    given: dict[str, Any] = {**options, "lr": float(chosen), "progress": False}
    same = kegnet_pl.distill(start, data, **given)
    for one, other in zip(found.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
