"""Tables of results on the terminal."""

import pytest

from kegnet_pl.reporting.tables import explain_losses
from tests.unit.reporting.rows import TEACHER, student


def test_a_student_below_where_it_began_is_told_with_advice() -> None:
    rows = [TEACHER, student(0.65, method="T", samples=None), student(0.7, method="T+Uniform"), student(0.25)]
    (line,) = explain_losses(rows, "batch", batch_norm=True)
    assert line.startswith("T+KegNet ends 40.0 points below T, from which it began.")
    assert "student.norm=frozen" in line and "student.norm=adapt student.shuffle=true" in line


@pytest.mark.parametrize(("norm", "batch_norm"), [("frozen", True), ("adapt", True), ("batch", False)])
def test_advice_is_for_batch_norm_that_has_other_statistics(norm: str, batch_norm: bool) -> None:
    rows = [TEACHER, student(0.65, method="T", samples=None), student(0.25)]
    assert explain_losses(rows, norm, batch_norm) == ["T+KegNet ends 40.0 points below T, from which it began."]


@pytest.mark.parametrize("name", ["S", "T"])
def test_nothing_is_said_where_nothing_is_lost_or_known(name: str) -> None:
    untrained = student(0.65 if name == "S" else None, method=name, samples=None)
    assert explain_losses([TEACHER, untrained, student(0.25, method=f"{name}+KegNet")], "batch", batch_norm=True) == []
    assert explain_losses([TEACHER, student(0.6, method="T"), student(0.6)], "batch", batch_norm=True) == []
