"""Reading finished runs."""

import json
from pathlib import Path

import pytest

from kegnet_pl.errors import UserError
from kegnet_pl.reporting.runs import read_runs, varied
from tests.unit.reporting.rows import TEACHER, student, write_run


def _sweep(folder: Path) -> Path:
    write_run(folder / "0", [TEACHER, student(0.5)], ["+experiment=toy", "seed=0"])
    write_run(folder / "1", [], ["+experiment=toy", "seed=1"])
    (folder / "1" / "failure.json").write_text(json.dumps({"error": "it broke"}))
    write_run(folder / "2", [], ["+experiment=toy", "seed=2"])
    write_run(folder / "10", [TEACHER], ["+experiment=toy", "seed=10"])
    (folder / "multirun.yaml").write_text("")
    (folder / "results.json").write_text("[]")  # of the sweep, not of a run
    return folder


def test_jobs_of_a_sweep_in_their_order(tmp_path: Path) -> None:
    runs = read_runs([_sweep(tmp_path / "sweep")])
    assert [run.name for run in runs] == ["0", "1", "2", "10"]
    assert [len(run.rows) for run in runs] == [2, 0, 0, 1]
    assert [run.failure for run in runs] == [None, "it broke", None, None]
    assert runs[0].rows[1] == student(0.5)
    assert varied(runs) == ["seed"]


def test_a_folder_above_and_a_run_named_twice(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path / "sweep")
    assert len(read_runs([tmp_path, sweep, sweep / "0"])) == 4


def test_variables_stay_variables(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [TEACHER], ["teacher.weights=${oc.env:NOWHERE_TO_BE_FOUND}/t.pt"])
    assert read_runs([folder])[0].settings == {"teacher.weights": "${oc.env:NOWHERE_TO_BE_FOUND}/t.pt"}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"found none\. Name folders such as outputs/runs"):
        read_runs([tmp_path])
    folder = write_run(tmp_path / "run", [TEACHER])
    (folder / "results.json").write_text('[{"dataset": "toy"}]')
    with pytest.raises(UserError, match=r"results\.json, but: .*missing"):
        read_runs([folder])
