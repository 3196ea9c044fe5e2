"""Sweeps, as a user types them."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from kegnet_pl.networks import LeNet5
from tests.integration.conftest import FAST, Command

JOBS = ["-m", FAST, "sources=[kegnet]", "compression=option2,fraction"]


def _sweep(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    return folder


def _stages(tmp_path: Path) -> list[str]:
    return [path.name.split("-")[0] for path in (tmp_path / "outputs" / "debug_store").glob("[!.]*")]


@pytest.mark.slow
def test_a_sweep_leaves_one_table_one_picture_and_all_rows(command: Command, tmp_path: Path) -> None:
    done = command(*JOBS, "seed=0,1")
    folder = _sweep(tmp_path)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    page = (folder / "report.html").read_text()
    assert all(f'<a href="{job}/report.html">{job}</a>' in page for job in range(4))
    assert (
        '<table class="sortable">' in page
        and '<th class="n">accuracy: student (KegNet)</th>' in page
        and "Pareto front" in page
    )
    assert all((folder / str(job) / "report.html").exists() for job in range(4))
    assert "4 of 4 runs finished, varied: compression, seed; digits: 539 test samples; epoch kept: last" in done.stdout
    assert re.search(
        r"option2\s+│\s+student \(KegNet\)\s+│\s+teacher\s+│\s+[\d.]+ ± [\d.]+ %\s+│\s+[\d.]+ %(?: of \d+)?\s+│\s+2 │",
        done.stdout,
    )
    assert (
        len(
            re.findall(r"^results: teacher [\d.]+ %, student \(KegNet\) [\d.]+ %, .*/\d/output.txt$", done.stdout, re.M)
        )
        == 4
    )
    assert "started" not in done.stdout and "[1/5] teacher: " in (folder / "0" / "output.txt").read_text()
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    records = json.loads((folder / "results.json").read_text())
    assert len(records) == 4 * 3
    assert {(r["settings"]["compression"], r["settings"]["seed"]) for r in records} == {
        (option, seed) for option in ("option2", "fraction") for seed in ("0", "1")
    }
    # The command of a row runs its job alone.
    assert records[-1]["command"] == f"python -m kegnet_pl {FAST} 'sources=[kegnet]' compression=fraction seed=1"
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["fingerprint"] for line in lines] == [record["fingerprint"] for record in records]
    assert float(lines[0]["costs.seconds.teacher_training"]) > 0
    stages = _stages(tmp_path)
    assert stages.count("teacher") == stages.count("generators") == 2, "once a seed"
    assert stages.count("student") == 4


@pytest.mark.slow
def test_a_failed_job_fails_alone_and_the_sweep_goes_on_when_it_is_started_again(
    command: Command, tmp_path: Path
) -> None:
    jobs = ["-m", FAST, "sources=[kegnet]", "generator.count=1,3,2"]
    done = command(*jobs, expect=1)
    assert "2 of 3 runs finished" in done.stdout
    assert re.search(r"^Job 1 \(generator.count=3\): Expected `student.samples` to be a multiple", done.stdout, re.M)
    assert re.search(r"^Job 1 \(.*generator.count=3\) failed: Expected", done.stderr, re.M)
    assert "Traceback" not in done.stdout + done.stderr
    failure = json.loads((_sweep(tmp_path) / "1" / "failure.json").read_text())
    assert failure["overrides"][-1] == "generator.count=3" and "Traceback" in failure["traceback"]
    again = command(*jobs, "resume=require", expect=1)
    assert "2 of 3 runs finished" in again.stdout


def test_an_unexpected_error_is_shown_in_full_and_named(command: Command) -> None:
    broken = ["+callbacks.mine._target_=pytorch_lightning.callbacks.EarlyStopping", "+callbacks.mine.monitor=nothing"]
    done = command("-m", FAST, *broken, "seed=0,1", expect=1)
    assert "Traceback" in done.stderr and "nothing" in done.stderr
    for job in (0, 1):
        assert f"Job {job} (debug=fast" in done.stderr
    assert "0 of 2 runs finished. The same command starts the sweep again." in done.stdout
    assert re.search(r"^Job 1 \(seed=1\): .*nothing", done.stdout, re.M)


def test_a_sweep_says_how_to_send_what_was_kept_offline(command: Command, tmp_path: Path) -> None:
    done = command("-m", FAST, "sources=[]", "compression.target=4,8", "logger=wandb")
    folder = _sweep(tmp_path).relative_to(tmp_path)
    assert done.stdout.rstrip().endswith(f"wandb sync {folder}/*/wandb/offline-run-*")
    assert len(list(tmp_path.glob(f"{folder}/*/wandb/offline-run-*"))) == 2
    assert "anonymous" not in done.stdout + done.stderr


def test_a_launcher_that_is_missing_is_named(command: Command) -> None:
    done = command("-m", FAST, "hydra/launcher=ray", "seed=0,1", expect=1)
    assert "hydra/launcher=ray needs a plugin: pip install '.[ray]'" in done.stderr


def test_a_typo_in_a_sweep_gets_an_answer(command: Command) -> None:
    done = command("-m", FAST, "generator.epoch=1,2", expect=1)
    assert "generator.epochs" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_jobs_side_by_side_build_what_they_share_once(command: Command, tmp_path: Path) -> None:
    """Workers of joblib are forked."""
    done = command(*JOBS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert "2 of 2 runs finished" in done.stdout, done.stdout + done.stderr
    stages = _stages(tmp_path)
    assert stages.count("teacher") == stages.count("generators") == 1
    assert stages.count("student") == 2
    # Lines of jobs that write at the same time say whose they are.
    assert "[0] results: teacher" in done.stdout and "[1] results: teacher" in done.stdout


@pytest.mark.slow
def test_a_job_of_submitit_is_a_new_process(command: Command, tmp_path: Path) -> None:
    done = command("-m", FAST, "sources=[normal]", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    assert "1 of 1 runs finished" in done.stdout, done.stdout + done.stderr
    assert sorted(_stages(tmp_path)).count("student") == 1
    assert list(_sweep(tmp_path).glob(".submitit/*/*_submitted.pkl"))


RAY = ["ray", "hydra-ray-launcher>=1.2.1", "joblib<1.6", "cloudpickle<3", "msgpack"]
"""Ray, and older packages than those of the environment, which hydra-ray-launcher needs."""


@pytest.mark.slow
def test_ray(command: Command, tmp_path: Path, environment: dict[str, str]) -> None:
    """In an environment of its own: that of the tests behind a folder with Ray."""
    folder = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--only-binary=:all:"]
    try:
        built = subprocess.run([*pip, "--target", folder, *RAY], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("pip needs more than a minute for Ray")
    if built.returncode:
        pytest.skip(f"pip finds no wheels of Ray: {built.stderr.strip().splitlines()[-1:]}")
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    plain = ["sources=[]", "compression.fit=weights", "latency.batch_sizes=[]", "agreement.sources=[]"]
    cheap = ["+hydra.launcher.ray.init.include_dashboard=false", "+hydra.launcher.ray.init.num_cpus=1"]
    done = command("-m", FAST, *plain, "compression=option2,fraction", "hydra/launcher=ray", *cheap, new=True)
    assert "2 of 2 runs finished" in done.stdout
    stages = _stages(tmp_path)
    assert (stages.count("teacher"), stages.count("compression")) == (1, 2)


SEARCH = [FAST, "sources=[]", "compression.fit=weights", "latency.batch_sizes=[1]"]
WITHOUT_DATA = ["data=none", "data.input_shape=[1,32,32]", "data.classes=10", "teacher=lenet5"]


@pytest.mark.slow
def test_a_search_looks_at_agreement_without_data(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install '.[optuna]'")
    torch.save(LeNet5().state_dict(), tmp_path / "net.pt")
    done = command(
        "-m", "hparams_search=agreement", *SEARCH, *WITHOUT_DATA, "teacher.weights=net.pt", "sources=[normal]",
        "hydra.sweeper.n_trials=3",
    )  # fmt: skip
    folder = _sweep(tmp_path)
    found = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    rows = [json.loads((folder / str(job) / "results.json").read_text())[-1] for job in range(3)]
    assert found["best_value"] == max(row["agreement"]["mean"] for row in rows)
    assert "student.optimizer.lr" in found["best_params"] and all(row["accuracy"] is None for row in rows)
    assert "3 of 3 runs finished" in done.stdout
    assert "The student with the highest agreement with its teacher is" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_search_for_speed_has_two_objectives_and_survives_a_failure(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install '.[optuna]'")
    done = command(
        "-m", "hparams_search=latency", *SEARCH, "compression.by=parameters", "compression.round_to=1",
        "compression.target=choice(2.0,9999.0)", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1", expect=1,
    )  # fmt: skip
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    (solution, *_) = yaml.safe_load((folder / "optimization_results.yaml").read_text())["solutions"]
    assert solution["params"] == {"compression.target": 2.0} and len(solution["values"]) == 2
    assert "9999" in done.stderr and (folder / "report.html").exists()


def test_a_search_by_test_accuracy_is_refused(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install '.[optuna]'")
    done = command("-m", "hydra/sweeper=optuna", *SEARCH, "seed=0,1", expect=1)
    assert "student that is selected by its test accuracy is not a data-free result" in done.stderr
    assert not list(tmp_path.glob("outputs/sweeps/*"))
