"""The real W&B client, offline: all that is promised is in its files."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from kegnet_pl.reporting.workspace import make_workspace
from kegnet_pl.training.base import TrainingModule
from tests.integration.conftest import FAST, Command, configure, go
from tests.integration.wandb_file import OfflineRun, read_runs

LOSSES = {"train/loss", "train/accuracy", "train/grad_norm", "epoch", "step"}
OF_STUDENT = LOSSES - {"train/accuracy"} | {"train/agreement"}
TERMS = {f"train/loss_{term}" for term in ("classifier", "decoder", "diversity")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[OfflineRun]:
    """One pipeline: interrupted in its generators, resumed, and run again with all stages in the store."""
    folder = tmp_path_factory.mktemp("wandb")
    start_epoch = TrainingModule.on_train_epoch_start

    def crash(module: TrainingModule) -> None:
        if type(module).__name__ == "GeneratorModule" and module.current_epoch == 1:
            raise RuntimeError("the power went out")
        start_epoch(module)

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("WANDB_MODE", "offline")
        # Every term of the objective is in use, so that each is logged.
        weights = [f"generator.objective.{term}.weight=1" for term in ("decoder", "diversity")]
        options = ["logger=wandb", "sources=[normal,kegnet]", "agreement.sources=[uniform]", *weights]
        with patch.context() as broken, pytest.raises(RuntimeError, match="power"):
            broken.setattr(TrainingModule, "on_train_epoch_start", crash)
            go(folder, *options, draw=True)
        go(folder, *options, draw=True)
        assert not list((folder / "store" / ".trackers").iterdir())
        go(folder, *options, "+logger.wandb.notes=again", draw=True)
    return read_runs(folder / "run")


def test_a_pipeline_is_one_run_that_is_continued(runs: list[OfflineRun]) -> None:
    interrupted, resumed, again = runs
    assert interrupted.identifier == resumed.identifier != again.identifier
    assert [run.exit_code for run in runs] == [1, 0, 0]
    for run in runs:
        assert (run.name, run.group, run.job_type) == ("digits 8x, seed 0", "", "pipeline")
        assert sorted(run.tags) == sorted(["digits", "lenet5", "8x", "strict", "seed 0"])
        assert run.config["generator"]["count"] == 2, "resolved"
        assert run.config["pipeline"].startswith("digits-")
    assert not any(key.startswith("teacher/train") for key in resumed.keys), "the first attempt has these curves"
    key = "generators/generator_0/train/loss"
    epochs = [[line["generators/epoch"] for line in run.history if key in line] for run in runs]
    assert epochs == [[0], [1], [0, 1]]


def test_the_result_is_in_the_summary(runs: list[OfflineRun]) -> None:
    _, resumed, again = runs
    rows = json.loads((again.folder.parents[1] / "results.json").read_text())
    for run in (resumed, again):
        assert run.summary["method"] == "student (KegNet)"
        for row in rows:
            assert run.summary[f"{row['method']}/accuracy"] == row["accuracy"]
        student = rows[-1]
        assert run.summary["accuracy"] == student["accuracy"]
        assert run.summary["agreement"] == student["agreement"]["mean"]
        assert run.summary["compression_ratio"] == student["compression_ratio"]
        seconds = sum(student["stage_seconds"][name] for name in ("compression", "generators", "student"))
        assert run.summary["seconds"] == pytest.approx(seconds)
        assert run.summary["teacher/seconds"] == rows[0]["seconds"]


def test_curves_of_a_stage_have_a_namespace_and_steps_of_their_own(runs: list[OfflineRun]) -> None:
    expected = {f"teacher/{key}" for key in LOSSES}
    expected |= {f"student/{source}/{key}" for source in ("normal", "kegnet") for key in OF_STUDENT}
    common = {"step", "epoch"}
    curves = {f"generator_{i}/{key}" for i in (0, 1) for key in (LOSSES | TERMS) - common} | common
    watched = {"samples/confidence", "samples/entropy", *(f"samples/confidence_{label}" for label in range(10))}
    watched = {f"generator_{i}/{key}" for i in (0, 1) for key in watched}
    expected |= {f"generators/{key}" for key in curves | watched}
    again = runs[2]
    assert {key for key in again.keys if key.split("/")[0] in ("teacher", "generators", "student")} == expected
    for key in expected:
        namespace = "/".join(key.split("/")[: 2 if key.startswith("student/") else 1])
        assert again.axes[key] == ("" if key == f"{namespace}/step" else f"{namespace}/step")
    trained, copied = (next(line for line in run.history if "teacher/train/loss" in line) for run in (runs[0], again))
    assert {key: value for key, value in trained.items() if key[0] != "_"} == {
        key: pytest.approx(value) for key, value in copied.items() if key[0] != "_"
    }


def test_a_sheet_for_every_epoch_is_a_file(runs: list[OfflineRun]) -> None:
    key = "generators/generator_1/samples/sheet"
    sheets = [(run.folder, line[key]) for run in runs for line in run.history if key in line]
    assert len(sheets) == 2
    for folder, sheet in sheets:
        assert (folder / "files" / sheet["path"]).read_bytes().startswith(b"\x89PNG")
        assert (sheet["width"], sheet["height"]) == (10 * 34 - 2, 4 * 34 - 2)


def _table(run: OfflineRun, key: str) -> dict[str, list[object]]:
    (value,) = [line[key] for line in run.history if key in line]
    content = json.loads((run.folder / "files" / value["path"]).read_text())
    return {column: [line[i] for line in content["data"]] for i, column in enumerate(content["columns"])}


def test_tables(runs: list[OfflineRun]) -> None:
    interrupted, resumed, _ = runs
    assert _table(interrupted, "compression/layers")["layer"] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    results = _table(resumed, "results")
    assert results["network"] == [
        "teacher", "compressed, untrained", "student (normal noise)", "student (KegNet)",
    ]  # fmt: skip
    assert all(isinstance(value, float) for value in results["accuracy"])
    assert min(_table(resumed, "costs")["seconds student_training"][2:]) > 0  # type: ignore[type-var]
    assert {"report:html-file", "samples:image-file", "student/kegnet/labels/entropies:histogram"} <= resumed.keys
    assert sum(_table(resumed, "T+KegNet/confusion")["samples"]) == 539  # type: ignore[arg-type]
    assert len(_table(resumed, "T+KegNet/classes")["accuracy"]) == 10


def test_networks_are_artifacts_with_their_lineage(runs: list[OfflineRun]) -> None:
    interrupted, resumed, again = runs
    assert {name.split("-")[0] for name in interrupted.artifacts} == {"teacher", "compression"}
    assert set(resumed.artifacts) == set(again.artifacts)
    lineage = {}
    for name, artifact in again.artifacts.items():
        assert artifact.type == "model"
        files = {entry.path for entry in artifact.manifest.contents}
        assert "manifest.json" in files and any(file.endswith(".safetensors") for file in files)
        lineage[name] = set(json.loads(artifact.metadata)["parents"])
    assert sorted((name.split("-")[0], *sorted(parents)) for name, parents in lineage.items()) == [
        ("compression", "teacher"),
        ("generators", "teacher"),
        ("student", "compression", "generators", "teacher"),
        ("student", "compression", "teacher"),
        ("teacher",),
    ]
    assert f"student-{again.config['student/kegnet/fingerprint']}" in lineage


def test_each_stage_may_have_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    go(tmp_path, "logger=wandb", "logger.wandb.runs=stages", "sources=[normal]", draw=True)
    wandb.teardown()  # its service may write the last records after a run has finished
    found = read_runs(tmp_path / "run")
    kinds = ["teacher", "compression", "student", "evaluation", "evaluation", "evaluation", "report"]
    assert sorted(run.job_type for run in found) == sorted(kinds)
    (group,) = {run.group for run in found}
    assert group.startswith("digits-")
    assert len({run.identifier for run in found}) == len(kinds), "each ends before the next begins"
    assert {run.exit_code for run in found} == {0}
    by_name = {run.name.split(" ·")[0]: run for run in found}
    assert by_name["student normal"].keys >= {"train/loss", "trainer/global_step", "labels/entropies:histogram"}
    assert (
        by_name["evaluation student (normal noise)"].history[0]["test/accuracy"]
        == by_name["report"].summary["accuracy"]
    )
    ((name, artifact),) = by_name["student normal"].artifacts.items()
    assert (artifact.type, name) == ("model", f"student-{by_name['student normal'].config['fingerprint']}")


def test_a_sweep_is_one_group(command: Command, tmp_path: Path) -> None:
    command("-m", FAST, "logger=wandb", "sources=[]", "seed=0,1")
    runs = [run for folder in tmp_path.glob("outputs/sweeps/*/*") for run in read_runs(folder)]
    assert len(runs) == 2
    (group,) = {run.group for run in runs}
    assert group.startswith("seed-")
    assert len({run.config["pipeline"] for run in runs}) == 2
    assert all(group in run.tags for run in runs)


def test_the_sweep_file_makes_commands(runs: list[OfflineRun]) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((Path(__file__).parents[2] / "examples" / "wandb_sweep.yaml").read_text())
    values = {"student.optimizer.lr": 0.003, "student.temperature": 8}
    assert values.keys() == sweep["parameters"].keys()
    args = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    command = create_sweep_command(sweep["command"])
    where = command.index("${args_no_hyphens}")
    command[where : where + 1] = args["args_no_hyphens"]
    start = command.index("kegnet_pl") + 1
    assert command[start - 3 : start] == ["python", "-m", "kegnet_pl"]
    config = configure(*command[start:])
    assert (config["student"]["optimizer"]["lr"], config["student"]["temperature"]) == (0.003, 8)
    assert config["logger"]["wandb"]["runs"] == "pipeline"
    assert sweep["metric"]["name"] in runs[1].summary


def _panels(workspace: Any) -> dict[str, list[dict[str, Any]]]:
    """Return what is saved of a workspace: section -> panels."""
    model = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    sections = model["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_the_dashboard_shows_what_is_logged(runs: list[OfflineRun]) -> None:
    sections = _panels(make_workspace("team", "project", generators=2))
    assert list(sections) == ["result", "teacher", "generators", "samples", "students", "sweep"]
    logged = {key.split(":")[0] for run in runs for key in (*run.keys, *run.summary) if not key.startswith("_")}
    # Terms that have no weight in this run, too: LeNet5 has no batch norm, whose statistics one of them looks at.
    terms = configure()["generator"]["objective"]
    logged |= {f"generators/generator_{index}/train/loss_{term}" for index in range(2) for term in terms}
    logged.add("speedup")  # not measured in this run
    shown: set[str] = set()
    for panel in (panel for panels in sections.values() for panel in panels):
        config = panel["config"]
        if "metricRegex" in config:
            found = {key for key in logged if re.search(config["metricRegex"], key)}
            assert found, config
            shown |= found
        shown |= set(config.get("metrics", []))
        shown |= {
            config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if config.get(axis, "_step") != "_step"
        }
        shown |= {
            key for key in config.get("mediaKeys", []) if key != "generators/samples/sheet"
        }  # a single generator's
        if panel["viewType"] == "Weave":
            shown |= set(re.findall(r'"key": \{[^{}]*"val": "([\w/+]+)"', json.dumps(config))) - {"project"}
        for column in config.get("columns", []):
            kind, name = column["accessor"].split(":")
            keys = name.split(".")
            assert (kind == "summary" and name in logged) or keys[0] in runs[0].config
            if len(keys) > 2:
                assert keys[2] in runs[0].config[keys[0]]
    assert shown <= logged
    methods = ("teacher/", "T/", "T+Normal/", "T+KegNet/")  # in the tables
    unseen = {key for key in logged - shown if not key.startswith(methods)}
    seconds = {f"{name}/seconds" for name in ("compression", "generators", "student/normal", "student/kegnet")}
    counters = {
        f"{name}/{key}" for name in ("generators", "student/normal", "student/kegnet") for key in ("epoch", "step")
    }
    # W&B logs Lightning's own step metric with objects, whose steps are not those of a fit.
    assert unseen == {"method", "parameters", "report", "trainer/global_step"} | seconds | counters


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
