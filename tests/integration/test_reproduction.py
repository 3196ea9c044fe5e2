"""The paper's table beside ours: what is run, what is written, and that nothing in it was typed by hand."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import jsonschema
import pytest
import torch
from torch import nn

from kegnet_pl.compression.automatic import THREE_LAYERS
from kegnet_pl.data import Split
from kegnet_pl.networks import MLP
from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.pipeline.suggestions import RECIPES
from kegnet_pl.reporting.estimates import RECORD, to_content
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import NormalNoise
from reproduction import (
    agreement_levels,
    cifar10,
    estimates,
    image_sources,
    int8,
    matching,
    networks,
    pages,
    presets,
    rounding,
    speed,
    zoo,
)
from reproduction.__main__ import main as reproduction_main
from reproduction.best import render as render_best
from reproduction.best import write_best
from reproduction.jobs import KINDS, SMOKE_JOBS, Job, all_jobs, choose, read_cells, released_teacher, store_of
from reproduction.paths import hydra_value
from reproduction.records import add_run, read_runs, write_runs
from reproduction.runner import Processes, Run, run_missing
from reproduction.study import choose_lines, read_studies, runs_of
from reproduction.study import main as study_main
from reproduction.study import render as render_study
from reproduction.tables import METHODS, paper_rows, read_remarks, render, write_tables
from reproduction.teachers import copy_to_store, keep_teachers
from tests.integration.conftest import Start, configure
from tests.unit.reporting.rows import TEACHER, student

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "reproduction" / "paper.schema.json").read_text())
RESULTS = ROOT / "results"
CELLS = read_cells()


def row(**changes: Any) -> dict[str, Any]:
    """A row of a finished run, as results.json has it."""
    costs = {"teacher_training": 100.0, "generator_training": 20.0, "student_training": 3.0, "evaluation": 7.0}
    command = "python -m kegnet_pl experiment=paper/letter_mlp compression=option1 seed=0 'sources=[kegnet]'"
    return {
        "dataset": "letter", "method": "T+KegNet", "recipe": "paper", "seed": 0, "accuracy": 0.75, "selection": "real",
        "test_set": "letter: 4,000 test samples", "compression_ratio": 4.13, "precision": "32-true",
        "costs": {"seconds": costs, "samples_made": 10}, "versions": {"python": "3.11"},
        "command": f"{command} hydra.run.dir=results/paper/here",
    } | changes  # fmt: skip


def seeds(*accuracies: float) -> list[dict[str, Any]]:
    rows = [row(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate(accuracies)]
    for mine in rows:
        mine["command"] = mine["command"].replace("seed=0", f"seed={mine['seed']}")
    return rows


def test_mean_and_spread_over_seeds() -> None:
    (found,) = paper_rows(seeds(0.75, 0.77, 0.76), CELLS)
    jsonschema.validate([found], SCHEMA)
    assert (found["mean"], found["sd"], found["seeds"]) == (76.0, 1.0, 3)
    assert found["paper"] == 77.73
    assert found["values"] == [75.0, 77.0, 76.0]
    assert found["seconds"] == 23.0, "neither the teacher's training nor evaluation"


def test_seconds_are_of_seeds_whose_cost_is_whole() -> None:
    rows = seeds(0.75, 0.77, 0.76)
    for mine, made, spent in zip(rows, (1000, 150, 990), (30.0, 2.0, 40.0), strict=True):
        mine["costs"] = {"seconds": {"student_training": spent}, "samples_made": made}
    (found,) = paper_rows(rows, CELLS)
    jsonschema.validate([found], SCHEMA)
    assert (found["seconds"], found["samples_made"], found["counted"]) == (35.0, 995, [0, 2])
    assert found["seeds"] == 3


def test_one_seed_has_no_spread() -> None:
    (found,) = paper_rows(seeds(0.75), CELLS)
    assert found["sd"] is None


def test_the_same_network_counts_once() -> None:
    teacher = row(method="teacher", selection=None)
    (found,) = paper_rows([teacher, copy.deepcopy(teacher)], CELLS)
    assert (found["seeds"], found["seconds"]) == (1, 100.0)


def test_two_teachers_of_one_seed_are_refused() -> None:
    teacher = row(method="teacher", selection=None)
    with pytest.raises(
        ValueError, match=r"Expected one accuracy of letter, option1, teacher, paper, seed 0, but got 0\.75"
    ):
        paper_rows([teacher, teacher | {"accuracy": 0.76}], CELLS)


def _stage(folder: Path, mark: str, weights: str) -> None:
    """A stage of a teacher."""
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "metrics.csv").write_text("curves")
    (folder / "network.safetensors").write_text(weights)
    (folder / "manifest.json").write_text(json.dumps({"stage": "teacher", "fingerprint": mark}))


def _run_of_teacher(folder: Path, job: Job, stage: str) -> None:
    """The working folder of a run with its teacher in the store."""
    run = folder / job.name
    run.mkdir(parents=True)
    stages = {"config": {}, "networks": {"teacher": {"teacher": f"../../store/{stage}"}}}
    (run / "stages.json").write_text(json.dumps(stages))


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_teachers_are_kept_once_a_seed_and_refused_if_they_differ(tmp_path: Path) -> None:
    jobs = [Job("letter_mlp", "option1", "fast", kind, seed) for kind in KINDS for seed in (0, 1)]
    for number, job in enumerate(jobs[:3]):
        _stage(tmp_path / "store" / f"teacher-{number:016}", str(number), f"weights of seed {job.seed}")
        _run_of_teacher(tmp_path / "paper", job, f"teacher-{number:016}")
    folder, kept = tmp_path / "paper", tmp_path / "teachers"
    keep_teachers(jobs, folder, kept)
    assert _files(kept) == [
        f"letter_mlp-seed{seed}/{name}" for seed in (0, 1) for name in ("manifest.json", "network.safetensors")
    ]
    for seed in (0, 1):
        assert (kept / f"letter_mlp-seed{seed}" / "network.safetensors").read_text() == f"weights of seed {seed}"
    (tmp_path / "store" / f"teacher-{2:016}" / "network.safetensors").write_text("others")
    with pytest.raises(
        ValueError, match=r"letter_mlp-option1-fast-noise-seed0 has another one than .*letter_mlp-seed0"
    ):
        keep_teachers(jobs, folder, kept)


def test_teachers_that_were_kept_are_found_in_a_new_store(tmp_path: Path) -> None:
    wanted = [("letter_mlp", seed) for seed in (0, 1, 2, 0)]
    for seed in (0, 1):
        _stage(tmp_path / "teachers" / f"letter_mlp-seed{seed}", f"mark{seed}", f"weights of seed {seed}")
    store = tmp_path / "store"
    _stage(store / "teacher-mark1", "mark1", "those that are there")
    copy_to_store(wanted, tmp_path / "teachers", store)
    assert sorted(path.name for path in store.iterdir()) == ["teacher-mark0", "teacher-mark1"]
    assert (store / "teacher-mark0" / "network.safetensors").read_text() == "weights of seed 0"
    assert (store / "teacher-mark1" / "network.safetensors").read_text() == "those that are there"

    (tmp_path / "teachers" / "letter_mlp-seed0" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"letter_mlp-seed0, but its manifest is damaged .*Restore it"):
        copy_to_store(wanted, tmp_path / "teachers", store)


def test_a_study_finds_the_teachers_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduction.study.ROOT", tmp_path)
    monkeypatch.setattr("reproduction.study.store_of", lambda settings: tmp_path / "store")
    seen = []
    monkeypatch.setattr(
        "reproduction.study.run_missing",
        lambda runs, records, folder, jobs: (
            seen.append(sorted(path.name for path in (tmp_path / "store").iterdir())) or []
        ),
    )
    for seed in (0, 1, 2):
        _stage(tmp_path / "results" / "teachers" / f"letter_mlp-seed{seed}", f"mark{seed}", "weights")
    write_runs(tmp_path / "results" / "letter.jsonl", {"fast-option1-seed0": [row()]})

    monkeypatch.setattr(sys, "argv", ["study", "letter", "--only", "fast", "--seeds", "2"])
    monkeypatch.setattr("reproduction.study.render", lambda *args: "")
    assert study_main() == 0
    assert seen == [["teacher-mark1"]]  # seed 0 is there, seed 2 is not wanted


def test_store_of_runs() -> None:
    assert store_of(["teacher.epochs=1"]) == Path("outputs/store")
    assert store_of(["store=a", "teacher.epochs=1", "store='b c'"]) == Path("b c")
    for setting, why in (
        ("store=a=b", "Hydra cannot read it"),
        ("store=${data.root}/store", "path of a folder"),
        ("store=a,b", "path of a folder"),
    ):
        with pytest.raises(ValueError, match=why):
            store_of([setting])


def test_recipes_and_options_are_not_mixed() -> None:
    other = row(recipe="fast", command=row()["command"].replace("=paper/", "="))
    assert [found["recipe"] for found in paper_rows([row(), other], CELLS)] == ["paper", "fast"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"test_set": "letter: 10 test samples"}, "one test set, but got\n  seed 0: letter: 4,000 test samples\n"),
        ({"compression_ratio": 4.2}, "one compression ratio, but got\n  seed 0: 4.13\n  seed 1: 4.2\n"),
        ({"selection": "last"}, "one selection, but got\n  seed 0: real\n  seed 1: last\n"),
        ({"precision": "bf16-mixed"}, "one precision, but got\n  seed 0: 32-true\n  seed 1: bf16-mixed\n"),
        (
            {"command": f"{row()['command']} student.epochs=1"},
            "seed=any sources=[kegnet] student.epochs=1\n",
        ),
    ],
)
def test_seeds_that_differ_in_more_than_the_seed_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="Expected all seeds of letter, option1, paper, T\\+KegNet to have") as error:
        paper_rows([row(), row(seed=1, **changes)], CELLS)
    assert told in str(error.value).replace("'", "")


def test_seeds_may_be_of_several_machines() -> None:
    first, second = seeds(0.75, 0.77)
    first["command"] += " student.norm=batch generator.seed=0"
    second["command"] += " trainer=gpu trainer.accelerator=cpu store=elsewhere generator.seed=0 student.norm=batch"
    second["versions"] = {"python": "3.12"}
    (found,) = paper_rows([first, second], CELLS)
    assert found["versions"] == {"python": "3.11, 3.12"}
    jsonschema.validate([found], SCHEMA)


def test_a_finished_run_is_a_line_of_its_study(tmp_path: Path) -> None:
    records, results = tmp_path / "results" / "study.jsonl", tmp_path / "results.json"
    assert read_runs(records) == {}
    for name, accuracy in (("b", 0.1), ("c", 0.2), ("a", 0.3), ("b", 0.4)):
        results.write_text(json.dumps([row(accuracy=accuracy)], indent=2))
        add_run(records, name, results)
    assert read_runs(records) == {"a": [row(accuracy=0.3)], "b": [row(accuracy=0.4)], "c": [row(accuracy=0.2)]}
    assert [json.loads(line)["run"] for line in records.read_text().splitlines()] == ["a", "b", "c"]


def test_runs_that_finish_together_are_all_stored(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([row()]))
    names = [f"run{number:02}" for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_run(tmp_path / "study.jsonl", name, results), names))
    assert list(read_runs(tmp_path / "study.jsonl")) == names


def test_a_run_is_done_when_all_its_rows_are_stored() -> None:
    run = Run("mine", (), ("T+Uniform", "T+Normal"), ())
    rows = [row(method=method) for method in ("teacher", "T+Uniform", "T+Normal")]
    assert run.done({"mine": rows})
    assert not run.done({"mine": rows[:2]})
    assert not run.done({"other": rows})


@pytest.mark.parametrize("line", ["[{", "[]", '{"run": "mine"}', ""])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    records = tmp_path / "paper.jsonl"
    write_runs(records, {"first": [row()]})
    records.write_text(f"{records.read_text()}{line}\n")
    with pytest.raises(
        ValueError, match=r"line 2 of .*paper\.jsonl, but got .*Remove the line and run the same command"
    ):
        read_runs(records)


def test_command_is_a_sweep_over_the_seeds() -> None:
    (found,) = paper_rows(seeds(0.75, 0.77), CELLS)
    assert found["command"] == (
        "python -m kegnet_pl -m experiment=paper/letter_mlp compression=option1 seed=0,1 'sources=[kegnet]'"
    )
    (single,) = paper_rows(seeds(0.75), CELLS)
    assert " -m kegnet_pl experiment" in single["command"] and "hydra" not in single["command"]


def test_table_says_what_was_not_run(tmp_path: Path) -> None:
    text = render(paper_rows(seeds(0.75, 0.77), CELLS), CELLS, {})
    line = next(line for line in text.splitlines() if line.startswith("|  | T+KegNet | 77.73"))
    assert line == "|  | T+KegNet | 77.73 | 76.00 ± 1.41 (2) | 23 | not run |  | not run |  |"
    assert "**selected on real validation samples**\n(5,000 images, or fewer if less data is available;" in text
    assert "A remark." in render([], CELLS, {"letter_mlp": "A remark."})


def test_fast_is_put_beside_strict(tmp_path: Path) -> None:
    def of(recipe: str, seconds: float, *accuracies: float) -> list[dict[str, Any]]:
        rows = seeds(*accuracies)
        for mine in rows:
            mine["recipe"] = recipe
            mine["command"] = mine["command"].replace("=paper/", f"={RECIPES[recipe]}")
            mine["costs"] = {"seconds": {"student_training": seconds}, "samples_made": 10}
        return rows

    rows = [*of("strict", 100.0, 0.75, 0.77), *of("fast", 10.0, 0.74, 0.76)]
    page = render(paper_rows(rows, CELLS), CELLS, {})
    assert "| 76.00 ± 1.41 (2) | 75.00 ± 1.41 (2) | -1.00 | yes | 10.0x | yes |" in page
    rows = [*of("strict", 100.0, 0.75, 0.77), *of("fast", 10.1, 0.74, 0.75)]
    page = render(paper_rows(rows, CELLS), CELLS, {})
    assert "option1 | strict | 76.00 ± 1.41 (2) | 74.50 ± 0.71 (2) | -1.50 | no | 9.9x | no |" in page
    fast = of("fast", 10.0, 0.74, 0.76)
    page = render(paper_rows([*of("paper", 200.0, 0.77, 0.79), *fast], CELLS), CELLS, {})
    assert "option1 | paper | 78.00 ± 1.41 (2) | 75.00 ± 1.41 (2) | -3.00 | no | 20.0x | yes |" in page
    page = render(paper_rows([*of("paper", 200.0, 0.8), *of("strict", 100.0, 0.75), *fast], CELLS), CELLS, {})
    assert "option1 | strict | 75.00 (1) | " in page and "option1 | paper |" not in page
    assert "Not run." in render(paper_rows(fast, CELLS), CELLS, {})


def test_strict_is_projected_from_the_epochs_of_paper(tmp_path: Path) -> None:
    (paper,), (fast,) = seeds(0.75), seeds(0.74)
    paper["epochs"] = 100  # of which 400 are strict's: 3 s come to 12 s, beside 20 s of generators
    fast |= {"recipe": "fast", "command": fast["command"].replace("=paper/", "="), "epochs": 8}
    (long, short) = summary = paper_rows([paper, fast], CELLS)
    jsonschema.validate(summary, SCHEMA)
    assert (long["student_epochs"], long["student_seconds"], short["student_epochs"]) == (100, 3.0, 8)
    assert "| 1.0x | no | 32 s, 1.4x |" in render(summary, CELLS, {})
    strict = paper | {"recipe": "strict", "command": paper["command"].replace("=paper/", "=strict/")}
    assert "| 1.0x | no |  |" in render(paper_rows([strict, fast], CELLS), CELLS, {}), "measured"


def test_a_teacher_has_no_epochs_of_a_student() -> None:
    costs = {"seconds": {"teacher_training": 100.0, "student_training": 0.0}, "samples_made": 0}
    (found,) = paper_rows([row(method="teacher", selection=None, epochs=20, costs=costs)], CELLS)
    jsonschema.validate([found], SCHEMA)
    assert found["student_epochs"] is None and found["student_seconds"] is None


def test_what_is_below_the_paper_is_listed(tmp_path: Path) -> None:
    below = "| UCI Letter, MLP, option1 | T+KegNet | paper | 77.73 | "
    page = render(paper_rows(seeds(0.75, 0.76), CELLS), CELLS, {})
    assert below + "75.50 ± 0.71 (2) | -2.23 |" in page
    assert below not in render(paper_rows(seeds(0.75, 0.78), CELLS), CELLS, {}), "within twice the spread"
    assert below + "77.00 (1) | -0.73 |" in render(paper_rows(seeds(0.77), CELLS), CELLS, {})


def test_the_strongest_recipe_stands_beside_its_ceiling() -> None:
    command = "python -m kegnet_pl experiment=best/letter_mlp compression=option1 seed=0 'sources=[procedural,real]'"
    sources = {
        "T+Procedural": {"title": "Procedural", "prior": "procedural"},
        "T+Real": {"title": "Real", "prior": "real data"},
        "teacher": None,
    }
    accuracies = {"T+Procedural": 0.85, "T+Real": 0.935, "teacher": 0.955}
    best = [
        row(method=method, source=source, recipe="best", command=command, accuracy=accuracies[method], selection="last")
        for method, source in sources.items()
    ]
    fast = row(recipe="fast", accuracy=0.83, command=command.replace("best/", "").replace("procedural,real", "kegnet"))
    page = render_best([*best, fast], CELLS, "A remark.")
    figures = "95.50 (1) | 77.73 | 83.00 (1) | Procedural | procedural | 85.00 (1) | 93.50 (1) | 8.5 | 89.0 | 23, 23"
    assert f"| UCI Letter, MLP, option1 | {figures} |" in page
    assert "A remark." in page and command in page
    assert (
        "| SVHN, ResNet14, option1 | not run | 69.89 | not run |  |  | not run | no data |  | 85.0 | not run, not run |"
        in page
    )


def test_the_presets_of_the_strongest_recipe_run_beside_their_ceiling() -> None:
    jobs = [job for job in all_jobs(CELLS) if job.recipe == "best" and job.seed == 0]
    assert {job.experiment for job in jobs} == set(CELLS["experiments"])
    for job in jobs:
        run = job.to_run(None)
        if job.experiment == "svhn_resnet":  # a ceiling needs the whole training data, which we do not have
            assert len(run.methods) == 1 and "real" not in run.overrides[3]
            continue
        assert len(run.methods) == 2 and run.methods[1] == "T+Real" != run.methods[0], "the ceiling, and its student"
        assert run.overrides[0] == f"experiment=best/{job.experiment}" and run.overrides[3].endswith(",real]")


def test_every_cell_of_the_paper_has_jobs() -> None:
    jobs = list(all_jobs(CELLS))
    assert len({job.name for job in jobs}) == len(jobs)
    cells = {job.cell for job in jobs}
    assert len(cells) == 12
    for cell in cells:
        assert {(job.recipe, job.kind) for job in jobs if job.cell == cell} == {
            ("best", "preset"),
            *((recipe, kind) for recipe in ("paper", "strict", "fast") for kind in ("kegnet", "noise")),
        }


def test_noise_is_run_with_the_settings_of_kegnet_that_concern_it() -> None:
    fast, paper = (
        {job.kind: job.settings for job in all_jobs(CELLS) if (job.cell, job.recipe) == cell}
        for cell in (("svhn_resnet/option1", "fast"), ("mnist_lenet/option1", "paper"))
    )
    assert fast["noise"] == fast["kegnet"] == ("trainer.precision=bf16-mixed",)
    assert (paper["noise"], paper["kegnet"]) == ((), ("generator.seed=0",))


@pytest.mark.parametrize("job", SMOKE_JOBS + tuple(all_jobs(CELLS))[::7], ids=lambda job: job.name)
def test_jobs_are_what_the_product_takes(job: Job, reference_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEGNET_REFERENCE_DIR", str(reference_dir))
    config = configure(*job.to_run(released_teacher(CELLS["experiments"][job.experiment]["teacher"])).overrides)
    assert (config["seed"], config["recipe"], config["compression"]["name"]) == (job.seed, job.recipe, job.option)


def test_choosing_jobs() -> None:
    def names(*cells: str, recipes: tuple[str, ...] = ()) -> set[str]:
        return {job.cell for job in choose(all_jobs(CELLS), cells, recipes)}

    assert names("mnist_lenet/option3") == {"mnist_lenet/option3"}
    assert names("mnist_lenet") == {f"mnist_lenet/option{number}" for number in (1, 2, 3)}
    with pytest.raises(ValueError, match=r"Expected a cell out of .*mnist_lenet/option3.*, but got 'mnist'"):
        names("mnist")
    with pytest.raises(ValueError, match="there are none: see --list"):
        choose(all_jobs(CELLS), ["svhn_resnet"], ["best"], kind="noise")
    some = choose(all_jobs(CELLS), ["mnist_lenet/option3"], ["fast"], kind="noise", seeds=2)
    assert [(job.kind, job.seed) for job in some] == [("noise", 0), ("noise", 1)]


@pytest.mark.parametrize("main", [reproduction_main, study_main])
@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_a_number_of_nothing_is_refused(
    main: Callable[[], int], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduction", "svhn" if main is study_main else "svhn_resnet", option, "0"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"argument {option}: expected a whole number of at least 1, but got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("at_once", "order"), [(1, ["a1", "a2", "b1"]), (2, ["a1", "b1", "a2"]), (3, ["a1", "a2", "b1"])]
)
def test_runs_that_share_what_is_being_built_come_last(
    at_once: int, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    all_at_once = threading.Barrier(at_once)

    def run_one(run: Run, records: Path, folder: Path, threads: int, processes: Processes) -> int:
        started.append(run.name)
        if len(started) <= at_once:
            all_at_once.wait(timeout=30)  # all places are taken, also where all that is left shares what is being built
        return 0

    monkeypatch.setattr("reproduction.runner.run_one", run_one)
    runs = [Run(name, (), ("T+KegNet",), (name[0],)) for name in ("a1", "a2", "b1")]
    assert run_missing(runs, tmp_path / "study.jsonl", tmp_path, at_once) == []
    assert [*sorted(started[:at_once]), *started[at_once:]] == order


def test_without_released_weights_the_teacher_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEGNET_REFERENCE_DIR", raising=False)
    assert released_teacher(CELLS["experiments"]["mnist_lenet"]["teacher"]) is None
    assert not any("teacher.weights" in part for part in SMOKE_JOBS[0].to_run(None).overrides)


def test_a_wrong_folder_of_released_weights_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEGNET_REFERENCE_DIR", str(tmp_path))
    assert released_teacher(None) is None, "a teacher that is trained here"
    with pytest.raises(ValueError, match=r"no teachers/mnist.pth.tar below it. Correct it, or unset it"):
        released_teacher("mnist.pth.tar")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "student.epochs"], "--set: expected KEY=VALUE, but got 'student.epochs'"),
        (["--set", "student.epochs=1"], "Name another folder for their results with --out FOLDER"),
        (["--precision", "bf16-mixed"], "Name another folder for their results with --out FOLDER"),
        (["--smoke", "mnist_lenet"], "--smoke has its own cells and recipes"),
        (
            ["--tables", "--out", "nowhere"],
            "Expected finished runs in nowhere/paper.jsonl, but it does not exist. Correct --out",
        ),
        (["--list", "--out", "file"], "--out: expected a folder, but got the file file."),
        (["mnist"], "Expected a cell out of "),
    ],
)
def test_what_would_go_unheeded_is_refused(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["reproduction", *arguments])
    with pytest.raises(SystemExit, match="2"):
        reproduction_main()
    assert told in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_what_takes_a_gpu_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KEGNET_REFERENCE_DIR", raising=False)
    arguments = ["reproduction", "svhn_resnet", "--recipe", "paper", "--list", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert reproduction_main() == 0
    assert capsys.readouterr().out == "12 runs need a GPU and are left out: --trainer gpu runs them, too.\n"
    write_runs(tmp_path / "paper.jsonl", {"svhn_resnet-option1-paper-kegnet-seed0": [row()]})
    assert reproduction_main() == 0
    assert capsys.readouterr().out.startswith("11 runs need a GPU"), "those that are there are not missing"
    (tmp_path / "paper.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", [*arguments, "--trainer", "gpu"])
    assert reproduction_main() == 0
    assert capsys.readouterr().out.count("missing") == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_runs_stops_with_it(number: signal.Signals, tmp_path: Path) -> None:
    product = tmp_path / "product"
    product.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.new\nmv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 60\n"
    )
    product.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from reproduction.runner import Run, run_missing; "
        f"sys.executable = {str(product)!r}; "
        f"place = Path({str(tmp_path)!r}); "
        "run_missing([Run('mine', (), ('T',), ())], place / 'study.jsonl', place, 1)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    running.send_signal(number)
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Stopped. The same command continues from here." in out and "stopped   mine" in out and "FAILED" not in out
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stored_tables_are_what_the_runs_say(tmp_path: Path) -> None:
    """Both files are computed again from the stored runs."""
    rows = json.loads((RESULTS / "paper.json").read_text())
    jsonschema.validate(rows, SCHEMA)
    assert rows
    (tmp_path / "paper.jsonl").symlink_to(RESULTS / "paper.jsonl")
    (tmp_path / "remarks.yaml").symlink_to(RESULTS / "remarks.yaml")
    write_tables(tmp_path, CELLS)
    write_best(tmp_path, CELLS)
    assert (tmp_path / "BEST.md").read_text() == (RESULTS / "BEST.md").read_text()
    assert (tmp_path / "paper.json").read_text() == (RESULTS / "paper.json").read_text()
    assert (tmp_path / "PAPER.md").read_text() == (RESULTS / "PAPER.md").read_text()
    for found in rows:
        assert found["mean"] == pytest.approx(statistics.mean(found["values"]), abs=1e-3)
        assert found["selection"] == (
            None if found["method"] in METHODS[:2] else "real" if found["recipe"] == "paper" else "last"
        )


@pytest.mark.data
@pytest.mark.slow
def test_smoke(
    data_dir: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the three cells: test_jobs_are_what_the_product_takes composes the others."""

    def fork(self: Processes, command: Sequence[str], log: IO[str], environment: Mapping[str, str]) -> int:
        assert command[:3] == [sys.executable, "-m", "kegnet_pl"]
        done = start(*command[3:], folder=Path.cwd(), environment=environment).finish(expect=None)
        log.write(done.stdout + done.stderr)
        return done.returncode

    monkeypatch.setattr(Processes, "run", fork)
    jobs = [job for job in SMOKE_JOBS if job.experiment == "letter_mlp"]
    monkeypatch.setattr("reproduction.__main__.SMOKE_JOBS", jobs)
    monkeypatch.setattr(sys, "argv", ["reproduction", "--smoke", "--jobs", "2", "--out", str(tmp_path)])
    assert reproduction_main() == 0
    rows = json.loads((tmp_path / "paper.json").read_text())
    jsonschema.validate(rows, SCHEMA)
    assert {(found["dataset"], found["recipe"]) for found in rows} == {("letter", "strict")}
    assert {found["method"] for found in rows} == set(METHODS)
    capsys.readouterr()
    assert reproduction_main() == 0
    assert capsys.readouterr().out.startswith("2 of 2 runs are there; 0 to do.")
    finished = read_runs(tmp_path / "paper.jsonl")
    assert sum(map(len, finished.values())) == 3 + 4

    # On another machine: the store is not there, but the teacher that was trained is.
    shutil.rmtree(tmp_path / "store")
    job = next(job for job in jobs if job.kind == "noise")
    shutil.rmtree(tmp_path / "paper")
    write_runs(tmp_path / "paper.jsonl", {name: rows for name, rows in finished.items() if name != job.name})
    assert reproduction_main() == 0
    assert "teacher: found" in (tmp_path / "paper" / job.name / "log.txt").read_text()
    assert json.loads((tmp_path / "paper.json").read_text()) == [
        found | {"seconds": again["seconds"], "student_seconds": again["student_seconds"]}
        for found, again in zip(rows, json.loads((tmp_path / "paper.json").read_text()), strict=True)
    ]


def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Läufe (1), it's"  # Hydra cannot read it unquoted
    bad = ["reproduction", "--smoke", "--out", str(folder), "--set", "student.colour=red"]
    for variable in [name for name in os.environ if name.startswith("KEGNET")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", bad)
    assert reproduction_main() == 1
    shown = capsys.readouterr().out
    assert shown.count("\nfailed: ") == len(SMOKE_JOBS)
    assert shown.count("\n    ") >= len(SMOKE_JOBS) and "colour" in shown, "what the log says stands there"
    log = folder / "paper" / SMOKE_JOBS[0].name / "log.txt"
    assert "colour" in log.read_text()


@pytest.mark.parametrize(
    "folder", ["plain/store", "runs (1)", "Müller", "it's", "a,b", "[x", "a=b", "2024", "null", "back\\slash'\\"]
)
def test_a_folder_is_a_value_that_hydra_reads(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_of([f"store={hydra_value(Path(folder))}"]) == Path(folder)
    assert (hydra_value(Path(folder)) == folder) == (folder == "plain/store")


@pytest.mark.parametrize("name", read_studies())
def test_a_study_changes_one_thing_a_line(name: str) -> None:
    study = read_studies()[name]
    runs = runs_of(study, None)
    assert len(runs) == len(study["variants"]) * len(study["options"]) * study["seeds"]
    assert len({run.name for run in runs.values()}) == len(runs)
    for variant, settings in study["variants"].items():
        last = study["seeds"] - 1
        overrides = runs[variant, study["options"][-1], last].overrides
        keys = [override.split("=", 1)[0] for override in overrides]
        assert len(set(keys)) == len(keys), "a variant replaces what the base says"
        assert set(settings) <= set(overrides)
        config = configure(*overrides)
        assert (config["seed"], config["student"]["selection"]) == (last, "last")
        assert config["recipe"] == study["recipe"]
    first = next(iter(study["variants"]))
    assert study["variants"][first] == []
    shared = [runs[first, option, 0].parents for option in study["options"]]
    assert len(set(shared)) == 1, "one of them builds the generators"


def test_page_of_a_study() -> None:
    study = read_studies()["svhn"]
    runs = runs_of(study, None)
    finished = {}
    for seed, accuracy in enumerate((0.5, 0.6)):
        command = (
            f"python -m kegnet_pl +experiment=svhn_resnet compression=option2 seed={seed} student.norm=batch "
            "hydra.run.dir=x"
        )
        mine = row(seed=seed, accuracy=accuracy, label_entropy=0.25, seconds=10.0, command=command)
        finished[runs["as released", "option2", seed].name] = [mine]
    page = render_study(study, runs, finished, "")
    assert "| as released | not run | 55.0 ± 7.1 (50.0, 60.0) | not run | 0.250 | 10 |" in page
    assert "python -m kegnet_pl -m +experiment=svhn_resnet compression=option2 seed=0,1 student.norm=batch\n" in page
    assert "hydra" not in page
    assert "Compare within a seed" not in page


def test_page_of_a_study_of_two_precisions() -> None:
    study = read_studies()["svhn"]
    study["variants"] = {"as released": []}
    finished = {}
    for seed, precision in enumerate(("bf16-mixed", "32-true", "32-true")):
        runs = runs_of(study, None, [f"trainer.precision={precision}"])
        for option in study["options"][: 3 - seed]:
            run = runs["as released", option, seed]
            assert [part for part in run.overrides if "precision" in part] == [f"trainer.precision={precision}"]
            command = f"python -m kegnet_pl {' '.join(run.overrides)} hydra.run.dir=x"
            mine = row(seed=seed, label_entropy=0.25, seconds=10.0, command=command, precision=precision)
            finished[run.name] = [mine]
    page = render_study(study, runs, finished, "")
    assert "Compare within a seed: seed 0 in bf16-mixed, seeds 1, 2 in 32-true" in page
    commands = [line for line in page.splitlines() if line.startswith("python")]
    assert ["compression=option1,option2,option3 seed=0 " in command for command in commands] == [True, False]
    assert ["compression=option1,option2 seed=1,2 " in command for command in commands] == [False, True]


def test_page_of_a_study_of_teachers() -> None:
    study = read_studies()["pendigits_teachers"]
    runs = runs_of(study, None)
    run = runs["10 epochs", "option2", 0]
    assert "sources=[]" in run.overrides and run.methods == ("T",)
    command = f"python -m kegnet_pl {' '.join(run.overrides)} hydra.run.dir=x"
    rows = [row(method=method, accuracy=0.25, teacher_accuracy=0.9, command=command) for method in ("teacher", "T")]
    assert run.done({run.name: rows})
    page = render_study(study, runs, {run.name: rows}, "")
    assert "| | option2 | teacher |\n| --- | ---: | ---: |\n" in page and "Entropy" not in page
    assert "| 10 epochs | 25.0 | 90.0 |" in page
    assert "| 30 epochs | not run |  |" in page


def test_a_study_runs_the_lines_that_are_asked_for() -> None:
    variants = read_studies()["svhn"]["variants"]
    assert choose_lines(variants, ["frozen", "student's statistics: a"]) == {
        "frozen, and draws by the batch",
        "student's statistics: adapt",
    }
    with pytest.raises(ValueError, match="'adapt' begins 3 lines; the lines are: as released; "):
        choose_lines(variants, ["adapt"])
    with pytest.raises(ValueError, match="'x' begins no line; "):
        choose_lines(variants, ["x"])


@pytest.mark.parametrize("name", read_studies())
def test_lines_of_a_seed_have_the_same_samples(name: str) -> None:
    """A line is one factor away from another only where both have the same generators: see the teacher's labels."""
    study = read_studies()[name]
    entropies: dict[tuple[object, ...], dict[str, float]] = {}
    finished = read_runs(RESULTS / f"{name}.jsonl")
    for (variant, option, seed), run in runs_of(study, None).items():
        if run.name in finished and study.get("method") != "T":
            found = finished[run.name][-1]
            drawn = [part for part in run.overrides if part.startswith(("student.samples", "student.noise_std"))]
            kinds = ("student.sampling_norm", "student.oversampling", "student.mixing", "source")
            draws = [part for part in run.overrides if part.startswith(kinds)]
            key = (*run.parents, seed, *drawn, *draws, found["precision"], found["dataset"])
            entropies.setdefault(key, {})[f"{variant}, {option}"] = found["label_entropy"]
    for key, found in entropies.items():
        assert max(found.values()) == pytest.approx(min(found.values()), rel=1e-3), (key, found)


def test_stored_studies_are_what_the_runs_say() -> None:
    for name, study in read_studies().items():
        page = RESULTS / f"{name.upper()}.md"
        assert page.read_text() == render_study(
            study, runs_of(study, None), read_runs(RESULTS / f"{name}.jsonl"), read_remarks(RESULTS).get(name, "")
        )


def test_stored_runs_are_sorted_and_unique() -> None:
    """A change of one run is a change of one line, and a merge cannot leave two lines of a run."""
    files = sorted(RESULTS.glob("*.jsonl"))
    assert RESULTS / "paper.jsonl" in files
    for path in files:
        names = [json.loads(line)["run"] for line in path.read_text().splitlines()]
        assert names == sorted(set(names)), path


def test_other_networks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SAMPLES", 64)
    monkeypatch.setattr(networks, "EPOCHS", 1)
    monkeypatch.setattr(networks, "TRAINING_SAMPLES", 1280)
    data = Split(torch.randn(64, 16), torch.arange(64) % 26)
    teacher = networks.train_teacher(networks.TABLE_NETWORKS["MLP of Letter"], data, 0)
    found = networks.measure(teacher, {"train": data, "test": data}, 4.0, {})
    assert found["ratio"] >= 4
    assert found["compared"].keys() == {"pruning", "tucker", THREE_LAYERS}
    assert found["compared"][found["method"]] == found["agreement"]
    assert found["teacher"] > 0.1  # it has seen these samples; chance is 0.04
    page = networks.render([found | {"data": "Letter", "network": "MLP", "command": "python -m this"}])
    assert "| Letter | MLP | 4." in page and "Commands: `python -m this`" in page


def test_the_zoo_is_measured_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SAMPLES", 64), ("EPOCHS", 1), ("CALIBRATION", 32), ("SECONDS", 0.01), ("ROUNDS", (2, 2))):
        monkeypatch.setattr(zoo, name, value)
    monkeypatch.setattr(networks, "TRAINING_SAMPLES", 320)
    data = Split(torch.randn(320, 1, 16, 16), torch.arange(320) % 10)

    def make() -> nn.Module:
        layers = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 10))
        return nn.Sequential(*layers)

    pixels, methods = {"mean": 0.13, "std": 0.31}, ("tucker 2x", "pruning 4x", "int8", "tucker 2x + int8")
    case = zoo.Case("MNIST", "tiny", make, lambda _: {"train": data, "test": data}, 1, pixels, methods)
    splits = case.load(Path())
    teacher = zoo.teach(case, splits)
    rows = [
        {"data": case.data, "network": case.network, "method": method, "command": "python -m this", **found}
        for method, found in zoo.run(case, teacher, splits, list(methods))
    ]
    assert {row["method"] for row in rows} == set(methods) and set(methods) < set(zoo.METHODS)
    by_method = {row["method"]: row for row in rows}
    assert by_method["tucker 2x"]["ratio"] >= 2 and by_method["pruning 4x"]["ratio"] >= 4
    assert all(row["bytes"] < row["teacher_bytes"] for row in rows) and "T" not in by_method["int8"]
    refused = {"data": "MNIST", "network": "tiny", "method": "pruning 4x", "teacher": 0.5, "said": ["Expected more."]}
    page = zoo.render([*rows[:-1], refused | {"command": "python -m this"}])
    assert "| MNIST | tiny | tucker 2x |" in page and "- tiny, pruning 4x: Expected more." in page
    figure = zoo.draw_front(rows)
    assert figure.axes[0].get_xlabel() == "times smaller on disk (ONNX)"


def test_the_page_of_the_zoo_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "zoo.json").read_text())
    assert (RESULTS / "ZOO.md").read_text() == zoo.render(rows)


def test_the_page_and_the_record_of_estimates_are_those_of_the_stored_rows() -> None:
    networks_with_both = estimates.read_measured(RESULTS)
    assert len(networks_with_both) >= 52
    assert (RESULTS / "estimates.md").read_text() == estimates.render(networks_with_both)
    record = json.loads(RECORD.read_text())
    assert record == to_content([one.known for one in networks_with_both])


@pytest.mark.data
@pytest.mark.skipif("KEGNET_REFERENCE_DIR" not in os.environ, reason="needs the released teachers")
def test_the_speed_of_a_plan_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "TARGETS", (1e6,))
    teacher = speed.read_teacher("letter_mlp")
    test = Split(torch.randn(40, 16), torch.arange(40) % 26)
    rows = [speed.measure("letter_mlp", teacher, test, *pair) for pair in speed.compress("letter_mlp", teacher)]
    assert [round(row["ratio"], 2) for row in rows[:2]] == [4.13, 4.47]
    page = speed.render(rows)
    assert "| letter_mlp | option1, merged factors | 4.47x |" in page and "out of reach" in page


def test_the_page_of_speed_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "speed.json").read_text())
    assert (RESULTS / "SPEED.md").read_text() == speed.render(rows)


def test_calibrations_are_compared_and_nothing_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Split(torch.randn(300, 6), torch.arange(300) % 3)
    network = networks.train_teacher(lambda: MLP(6, 3, width=12, blocks=1), data, 0)
    made = []

    def make(_: Path) -> int8.Case:
        made.append(1)
        return int8.Case(network, {"train": data, "test": data}, generators=True)

    briefly = {"count": 1, "epochs": 1, "steps_per_epoch": 1, "batch_size": 8}
    short = {"SEEDS": 2, "SECONDS": 0.01, "TRAINING_SAMPLES": 100, "METHODS": [("entropy", 16)]}
    for name, value in (short | {"GENERATORS": briefly, "CASES": {"tiny": make}}).items():
        monkeypatch.setattr(int8, name, value)
    assert int8.main([], tmp_path) == int8.main([], tmp_path) == 0 and len(made) == 1
    stored = json.loads((tmp_path / "int8.json").read_text())
    (row,) = stored["accuracy"]
    assert list(row["accuracies"]) == ["float32", "noise", "generators", "procedural", "real", "weights alone"]
    assert [len(row["accuracies"][name]) for name in ("float32", "real")] == [1, 2]
    assert abs(row["accuracies"]["real"][0] - row["accuracies"]["float32"][0]) < 0.1
    (speed,) = stored["speed"]
    assert [len(values) for values in speed["ms"].values()] == [2] * 4 and min(speed["sizes"].values()) > 0
    assert [line["method"] for line in stored["methods"]] == ["entropy"]
    page = (tmp_path / "INT8.md").read_text()
    assert page.count("| tiny |") == 6 and "| entropy | 16 |" in page


def test_the_page_of_calibrations_is_that_of_the_stored_rows() -> None:
    stored = json.loads((RESULTS / "int8.json").read_text())
    assert (RESULTS / "INT8.md").read_text() == int8.render(stored)
    assert {part: {row["network"] for row in rows} for part, rows in stored.items()} == {
        part: set(int8.CASES) for part in ("accuracy", "speed", "methods")
    }


def test_the_page_of_other_networks_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "networks.json").read_text())
    assert (RESULTS / "NETWORKS.md").read_text() == networks.render(rows)
    assert {row["data"] for row in rows} >= {"MNIST"}


def test_the_page_of_agreement_levels_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "agreement_levels.json").read_text())
    assert (RESULTS / "AGREEMENT_LEVELS.md").read_text() == agreement_levels.render(rows)
    lost, missed, false = agreement_levels.count(rows, 1.01)
    assert missed == 0 and lost + false == len(rows)
    assert agreement_levels.count(rows, 0.0) == (lost, lost, 0)


def test_rows_are_stored_with_their_origin_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    stored = pages.StoredRows("study", "python -m this", seed=3)
    stored.finish(lambda _: "never written")
    assert not list((tmp_path / "results").iterdir()), "no rows, no page"
    stored.add({"accuracy": 0.5})
    assert not stored.path.exists()
    stored.save()
    (row,) = pages.StoredRows("study", "python -m that").rows
    assert row == {"accuracy": 0.5, "command": "python -m this", "seed": 3, "versions": versions()}
    stored.finish(lambda rows: f"{len(rows)} row")
    assert (tmp_path / "results" / "STUDY.md").read_text() == "1 row"


@pytest.mark.parametrize(("only", "measured"), [("", [2.0, 8.0, 8.0]), ("B", [8.0])])
def test_missing_cases_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str, measured: list[float]
) -> None:
    data = Split(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(
        matching, "load_cases", lambda _: [("D", name, lambda _: MLP(4, 2), {}, data, data) for name in ("A", "B")]
    )
    (tmp_path / "results").mkdir()
    stored = pages.StoredRows("study", "python -m this")
    stored.rows = [{"data": "D", "network": "B", "target": 2.0}]
    matching.measure_cases(stored, lambda *given: {"ratio": given[3]}, [2.0, 8.0], only)
    assert [row["ratio"] for row in stored.rows[1:]] == measured
    assert json.loads(stored.path.read_text()) == stored.rows


def test_the_page_of_matching_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "matching.json").read_text())
    assert (RESULTS / "MATCHING.md").read_text() == matching.render(rows)
    assert all(row["seed"] == matching.SEED and "ceiling" in row for row in rows)


def test_the_page_of_presets_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "presets.json").read_text())
    assert (RESULTS / "PRESETS.md").read_text() == presets.render(rows)
    assert all(set(row) >= {"T", "ceiling", *presets.STUDENTS} for row in rows)


def test_the_page_of_image_sources_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "image_sources.json").read_text())
    assert (RESULTS / "IMAGE_SOURCES.md").read_text() == image_sources.render(rows)
    assert all(set(row) >= {"T", "ceiling", *image_sources.SOURCES} for row in rows)
    assert {row["network"] for row in rows} <= set(image_sources.NETWORKS)


def test_sources_of_images_are_measured() -> None:
    torch.manual_seed(0)
    data = Split(torch.randn(40, 1, 8, 8), torch.arange(40) % 3)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    few = {"SAMPLES": 20, "EPOCHS": 1, "BATCH": 10}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in few.items():
            patched.setattr(image_sources, name, value)
        noise = SimpleNamespace(source=lambda: NormalNoise((1, 8, 8)))
        patched.setattr(image_sources, "train_generators", lambda *_: noise)
        row = image_sources.measure(teacher, data, data, 1.5, {"mean": 0.5, "std": 0.25})
    assert set(row) == {"method", "T", "generators", "ceiling", *image_sources.SOURCES}
    assert all(0 <= row[name]["accuracy"] <= 1 for name in image_sources.SOURCES)


def test_the_page_of_cifar10_is_that_of_the_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEGNET_DATA_DIR", "KEGNET_REFERENCE_DIR"):
        monkeypatch.setenv(name, "here")
    rows = json.loads((RESULTS / "cifar10.json").read_text())
    page = (RESULTS / "CIFAR10.md").read_text()
    assert page == cifar10.render(rows)
    assert page.count("not run") == len(cifar10.make_runs()) - len(rows)
    for run in cifar10.make_runs().values():
        RunSettings.from_config(configure(*run.overrides))


def test_a_finished_run_of_cifar10_becomes_a_row() -> None:
    def row(method: str, accuracy: float) -> dict[str, Any]:
        return {
            "method": method, "accuracy": accuracy, "compression_ratio": 2.0, "agreement": {"mean": 0.5},
            "learning_rate": 1e-3, "stage_seconds": {"teacher": 1.0, "student": 59.0, "evaluation": 9.0},
            "command": "python -m kegnet_pl experiment=cifar10_resnet20 compression.target=2",
        }  # fmt: skip

    rows = [row("teacher", 0.9), row("T", 0.7), row(cifar10.STUDENT, 0.8), row(cifar10.CEILING, 0.85)]
    found = cifar10.to_row(rows)
    assert (found["minutes"], found["accuracy"][cifar10.CEILING], found["ratio"]) == (1.0, 0.85, 2.0)
    assert "| ResNet20 | 2x | 2.00x | 90.0 | 70.0 | 80.0 | 85.0 | 1 |" in cifar10.render(
        [{"depth": 20, "target": 2, **found}]
    )


def test_the_page_of_rounding_is_that_of_the_stored_rows() -> None:
    rows = json.loads((RESULTS / "rounding.json").read_text())
    assert (RESULTS / "ROUNDING.md").read_text() == rounding.render(rows)
    assert {(row["method"], row["round_to"]) for row in rows} == {
        (method, multiple) for method in agreement_levels.METHODS for multiple in rounding.MULTIPLES
    }


def test_estimates_compare_agreement_with_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of four data sets; the agreement on waves has their order, that on normal noise the opposite."""

    def agreement(value: float) -> dict[str, Any]:
        plain = {"samples": 100, "share": value, "divergence": 0.1, "classes": 3, "same_class": False}
        sources = {"waves": (value, False), "normal": (1 - value, False), "procedural": (value, True)}
        return {
            "over": ["waves"], "mean": value, "worst": None, "unreached": [], "unreached_classes": 0,
            "sources": {name: {"own": own, "agreement": share} | plain for name, (share, own) in sources.items()},
        }  # fmt: skip

    for dataset in "abcd":
        for index in range(6):
            rows = [
                dataclasses.replace(one, dataset=dataset)
                for one in (
                    TEACHER,
                    student(0.8 + index / 100, seed=index, dataset=dataset, agreement=agreement(0.8 + index / 100)),
                    student(0.1, method="T+Real", dataset=dataset, seed=index, agreement=agreement(0.99)),
                )
            ]
            folder = tmp_path / dataset / str(index)
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps([dataclasses.asdict(one) for one in rows]))
    monkeypatch.setattr(estimates, "ROOT", tmp_path)
    monkeypatch.setattr(estimates.estimates, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(sys, "argv", ["estimates", "--add", *(str(tmp_path / dataset) for dataset in "abcd")])
    assert estimates.main() == 0
    page = (tmp_path / "results" / "estimates.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| data | mean"))
    assert (
        header
        == "| data | mean | normal | normal, also own | procedural | procedural, also own | waves | waves, also own |"
    )
    assert "| a | 1.00 (6) | -1.00 (6) | -1.00 (6) |  | 1.00 (6) | 1.00 (6) | 1.00 (6) |" in page
    assert "| median | 1.00 | -1.00 | -1.00 |  | 1.00 | 1.00 | 1.00 |" in page
    assert "| d | 6 | 6 | 1.7 points | 100 % |" in page, "the ceiling on real data is left out"
    assert "| 80 to 90 % | 24 | 4 | 88.9 % | 91.7 % | 94.4 % | yes |" in page
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record) == 24 and record[0] == {"dataset": "a", "agreement": 0.8, "relative": 0.8889}
    assert sorted(read_runs(tmp_path / "results" / "agreement.jsonl"))[:2] == ["a-0", "a-1"]
