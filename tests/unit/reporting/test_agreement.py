"""Texts on agreement, and accuracy relative to the teacher's from the record."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kegnet_pl.reporting import estimates
from kegnet_pl.reporting.agreement import explain_agreement, format_agreement
from kegnet_pl.reporting.estimates import (
    Known,
    check,
    describe_estimate,
    estimate,
    is_reliable,
    read_record,
    to_content,
)
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.run_story import write_story
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.summary import make_columns, summarize
from tests.unit.reporting.rows import TEACHER, student


def _agreement(**changes: Any) -> dict[str, Any]:
    plain = {"samples": 100, "share": 0.7, "divergence": 0.1, "classes": 3, "same_class": False}
    return {
        "over": ["waves"],
        "mean": 0.812,
        "worst": {"label": 2, "source": "waves", "samples": 12, "agreement": 0.25},
        "unreached": [],
        "unreached_classes": 0,
        "sources": {
            "waves": {"own": False, "agreement": 0.812} | plain, "normal": {"own": True, "agreement": 0.9} | plain
        },
    } | changes  # fmt: skip


def _rows(accuracy: float | None = 0.8, **changes: Any) -> list[Row]:
    return [TEACHER, student(accuracy, agreement=_agreement(**changes))]


def test_agreement_is_called_no_accuracy_and_the_worst_class_is_named() -> None:
    first, worst = explain_agreement(_rows())
    assert first.startswith("Agreement is not accuracy") and first.endswith(
        "Samples: waves (normal left out, since they made a network of this run)."
    )
    assert worst == (
        "student (KegNet) agrees least on class 2: it gives the same class to 25 % of the 12 samples of waves that the "
        "teacher assigns to this class."
    )
    assert explain_agreement([TEACHER, student(0.8)]) == []


def test_few_samples_stand_beside_their_agreement() -> None:
    assert format_agreement(1.0, 200) == "100.0 % of 200" and format_agreement(1.0, 2000) == "100.0 %"
    assert format_agreement(None, 0) == ""
    row = _rows()[1]
    assert row.agreement_samples == 100 and student(0.8).agreement_samples == 0, "of waves alone"


def test_unreached_classes_and_a_teacher_of_one_class_are_warned_of() -> None:
    assert explain_agreement(_rows(unreached=[4], unreached_classes=1))[-1] == (
        "The teacher gives class 4 to no sample of any source, so the agreement on it is unknown."
    )
    assert (
        "classes 4, 5 and 98 more to no sample of any source, so the agreement on them is unknown"
        in explain_agreement(_rows(unreached=[4, 5], unreached_classes=100))[-1]
    )
    same = {name: one | {"same_class": True} for name, one in _agreement()["sources"].items()}
    assert "nearly all samples of waves and normal the same class" in explain_agreement(_rows(sources=same))[-1]


def test_where_no_source_is_left_it_is_said() -> None:
    (only,) = explain_agreement(_rows(over=[], mean=None, worst=None))
    assert "Samples: no source, since samples of all sources were used to make the network" in only


def test_without_test_data_the_story_has_agreement_and_what_follows_from_it() -> None:
    rows = [dataclasses.replace(row, accuracy=None, teacher_accuracy=None) for row in _rows()]
    text = " ".join(write_story(rows, {}))
    assert "agrees least on class 2" in text and "an agreement of 81 %" in text
    assert "agreement of 81 %" not in " ".join(write_story(_rows(), {})), "accuracy is known"


def test_the_table_of_a_sweep_has_the_mean_over_seeds() -> None:
    runs = [
        FinishedRun(Path(str(seed)), rows=(TEACHER, student(0.8, seed=seed, agreement=_agreement(mean=mean))))
        for seed, mean in ((0, 0.8), (1, 0.9))
    ]
    assert make_columns(summarize(runs))["agreement"] == ["", "85.0 % of 200"]
    assert "agreement" not in make_columns(summarize([FinishedRun(Path(), rows=(TEACHER, student(0.8)))]))


def _known(offset: float = 0.0) -> list[Known]:
    """Four data sets with six networks each from 0.8 to 0.9; the last may be different."""
    return [
        Known(name, 0.8 + index / 100, 0.9 + index / 100 - (offset if name == "d" else 0))
        for name in "abcd"
        for index in range(6)
    ]


def test_an_estimate_is_the_range_of_known_networks() -> None:
    found = estimate(0.83, _known())
    assert found is not None
    assert (found.low, found.high, found.median) == pytest.approx((0.9, 0.95, 0.925))
    assert (found.networks, found.data_sets) == (24, 4)
    assert estimate(0.93, _known()) is None, "no network has such an agreement"
    assert estimate(0.83, [one for one in _known() if one.dataset in "ab"]) is None, "too few data sets"


def test_each_data_set_is_checked_by_the_others() -> None:
    results = check(_known())
    assert {one.covered for one in results.values()} == {1.0}
    assert all(one.error == pytest.approx(0.015) and one.estimated == 6 for one in results.values())
    assert is_reliable(_known())
    assert check(_known(offset=0.5))["d"].covered == 0 and not is_reliable(_known(offset=0.5))
    assert not is_reliable([])


@pytest.mark.parametrize(("offset", "said"), [(0.0, "90 to 95 % of their teachers' accuracy"), (0.5, "no estimate")])
def test_an_unreliable_record_gives_no_estimate(offset: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tuple(Known(**one) for one in to_content([*_known(offset), Known("e", 0.3, 0.1)]))
    assert len(record) == (0 if offset else 24), "a range of one network is left out"
    monkeypatch.setattr(estimates, "read_record", lambda: record)
    assert said in describe_estimate(0.83)


def test_the_stored_record_has_reliable_ranges_alone() -> None:
    known = read_record()
    assert to_content(known) == [dataclasses.asdict(one) for one in known]
    assert read_record(Path("missing.json")) == ()
