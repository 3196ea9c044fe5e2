"""The cost ledger."""

import time
from pathlib import Path

import pytest

from kegnet_pl.runtime.costs import KINDS, StageCosts, add_up


def test_measures_work_that_fails() -> None:
    costs = StageCosts()
    with pytest.raises(KeyboardInterrupt), costs.measure("drawing"):
        time.sleep(0.02)
        raise KeyboardInterrupt
    assert 0.02 <= costs.seconds["drawing"] < 1
    assert all(costs.seconds[work] == 0 for work in KINDS if work != "drawing")


def test_an_interrupted_attempt_leaves_its_costs(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    costs = StageCosts.load(file)
    costs.keep()
    assert not file.exists(), "there is no file yet"
    with pytest.raises(KeyboardInterrupt), costs.recorded(file):
        costs.seconds["labelling"], costs.samples_made, costs.teacher_forwards = 1.5, 10, 20
        time.sleep(0.02)
        costs.keep()
        killed = StageCosts.load(file)
        assert killed == costs
        assert 0.02 <= killed.total < 1
        costs.seconds["drawing"] = 0.5
        time.sleep(0.02)
        raise KeyboardInterrupt
    stopped = StageCosts.load(file)
    assert stopped == costs != killed
    assert killed.total + 0.02 <= stopped.total < 1
    with stopped.recorded(file):
        time.sleep(0.02)
    assert StageCosts.load(file).total >= costs.total + 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


def test_what_no_kind_of_work_explains_is_other() -> None:
    costs = StageCosts(total=5.0, samples_made=3, teacher_forwards=4)
    costs.seconds["student_training"] = 3.0
    found = costs.to_dict()
    assert set(found["seconds"]) == {*KINDS, "other"}
    assert (found["seconds"]["student_training"], found["seconds"]["other"]) == (3.0, 2.0)
    assert (found["samples_made"], found["teacher_forwards"]) == (3, 4)


def test_stages_add_up_and_the_highest_peak_counts() -> None:
    manifests = []
    for number in (1, 2):
        costs = StageCosts(total=number * 1.0, samples_made=number, teacher_forwards=10 * number)
        costs.seconds["evaluation"] = 0.5 * number
        manifests.append({"costs": costs.to_dict(), "peak_memory": {"host_mb": 100.0 / number, "device_mb": number}})
    found = add_up(manifests)
    assert (found["seconds"]["evaluation"], found["seconds"]["other"], found["samples_made"]) == (1.5, 1.5, 3)
    assert found["teacher_forwards"] == 30
    assert found["peak_memory"] == {"host_mb": 100.0, "device_mb": 2}
