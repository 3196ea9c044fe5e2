"""A small draw of the kills and the damaged files of ``python -m reproduction.reliability``, and its page."""

import json
from pathlib import Path

import pytest

from benchmarks import long_sweep
from reproduction import reliability
from reproduction.paths import ROOT
from tests.integration.conftest import FORKS

SMALL = (*(one for one in reliability.SETTINGS if not one.startswith(("sources", "agreement"))), "sources=[normal]",
         "agreement.sources=[]")  # fmt: skip


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> reliability.Trials:
    assert FORKS is not None, "its server has everything imported"
    return reliability.Trials.prepare(tmp_path_factory.mktemp("trials"), SMALL, ["StudentModule/0/2"])


def test_a_pipeline_that_is_killed_twice_ends_with_the_same_bits(trials: reliability.Trials) -> None:
    (trial,) = reliability.run_kills(trials, seed=1, count=1)
    assert trial["outcome"] == "same", trial
    assert len(trial["kills"]) == 2 and any(kill["alive"] for kill in trial["kills"])


def test_damaged_files_are_found(trials: reliability.Trials) -> None:
    made = reliability.run_damages(trials, seed=8, count=4)
    assert {trial["outcome"] for trial in made} <= {"repaired", "harmless", "refused"}, made
    assert {trial["file"].split(":")[0] for trial in made} == {"finished", "unfinished"}
    assert "repaired" in {trial["outcome"] for trial in made}


def test_other_content_without_a_word_is_silent(trials: reliability.Trials, tmp_path: Path) -> None:
    """The harness sees what it looks for."""
    (tmp_path / "said").write_text("teacher: found\n")
    store = tmp_path / "store"
    store.mkdir()
    assert trials.judge(tmp_path, 0)[0] == "silent"
    (tmp_path / "said").write_text("Traceback (most recent call last):\n")
    assert trials.judge(tmp_path, 1)[0] == "traceback"
    (tmp_path / "said").write_text("\nError: Expected a store\n")
    assert trials.judge(tmp_path, 1)[0] == "refused"
    store.rmdir()
    store.symlink_to(trials.root / "whole" / "store")
    (tmp_path / "said").write_text("teacher: found\n")
    assert trials.judge(tmp_path, 0)[0] == "harmless"


def test_the_page_is_that_of_the_stored_record() -> None:
    record = json.loads((ROOT / "results" / "reliability.json").read_text())
    assert (ROOT / "results" / "RELIABILITY.md").read_text() == reliability.render(record)


def test_the_figures_of_long_sweeps_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "results" / "long_sweep.json").read_text())
    first, *_, last = record["points"]
    assert last["job"] >= 200 and last["open files"] == first["open files"]
    assert long_sweep.describe(record) in (ROOT / "docs" / "reliability.md").read_text()
