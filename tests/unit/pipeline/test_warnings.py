"""Warnings about the networks of a run."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.warnings import (
    is_worse,
    warn_before_training,
    warn_of_agreement,
    warn_of_compression,
    warn_of_quantization,
    warn_of_regression,
    warn_of_student,
    warn_of_teacher,
    warn_of_training,
)
from kegnet_pl.settings import RunSettings
from tests.integration.conftest import configure
from tests.unit.reporting.rows import student

SETTINGS = RunSettings.from_config(configure())


def _stage(name: str, **metrics: Any) -> Stage:
    return Stage(name, "f", Path("folder"), {"metrics": metrics})


def _generators(*shares: float) -> Stage:
    return _stage(
        "generators", generators={str(index): {"train/accuracy": share} for index, share in enumerate(shares)}
    )


GOOD = {"train/agreement": 0.9, "unreached_classes": 0, "unreached": []}


def test_nothing_is_said_about_a_good_student() -> None:
    assert warn_of_training(SETTINGS, _stage("student", **GOOD), _generators(0.9, 0.6)) == []
    assert warn_of_training(SETTINGS, _stage("student"), None) == [], "stages of older versions lack these metrics"


def test_generators_that_do_not_convince_the_teacher_are_named() -> None:
    (line,) = warn_of_training(SETTINGS, _stage("student", **GOOD), _generators(0.9, 0.12, 0.3))
    assert "few samples of generators 1 (12%) and 2 (30%). Train longer (generator.epochs)" in line


@pytest.mark.parametrize(
    ("count", "labels", "said"),
    [
        (1, [3], "gives class 3 to none of the training samples, so the student learns little about it."),
        (30, list(range(20)), "17, 18, 19 and 10 more to none of the training samples, .* about them"),
    ],
)
def test_classes_without_samples_are_named(count: int, labels: list[int], said: str) -> None:
    stage = _stage("student", **GOOD | {"unreached_classes": count, "unreached": labels})
    (line,) = warn_of_training(SETTINGS, stage, None)
    assert re.search(said, line) and "or a mixture ('sources=[{kegnet:0.5,procedural:0.5}]')." in line
    (line,) = warn_of_training(SETTINGS, stage, None, mixed=True)
    assert re.search(said, line) and line.endswith(". Use other sources.")


def test_a_student_that_learns_nothing_is_named() -> None:
    (line,) = warn_of_training(SETTINGS, _stage("student", **GOOD | {"train/agreement": 0.15}), None)
    assert line.startswith(
        "The student gives the teacher's class to only 15% of its training samples. The level of chance is 10%."
    )


def test_low_agreement_is_a_warning() -> None:
    assert warn_of_compression(SETTINGS, _stage("compression", agreement=0.95)) == []
    (line,) = warn_of_compression(SETTINGS, _stage("compression", agreement=0.5))
    assert "only 50% of the held-out" in line
    assert warn_of_compression(SETTINGS, _stage("compression"))[0].startswith("The network gives the same class to all")
    weights = RunSettings.from_config(configure("compression.fit=weights"))
    assert warn_of_compression(weights, _stage("compression")) == []
    assert (
        warn_of_agreement(None, 10)
        == warn_of_agreement({"mean": None}, 10)
        == warn_of_agreement({"mean": 0.3}, 10)
        == []
    )
    assert (
        "to only 12% of synthetic samples of other sources than its own. The level of chance is 10%."
        in warn_of_agreement({"mean": 0.12}, 10)[0]
    )


def test_int8_that_differs_is_a_warning() -> None:
    assert warn_of_quantization(None) == warn_of_quantization({"agreement": 0.99}) == []
    assert warn_of_quantization({"agreement": 0.5})[0].startswith("it gives the same class as in float32 to only 50.0%")
    assert "one class to all samples" in warn_of_quantization({"agreement": None})[0]


def _agreement(mean: float, *, same_class: bool = False) -> dict[str, Any]:
    return {"mean": mean, "sources": {"waves": {"same_class": same_class}}}


def test_a_student_that_is_worse_than_its_teacher_is_a_warning() -> None:
    assert warn_of_student(_agreement(0.95), None, None, 10) == []
    (line,) = warn_of_student(_agreement(0.8), None, None, 10)
    assert line.startswith("The student gives the teacher's class to only 80% of synthetic samples of other sources")
    assert warn_of_student(_agreement(0.8), 0.88, 0.9, 10) == [], "the accuracy is known, and as good as the teacher's"
    (line,) = warn_of_student(_agreement(0.95), 0.5, 0.9, 10)
    assert line.startswith("The student's accuracy is 40.0 points below the teacher's. Lower compression.target, train")
    (line,) = warn_of_student(None, 0.5, 0.9, 10, compressed=False)
    assert line.startswith("The student's accuracy is 40.0 points below the teacher's. Use a larger student, train")
    (line,) = warn_of_student(_agreement(0.12), 0.5, 0.9, 10)
    assert line.startswith("The network gives the teacher's class to only 12%"), "one sentence, the stronger"
    assert warn_of_student(None, None, None, 10) == []


def test_a_teacher_near_chance_is_a_warning() -> None:
    assert warn_of_teacher(None, 10) == warn_of_teacher(0.25, 10) == []
    (line,) = warn_of_teacher(0.14, 10)
    assert line.startswith("The teacher's accuracy on the test data is 14.0%. The level of chance is 10%. Check that")


def test_training_that_makes_a_network_worse_is_a_warning() -> None:
    start = student(0.9, method="T", agreement=_agreement(0.97))
    (line,) = warn_of_regression(student(0.6), start)
    assert line.startswith("Training made the network worse: the accuracy is 60.0%, and was 90.0% before training.")
    assert "'sources=[]'" in line and "student.optimizer.lr=auto" in line
    assert "student.optimizer" not in warn_of_regression(student(0.6), start, chosen=True)[0]
    start = dataclasses.replace(start, accuracy=None)
    (line,) = warn_of_regression(student(None, agreement=_agreement(0.8)), start)
    assert "the agreement with the teacher is 80.0%, and was 97.0%" in line
    assert warn_of_regression(student(None, agreement=_agreement(0.96)), start) == []
    assert warn_of_regression(student(None), start) == warn_of_regression(student(0.1), None) == []


def test_the_warning_about_t_is_left_out_where_the_student_recovered() -> None:
    stage = _stage("compression", agreement=0.5)
    assert warn_of_compression(SETTINGS, stage, recovered=True) == [] != warn_of_compression(SETTINGS, stage)
    compression = SETTINGS.compression.model_copy(update={"method": "pruning"})
    pruned, good = SETTINGS.model_copy(update={"compression": compression}), _stage("compression", agreement=0.84)
    assert warn_of_compression(pruned, good) == [] != warn_of_compression(SETTINGS, good), "its level is 80 %"
    (line,) = warn_before_training(SETTINGS, stage)
    assert line.startswith("The compressed network gives the teacher's class to only 50% of held-out samples")
    assert warn_before_training(SETTINGS, _stage("compression", agreement=0.95)) == []
    assert warn_before_training(SETTINGS, _stage("compression")) == [], "the teacher gives one class"
    assert is_worse(_agreement(0.95), None, None) is False and is_worse(_agreement(0.5), None, None) is True
    assert is_worse(_agreement(1.0, same_class=True), None, None) is None, "one class for all samples tells nothing"
