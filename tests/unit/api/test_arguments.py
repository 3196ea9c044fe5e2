"""Keyword arguments of the library and typed settings have one set of names, defaults and messages."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn

import kegnet_pl
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.export import export_network
from kegnet_pl.networks import MLP
from kegnet_pl.settings import DistillationSettings, GeneratorTrainingSettings, Settings, StudentSettings

GIVEN_BY_DATA = {"samples", "memory", "noise_std", "min_epochs", "patience", "feature_distillation", "norm"}
"""Settings of a student that are arguments of the data set, need validation data, are two arguments, or are chosen."""


@pytest.mark.parametrize(
    ("function", "model", "left_out"),
    [
        (kegnet_pl.train_generators, GeneratorTrainingSettings, set()),
        (kegnet_pl.distill, DistillationSettings, GIVEN_BY_DATA),
    ],
)
def test_defaults_are_those_of_the_settings(
    function: Callable[..., Any], model: type[Settings], left_out: set[str]
) -> None:
    arguments = inspect.signature(function).parameters
    fields = {name: field for name, field in model.model_fields.items() if name not in left_out}
    assert fields
    for name, field in fields.items():
        assert name in arguments, f"{function.__name__} lacks {name}"
        assert arguments[name].default == field.default, name


def test_what_a_student_shares_with_the_command_line_has_the_same_defaults() -> None:
    arguments = inspect.signature(kegnet_pl.distill).parameters
    settings = StudentSettings()
    assert arguments["lr"].default == settings.optimizer.lr
    assert arguments["feature_distillation"].default == settings.feature_distillation.weight
    assert arguments["feature_distillation_layers"].default == settings.feature_distillation.layers


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"^Expected `count` .* at least 1, but got 0") as caught:
        kegnet_pl.train_generators(MLP(4, 3), 4, count=0, epochs=-1, teacher_norm="both")  # type: ignore[arg-type]
    lines = str(caught.value).splitlines()
    assert [line.split("`")[1] for line in lines] == ["count", "epochs", "teacher_norm"]
    assert "generator." not in str(caught.value), "the library has no groups"


@pytest.mark.parametrize("lr", ["Auto", None, 0, float("nan")])
def test_a_learning_rate_that_is_no_number_above_0_is_refused(lr: Any) -> None:
    teacher, source = MLP(4, 3, width=4, blocks=1), kegnet_pl.NoiseSource("normal", (4,))
    data = kegnet_pl.SyntheticDataset(source, teacher, 8, device="cpu")
    with pytest.raises(ValueError, match=f"Expected `lr` to be a number above 0.*, but got {lr!r}"):
        kegnet_pl.distill(teacher, data, lr=lr, device="cpu")
    with pytest.raises(ValueError, match="Expected `memory` of at least 0 GB, or None, but got '1'"):
        kegnet_pl.SyntheticDataset(source, teacher, 8, device="cpu", memory="1")  # type: ignore[arg-type]


def test_global_random_state_is_left_alone() -> None:
    teacher = MLP(4, 3, width=4, blocks=1)
    before = torch.random.get_rng_state()
    kegnet_pl.train_generators(
        teacher, 4, count=1, epochs=1, steps_per_epoch=1, batch_size=4, progress=False, device="cpu"
    )
    assert torch.equal(torch.random.get_rng_state(), before)


def _on_meta(kind: str) -> nn.Module:
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    if kind == "all":
        return network.to("meta")
    if kind == "layer":
        network[3].to("meta")
    else:
        network[1].running_mean = torch.empty(16, device="meta")
    return network


@pytest.mark.parametrize(("kind", "names"), [("all", "9 of 9"), ("layer", "2 of 9"), ("buffer", "1 of 9")])
def test_networks_without_values_are_refused(kind: str, names: str, tmp_path: Path) -> None:
    network, good, source = _on_meta(kind), MLP(8, 3), kegnet_pl.NoiseSource("normal", (8,))
    x, options = torch.randn(6, 8), {"device": "cpu"}
    data = kegnet_pl.SyntheticDataset(source, good, 8, device="cpu")
    calls: list[Callable[[], Any]] = [
        lambda: kegnet_pl.train_generators(network, (8,), **options),
        lambda: kegnet_pl.SyntheticDataset(source, network, 8, **options),
        lambda: kegnet_pl.compress(network, (8,)),
        lambda: kegnet_pl.compress(network, (8,), target=2, method="pruning"),
        lambda: kegnet_pl.distill(network, data, **options),
        lambda: kegnet_pl.measure_agreement(network, good, (8,)),
        lambda: kegnet_pl.measure_agreement(good, network, (8,)),
        lambda: kegnet_pl.measure_accuracy(network, kegnet_pl.Split(x, torch.arange(6) % 3)),
        lambda: kegnet_pl.quantize(network, tmp_path / "a.onnx", (8,)),
        lambda: export_network(network, tmp_path, (8,)),
        lambda: save_network(network, tmp_path, "network", {}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"{names}.*meta device.*assign=True.*to_empty\(\) is not enough"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"teacher": MLP(8, 3).state_dict()},
            r"Module, but got a OrderedDict\. Build the network and call its load_state",
        ),
        ({"teacher": [MLP(8, 3)]}, r"Module, but got \[MLP\("),
        ({"teacher": MLP}, r"Module, but got the class MLP\. Give an instance"),
        ({"device": None}, "'auto', 'cpu', 'cuda' or 'cuda:1', but got None"),
        ({"device": "meta"}, "to compute on this machine, but got 'meta'"),
        ({"seed": None}, "`seed` to be a whole number of at least 0, but got None"),
        ({"seed": "0"}, "`seed` to be a whole number of at least 0, but got '0'"),
    ],
)
def test_arguments_of_other_kinds_are_named(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"teacher": MLP(8, 3), "device": "cpu", "seed": 0} | options
    teacher = given.pop("teacher")
    with pytest.raises(ValueError, match=message):
        kegnet_pl.train_generators(teacher, (8,), **given)
    with pytest.raises(ValueError, match=message):
        kegnet_pl.SyntheticDataset(kegnet_pl.NoiseSource("normal", (8,)), teacher, 8, **given)


def test_numbers_of_numpy_are_numbers() -> None:
    source = kegnet_pl.NoiseSource("normal", (8,))
    kegnet_pl.SyntheticDataset(source, MLP(8, 3), np.int64(8), seed=np.int64(3), device="cpu")
    small = kegnet_pl.compress(MLP(8, 3), (8,), target=np.float32(1.5), method="tucker", fit="weights", progress=False)
    assert small.report.parameters_before > small.report.parameters_after


def test_early_stopping_of_one_seed_does_not_stop_the_next_one() -> None:
    class Epochs(Callback):
        def __init__(self) -> None:
            self.counts: list[int] = []

        def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.counts.append(trainer.current_epoch)

    teacher, source = MLP(4, 3, width=4, blocks=1), kegnet_pl.NoiseSource("normal", (4,))
    data = kegnet_pl.SyntheticDataset(source, teacher, 8, device="cpu")
    epochs, stop = Epochs(), EarlyStopping("train/loss", min_delta=10.0, patience=2, check_on_train_epoch_end=True)
    kegnet_pl.distill(
        teacher, data, lr=1e-3, epochs=5, seed=[0, 1], parallel="sequential", callbacks=[epochs, stop], device="cpu"
    )
    assert epochs.counts == [3, 3]
