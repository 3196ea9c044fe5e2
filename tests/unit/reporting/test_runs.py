"""Reading finished runs."""

import json
from pathlib import Path

import pytest

from kegnet_pl.reporting.runs import read_runs, varied
from kegnet_pl.reporting.sweep import write_tables
from kegnet_pl.runtime.errors import UserError
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
    with pytest.raises(UserError, match=r"results\.json, but got: missing .* another version"):
        read_runs([folder])
    with pytest.raises(UserError, match="it is a file"):
        read_runs([folder / "results.json"])
    (folder / "results.json").write_text('[{"dataset": ')
    with pytest.raises(UserError, match=r"results\.json, but got: .*run its command again"):
        read_runs([folder])
    (folder / "results.json").write_text('{"dataset": "toy"}')
    with pytest.raises(UserError, match=r"Expected a list of rows in .*results\.json"):
        read_runs([folder])


def test_one_folder_will_do_and_a_string_too(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path / "sweep")
    assert read_runs(str(sweep)) == read_runs([str(sweep)]) == read_runs(sweep) == read_runs([sweep])


def test_settings_that_change_no_network_are_not_varied(tmp_path: Path) -> None:
    for seed, places in enumerate(
        ("logger=wandb store=a", "logger.wandb.project=pets data.root=x hydra/launcher=joblib")
    ):
        write_run(tmp_path / str(seed), [TEACHER], [f"seed={seed}", *places.split(), "generator.epochs=2"])
    assert varied(read_runs(tmp_path)) == ["seed", "generator.epochs"][:1]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sweeps = [_sweep(tmp_path / "sweeps" / name) for name in ("a", "b")]
    names = [run.name for run in read_runs(sweeps)]
    assert names == [f"{sweep}/{job}" for sweep in "ab" for job in (0, 1, 2, 10)]


def test_what_is_left_of_a_sweep(tmp_path: Path) -> None:
    runs = [run for run in read_runs([_sweep(tmp_path / "sweep")]) if run.rows]
    write_tables(runs, tmp_path / "report")
    again = read_runs([tmp_path / "report"])
    assert [(run.name, run.rows) for run in again] == [(run.name, run.rows) for run in runs]
    assert [run.settings for run in again] == [{"seed": "0"}, {"seed": "10"}]
    assert len(read_runs([tmp_path])) == 4, "the report of runs is none"
