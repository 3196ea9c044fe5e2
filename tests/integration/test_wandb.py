"""The real W&B client, offline: all that is promised is in its files."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kegnet_pl.reporting.workspace import make_workspace
from kegnet_pl.training.base import TrainingModule
from tests.integration.conftest import FAST, Command, configure, go
from tests.integration.wandb_file import OfflineRun, read_runs

LOSSES = {"train/loss", "train/accuracy", "train/grad_norm", "epoch", "trainer/global_step"}
TERMS = {f"train/loss_{term}" for term in ("classifier", "decoder", "diversity")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[OfflineRun]]:
    """The runs of one pipeline, by job type."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("WANDB_MODE", "offline")
        # Every term of the objective is in use, so that each is logged.
        weights = [f"generator.objective.{term}.weight=1" for term in ("decoder", "diversity")]
        go(folder, "logger=wandb", "sources=[normal,kegnet]", *weights, draw=True)
    found: dict[str, list[OfflineRun]] = {}
    for run in read_runs(folder / "run"):
        found.setdefault(run.job_type, []).append(run)
    return found


def test_one_run_a_stage_in_one_group(runs: dict[str, list[OfflineRun]]) -> None:
    assert {kind: len(mine) for kind, mine in runs.items()} == {
        "teacher": 1, "compression": 1, "generators": 1, "student": 2, "evaluation": 4, "report": 1,
    }  # fmt: skip
    every = [run for mine in runs.values() for run in mine]
    (group,) = {run.group for run in every}
    assert group.startswith("digits-")
    assert len({run.identifier for run in every}) == 10, "each ends before the next begins"
    assert {run.exit_code for run in every} == {0}
    assert {tuple(sorted(run.tags)) for run in every} == {
        tuple(sorted(["digits", "lenet5", "ratio8", "strict", "seed 0"]))
    }
    names = [run.name for run in every]
    assert "student kegnet · digits ratio8, seed 0" in names and "evaluation T+KegNet · digits ratio8, seed 0" in names
    for run in every:
        assert run.config["generator"]["count"] == 2, "resolved"
        assert run.config["pipeline"] == group


def test_curves_have_the_names_of_the_house(runs: dict[str, list[OfflineRun]]) -> None:
    assert runs["teacher"][0].keys == LOSSES
    student = next(run for run in runs["student"] if "kegnet" in run.name)
    assert student.keys == LOSSES | {"labels/entropies:histogram"}
    assert [line["epoch"] for line in student.history if "epoch" in line] == [0, 1]
    watched = {"samples/confidence", "samples/entropy", *(f"samples/confidence_{label}" for label in range(10))}
    watched |= {"samples/sheet:image-file", "samples/entropies:histogram"}
    common = {"trainer/global_step", "epoch"}
    expected = {f"generator_{i}/{key}" for i in (0, 1) for key in (LOSSES | TERMS | watched) - common}
    assert runs["generators"][0].keys == expected | common


def test_a_sheet_for_every_epoch_is_a_file(runs: dict[str, list[OfflineRun]]) -> None:
    run = runs["generators"][0]
    sheets = [line["generator_1/samples/sheet"] for line in run.history if "generator_1/samples/sheet" in line]
    assert len(sheets) == 2
    for sheet in sheets:
        assert (run.folder / "files" / sheet["path"]).read_bytes().startswith(b"\x89PNG")
        assert (sheet["width"], sheet["height"]) == (10 * 34 - 2, 4 * 34 - 2)


def _table(run: OfflineRun, key: str) -> dict[str, list[object]]:
    (value,) = [line[key] for line in run.history if key in line]
    content = json.loads((run.folder / "files" / value["path"]).read_text())
    return {column: [line[i] for line in content["data"]] for i, column in enumerate(content["columns"])}


def test_tables(runs: dict[str, list[OfflineRun]]) -> None:
    assert _table(runs["compression"][0], "layers")["layer"] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    report = runs["report"][0]
    results = _table(report, "results")
    assert results["method"] == ["teacher", "T", "T+Normal", "T+KegNet"]
    assert all(isinstance(value, float) for value in results["accuracy"])
    assert min(_table(report, "costs")["seconds student_training"][2:]) > 0  # type: ignore[type-var]
    assert {"report:html-file", "samples:image-file"} <= report.keys
    tested = next(run for run in runs["evaluation"] if "KegNet" in run.name)
    assert sum(_table(tested, "confusion")["samples"]) == 539  # type: ignore[arg-type]
    assert len(_table(tested, "classes")["accuracy"]) == 10
    assert tested.history[0]["test/accuracy"] == results["accuracy"][-1]
    assert tested.history[0]["compression_ratio"] == pytest.approx(results["compression_ratio"][-1], abs=1e-4)


def test_finished_stages_are_artifacts_with_their_lineage(runs: dict[str, list[OfflineRun]]) -> None:
    lineage = {}
    for kind in ("teacher", "compression", "generators", "student"):
        for run in runs[kind]:
            ((name, artifact),) = run.artifacts.items()
            assert artifact.type == kind and name == f"{kind}-{run.config['fingerprint']}"
            files = {entry.path for entry in artifact.manifest.contents}
            assert "manifest.json" in files and any(file.endswith(".safetensors") for file in files)
            lineage[run.name.split(" ·")[0]] = set(json.loads(artifact.metadata)["parents"])
    assert lineage == {
        "teacher": set(),
        "compression": {"teacher"},
        "generators": {"teacher"},
        "student normal": {"teacher", "compression"},
        "student kegnet": {"teacher", "compression", "generators"},
    }
    assert not any(run.artifacts for kind in ("evaluation", "report") for run in runs[kind])


def test_a_resumed_stage_continues_its_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    start_epoch = TrainingModule.on_train_epoch_start

    def crash(module: TrainingModule) -> None:
        if type(module).__name__ == "GeneratorModule" and module.current_epoch == 1:
            raise RuntimeError("the power went out")
        start_epoch(module)

    options = ["logger=wandb", "sources=[kegnet]", "generator.count=1"]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(TrainingModule, "on_train_epoch_start", crash)
        go(tmp_path, *options, draw=True)
    go(tmp_path, *options, draw=True)
    first, second = (run for run in read_runs(tmp_path / "run") if run.job_type == "generators")
    assert first.identifier == second.identifier
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [line["epoch"] for line in first.history if "train/loss" in line] == [0]
    assert [line["epoch"] for line in second.history if "train/loss" in line] == [1]
    assert not first.artifacts and second.artifacts


def test_a_sweep_is_one_group(command: Command, tmp_path: Path) -> None:
    command("-m", FAST, "logger=wandb", "sources=[]", "seed=0,1")
    runs = [run for folder in tmp_path.glob("outputs/sweeps/*/*") for run in read_runs(folder)]
    (group,) = {run.group for run in runs}
    assert group.startswith("seed-")
    assert len({run.config["pipeline"] for run in runs}) == 2
    assert all(group in run.tags for run in runs)


def _panels(workspace: Any) -> dict[str, list[dict[str, Any]]]:
    """Return what is saved of a workspace: section -> panels."""
    model = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    sections = model["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_the_dashboard_shows_what_is_logged(runs: dict[str, list[OfflineRun]]) -> None:
    sections = _panels(make_workspace("team", "project", generators=2))
    assert list(sections) == ["generators", "samples", "students", "sweep"]
    logged = {key.split(":")[0] for mine in runs.values() for run in mine for key in run.keys}
    # Terms that have no weight in this run, too: LeNet5 has no batch norm, whose statistics one of them looks at.
    terms = configure()["generator"]["objective"]
    logged |= {f"generator_{index}/train/loss_{term}" for index in range(2) for term in terms}
    shown: set[str] = set()
    for panel in (panel for panels in sections.values() for panel in panels):
        config = panel["config"]
        if "metricRegex" in config:
            found = {key for key in logged if re.search(config["metricRegex"], key)}
            assert found, config
            assert (
                len(found) % 2 == 0 or "grad_norm" in config["metricRegex"] or found & {"train/loss", "train/accuracy"}
            )
            shown |= found
        shown |= {key for key in config.get("metrics", []) if not key.startswith("val/")}  # none by `strict`
        shown |= {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in config}
        shown |= {key for key in config.get("mediaKeys", []) if key != "samples/sheet"}  # a single generator's
        if panel["viewType"] == "Weave":
            shown |= set(re.findall(r'"key": \{[^{}]*"val": "(\w+)"', json.dumps(config))) - {"project"}
        for column in config.get("columns", []):
            kind, name = column["accessor"].split(":")
            keys = name.split(".")
            assert (kind == "summary" and name in logged) or all(keys[0] in run.config for run in runs["evaluation"])
            if len(keys) > 2:
                assert keys[2] in runs["evaluation"][0].config[keys[0]]
    assert shown <= logged
    unseen = {key.removeprefix("generator_0/").removeprefix("generator_1/") for key in logged - shown}
    assert unseen == {"epoch", "parameters", "confusion", "report"}


def test_a_workspace_survives_saving_and_loading() -> None:
    workspace = make_workspace("team", "project")
    again = type(workspace)._from_model(workspace._to_model())
    assert (again.entity, again.project, again.name) == ("team", "project", "kegnet_pl")
    assert [section.name for section in again.sections] == [section.name for section in workspace.sections]
    assert [[p._to_model() for p in s.panels] for s in again.sections] == [
        [p._to_model() for p in s.panels] for s in workspace.sections
    ]


def test_no_secret_is_in_any_file(command: Command, tmp_path: Path, environment: dict[str, str]) -> None:
    planted = {"MY_TOKEN": "tok3nvalue", "WANDB_API_KEY": f"local-{40 * 'k'}", "HF_TOKEN": "hf_planted0planted"}
    environment |= planted | {"WANDB_MODE": "offline"}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["remote", "add", "origin", "https://me:hunter22pass@example.org/x.git"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    note = f"https://me:hunter22pass@example.org/{planted['HF_TOKEN']}"
    done = command(
        "debug=fast", "sources=[]", "compression.fit=weights", "agreement.sources=[]", "latency.batch_sizes=[]",
        "store=store", "hydra.run.dir=run", "logger=[wandb,tensorboard]",
        "+logger.wandb.settings.api_key=${oc.env:MY_TOKEN}", f'+logger.wandb.notes="{note}"', draw=True,
    )  # fmt: skip
    files = [path for path in tmp_path.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert any(path.suffix == ".wandb" for path in files) and any("tfevents" in path.name for path in files)
    for secret in (*planted.values(), "hunter22pass"):
        assert secret not in done.stdout + done.stderr
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []
    written = json.loads((tmp_path / "run" / "stages.json").read_text())["config"]["logger"]["wandb"]
    assert written["settings"]["api_key"] == "${oc.env:MY_TOKEN}"
    assert written["notes"] == "https://me:***@example.org/${oc.env:HF_TOKEN}"
