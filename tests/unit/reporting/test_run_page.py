"""The page and the story of a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from kegnet_pl.reporting.classes import ClassCounts
from kegnet_pl.reporting.run_page import _facts, _spent, write_run_page
from kegnet_pl.reporting.run_story import find_main_student, write_story
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.runtime.costs import KINDS
from kegnet_pl.sources import describe_source
from tests.unit.reporting.rows import TEACHER, student


def _costs(**seconds: float) -> dict[str, Any]:
    return {"seconds": {work: seconds.get(work, 0.0) for work in (*KINDS, "other")}}


def test_seconds_are_counted_once_each() -> None:
    """Costs of a row are those of all stages behind it; what rows share is spent once."""
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


def test_the_story_is_about_the_student_with_the_most_prior_knowledge() -> None:
    kegnet, normal = student(0.8, samples=128), student(0.5, method="T+Normal")
    rows = [TEACHER, student(0.3, method="T", samples=None), kegnet, normal]
    assert find_main_student(rows) is kegnet
    story = write_story(rows, {"generator": {"count": 3}})
    assert story[1] == (
        "It was then trained on 128 samples of 3 generators, trained with the teacher's help, with no real data in "
        "training or selection."
    )
    assert story[2] == (
        "The student (KegNet) is correct on 80.00 %, 10.00 points below the teacher (the same network: 30.00 % "
        "untrained, 50.00 % trained on samples of normal noise)."
    )
    assert find_main_student(rows[:2]) is None and len(write_story(rows[:2], {})) == 1
    assert "64 samples of normal noise (prior knowledge in them: none)" in write_story([*rows[:2], normal], {})[1]
    real = student(None, selection="real")
    assert "selected on real validation data" in write_story([*rows[:2], real], {})[1]


def test_the_main_student_is_the_last_of_equal_prior_knowledge() -> None:
    first, second = student(0.5, method="T+Uniform"), student(0.4, method="T+Normal")
    assert find_main_student([TEACHER, first, second]) is second


def test_the_samples_of_the_compression_do_not_decide_the_main_student() -> None:
    fields = describe_source("fields").to_dict()
    rows = [
        dataclasses.replace(row, compression_source=fields)
        for row in (student(0.8), student(0.4, method="T+Normal", samples=64))
    ]
    assert [row.prior for row in rows] == ["teacher + procedural", "procedural"]
    assert find_main_student([TEACHER, *rows]) is rows[0]
    assert "64 samples of normal noise (prior knowledge in them: none)" in "".join(write_story([TEACHER, rows[1]], {}))


def test_a_ceiling_is_told_and_the_story_is_about_another_student() -> None:
    untrained, kegnet = student(0.3, method="T", samples=None), student(0.8)
    ceiling = student(0.85, method="T+Real")
    rows = [TEACHER, untrained, kegnet, ceiling]
    told = "student (real data) is not a data-free result: it was trained on real data, as a ceiling for the others."
    story = write_story(rows, {})
    assert find_main_student(rows) is kegnet
    assert story == [*write_story(rows[:3], {}), told]
    alone = [TEACHER, untrained, ceiling]
    assert find_main_student(alone) is None
    assert write_story(alone, {}) == [*write_story(alone[:2], {}), told]
    costs = _costs(student_training=1.0)
    rows = [dataclasses.replace(row, costs=costs) for row in rows]
    assert ("80.00 %", "accuracy: student (KegNet)") in _facts(rows) and "real data" not in str(_facts(rows))


def test_a_page_of_a_thousand_classes_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    counts = ClassCounts.of(torch.randint(0, 5, (1000, 1000)))
    agreement = {
        "normal": {"counts": list(range(1000)), "equal": [count // 2 for count in range(1000)], "divergence": 0.1}
    }
    metrics = {"evaluation": counts.to_metrics(), "agreement": agreement}
    rows = [
        TEACHER,
        student(
            0.5,
            agreement={"over": [], "mean": None, "worst": None, "sources": {}, "unreached": [], "unreached_classes": 0},
        ),
    ]
    networks: dict[str, dict[str, str]] = {row.method: {} for row in rows}
    for row, stage in ((rows[0], "evaluation"), (rows[1], "evaluation"), (rows[1], "agreement")):
        folder = tmp_path / f"{stage}-0123456789abcdef"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({"metrics": metrics[stage]}))
        networks[row.method][stage] = folder.name
    (tmp_path / "stages.json").write_text(json.dumps({"config": {}, "networks": networks}))
    text = write_run_page(FinishedRun(tmp_path, rows=tuple(rows))).read_text()
    assert "24 of 1,000 classes, at equal distances" in text and "Left out" not in text
    assert len(text) < 400_000 and text.count("<tr>") < 50 + 50 + 20 + 40
