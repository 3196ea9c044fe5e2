"""Keyword arguments of the library and typed settings have one set of names, defaults and messages."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import kegnet_pl
from kegnet_pl.networks import MLP
from kegnet_pl.settings import DistillationSettings, GeneratorTrainingSettings, Settings, StudentSettings

GIVEN_BY_DATA = {"samples", "noise_std", "min_epochs", "patience", "feature_distillation", "norm"}
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


def test_global_random_state_is_left_alone() -> None:
    teacher = MLP(4, 3, width=4, blocks=1)
    before = torch.random.get_rng_state()
    kegnet_pl.train_generators(
        teacher, 4, count=1, epochs=1, steps_per_epoch=1, batch_size=4, progress=False, device="cpu"
    )
    assert torch.equal(torch.random.get_rng_state(), before)
