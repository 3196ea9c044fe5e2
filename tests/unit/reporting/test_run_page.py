"""What a run's page says."""

import dataclasses
from typing import Any

from kegnet_pl.reporting.run_page import _spent
from kegnet_pl.runtime.costs import KINDS
from tests.unit.reporting.rows import TEACHER, student


def _costs(**seconds: float) -> dict[str, Any]:
    return {"seconds": {work: seconds.get(work, 0.0) for work in (*KINDS, "other")}}


def test_seconds_are_counted_once_each() -> None:
    """StageCosts of a row are those of all stages behind it; what rows share is spent once."""
    teacher = {"teacher_training": 100.0, "evaluation": 7.0, "other": 1.0}  # validated while it trained
    compressed = teacher | {"compression": 2.0, "other": 1.5}
    noise = compressed | {"student_training": 10.0, "evaluation": 8.0, "other": 2.0}
    kegnet = compressed | {"generator_training": 50.0, "student_training": 20.0, "evaluation": 10.0, "other": 4.0}
    rows = [
        dataclasses.replace(TEACHER, costs=_costs(**teacher), stage_seconds={"evaluation": 0.1}),
        student(0.1, method="T", costs=_costs(**compressed), stage_seconds={"evaluation": 0.2}),
        student(0.5, method="T+Uniform", costs=_costs(**noise), stage_seconds={"evaluation": 0.3}),
        student(0.8, method="T+KegNet", costs=_costs(**kegnet), stage_seconds={"evaluation": 0.4}),
    ]
    found = {work: round(seconds, 6) for work, seconds in _spent(rows).items() if seconds}
    assert found == {
        "teacher_training": 100.0,
        "compression": 2.0,
        "generator_training": 50.0,
        "student_training": 30.0,
        "evaluation": 7.0 + 1.0 + 3.0 + 1.0,  # of the teacher, of two students, and of all networks on test data
        "other": 1.0 + 0.5 + 0.5 + 2.5,
    }
