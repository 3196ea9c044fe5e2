"""MLflow: one run per pipeline, with MLflow itself where it is installed, and with a client of our own."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning.loggers.mlflow as lightning

from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trackers import RunInfo
from kegnet_pl.runtime.errors import UserError

SPECIFICATION = {
    "_target_": "pytorch_lightning.loggers.MLFlowLogger", "experiment_name": "kegnet_pl",
    "tracking_uri": "sqlite:///{folder}/mlflow.db", "tags": {"team": "vision"},
}  # fmt: skip

Read = Callable[[], list[dict[str, Any]]]


def _loggers(folder: Path, sweep: str | None = None) -> Loggers:
    info = RunInfo(
        folder / "run", pipeline="digits-0123", label="digits option1, seed 3", tags=["digits", "option1"],
        hyperparameters={"seed": 3, "student": {"epochs": 8}}, notify=print, sweep=sweep, kept=folder / "store",
    )  # fmt: skip
    uri = SPECIFICATION["tracking_uri"].format(folder=folder)  # type: ignore[attr-defined]
    return Loggers({"mlflow": SPECIFICATION | {"tracking_uri": uri}}, info)


class Client:
    """Keeps runs as a server does."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    runs: dict[str, dict[str, Any]] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name, lifecycle_stage="active")

    def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
        found = {"experiment": experiment_id, "tags": tags, "status": "RUNNING", "params": {}, "metrics": {}}
        self.runs[str(len(self.runs))] = found
        return SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.runs) - 1)))

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise sys.modules["mlflow.exceptions"].MlflowException(f"Run with id={run_id} not found")
        return SimpleNamespace(info=SimpleNamespace(experiment_id=self.runs[run_id]["experiment"]))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id]["params"] |= {one.key: one.value for one in params}
        for one in metrics:
            self.runs[run_id]["metrics"].setdefault(one.key, []).append((one.step, one.value))

    def update_run(self, run_id: str, status: str) -> None:
        self.get_run(run_id)
        self.runs[run_id]["status"] = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Read:
    """An ``mlflow`` whose client is ours."""
    monkeypatch.setattr(Client, "runs", {})
    contents: dict[str, dict[str, Any]] = {
        "mlflow": {"set_tracking_uri": lambda uri: None},
        "mlflow.tracking": {"MlflowClient": Client},
        "mlflow.tracking.context": {"registry": SimpleNamespace(resolve_tags=lambda tags: tags)},
        "mlflow.entities": {"Param": SimpleNamespace, "Metric": SimpleNamespace},
        "mlflow.utils": {},
        "mlflow.utils.mlflow_tags": {"MLFLOW_RUN_NAME": "mlflow.runName"},
        "mlflow.exceptions": {"MlflowException": type("MlflowException", (Exception,), {})},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(lightning, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(lightning, "_get_resolve_tags", lambda: lambda tags: tags)
    return lambda: list(Client.runs.values())


@pytest.fixture
def real(tmp_path: Path) -> Read:
    """MLflow with a database."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")

    def read() -> list[dict[str, Any]]:
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        (experiment,) = (one for one in client.search_experiments() if one.name == "kegnet_pl")
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        return [
            {
                "status": run.info.status, "tags": run.data.tags, "params": run.data.params,
                "metrics": {
                    key: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
                    for key in run.data.metrics
                },
            }
            for run in found
        ]  # fmt: skip

    return read


def _write_teacher(folder: Path) -> Stage:
    curve = folder / "logs" / "teacher" / "version_0" / "metrics.csv"
    curve.parent.mkdir(parents=True, exist_ok=True)
    curve.write_text("epoch,step,train/loss\n0,9,0.5\n")
    return Stage("teacher", "0123", folder, {"metrics": {}, "seconds": 2.0, "command": "python -m kegnet_pl"})


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_a_pipeline_is_one_run_that_ends(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    read: Read = request.getfixturevalue(kind)
    teacher, loggers = _write_teacher(tmp_path / "teacher"), _loggers(tmp_path, "sweep-1")
    with pytest.raises(RuntimeError, match="power"), loggers.running():
        loggers.finish_stage(teacher, [])
        (logger,) = loggers.make("student", "kegnet", tmp_path / "stage")
        logger.log_metrics({"train/loss": 0.25}, step=3)
        logger.finalize("success")  # of the fit, not of the run
        assert read()[0]["status"] == "RUNNING"
        raise RuntimeError("the power went out")
    assert read()[0]["status"] == "FAILED"

    loggers = _loggers(tmp_path, "sweep-1")
    with loggers.running():
        loggers.finish_stage(teacher, [])
        assert read()[0]["status"] == "RUNNING"
        assert loggers.make("evaluation", "T+KegNet", tmp_path / "stage") == []
        loggers.finish({"method": "T+KegNet", "accuracy": 0.9, "T+KegNet/accuracy": 0.9})
    (run,) = read()
    assert run["status"] == "FINISHED"
    assert run["metrics"] == {
        "teacher/epoch": [(9, 0)],
        "teacher/train/loss": [(9, 0.5)],
        "student/kegnet/train/loss": [(3, 0.25)],
        "accuracy": [(0, 0.9)],
        "T_KegNet/accuracy": [(0, 0.9)],
    }
    assert run["params"] == {"seed": "3", "student/epochs": "8"}
    expected = {
        "mlflow.runName": "digits option1, seed 3", "pipeline": "digits-0123", "sweep": "sweep-1",
        "tags": "digits, option1", "team": "vision",
    }  # fmt: skip
    assert {name: run["tags"][name] for name in expected} == expected

    with _loggers(tmp_path).running():
        assert len(read()) == 2, "a finished run is not continued"


def test_a_run_that_does_not_exist_is_an_error_at_once(
    tmp_path: Path, fake: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "77")
    with (
        pytest.raises(UserError, match=r"MLflow to start a run, but got: Run with id=77 not found\."),
        _loggers(tmp_path).running(),
    ):
        raise AssertionError("something trains")


def test_a_deleted_interrupted_run_is_replaced(tmp_path: Path, fake: Read) -> None:
    with pytest.raises(RuntimeError), _loggers(tmp_path).running():
        raise RuntimeError
    Client.runs.clear()
    with _loggers(tmp_path).running():
        assert [run["status"] for run in fake()] == ["RUNNING"]
