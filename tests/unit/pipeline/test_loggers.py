"""Loggers of a stage."""

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

import pytest
import pytorch_lightning.loggers
import wandb
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from kegnet_pl.pipeline.kept_runs import KeptRun
from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trackers import Namespaced, RunInfo, read_metrics
from kegnet_pl.pipeline.wandb_artifacts import record_artifact
from kegnet_pl.pipeline.wandb_runs import has_wandb_key
from kegnet_pl.runtime.errors import ConfigError, UserError

CSV = {"_target_": "pytorch_lightning.loggers.CSVLogger"}
TENSORBOARD = {"_target_": "pytorch_lightning.loggers.TensorBoardLogger"}
WANDB = {"_target_": "pytorch_lightning.loggers.WandbLogger", "project": "kegnet_pl", "entity": None, "tags": []}
STAGES = WANDB | {"runs": "stages"}


def _end_wandb() -> None:
    """Close the run and the session, which remembers the environment it was started in."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        if wandb.run is not None:
            wandb.finish()
        wandb.teardown()


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hide the user's key, and close what a test has opened."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    _end_wandb()
    yield
    _end_wandb()


def _loggers(
    specifications: dict[str, Any], folder: Path, told: list[str] | None = None, sweep: str | None = None
) -> Loggers:
    info = RunInfo(
        folder / "run",
        pipeline="digits-0123",
        label="digits option1, seed 3",
        tags=["digits", "option1"],
        hyperparameters={"seed": 3, "student": {"epochs": 8}},
        notify=(told if told is not None else []).append,
        sweep=sweep,
        kept=folder / "store" / ".trackers",
    )
    return Loggers(specifications, info)


def _make(specifications: dict[str, Any], folder: Path, stage: str = "student", name: str = "kegnet") -> list[Logger]:
    return _loggers(specifications, folder).make(stage, name, folder / "stage")


def _stage(folder: Path, name: str = "student") -> Stage:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.safetensors").write_bytes(b"weights")
    return Stage(name, "0123", folder, {"metrics": {"loss": 1.0}, "seconds": 2.0, "command": "python -m kegnet_pl"})


def _group(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=list(overrides)).logger)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["csv"]),
        (["logger=csv"], ["csv"]),
        (["logger=tensorboard"], ["csv", "tensorboard"]),
        (["logger=wandb"], ["csv", "wandb"]),
        (["logger=mlflow"], ["csv", "mlflow"]),
        (["logger=[wandb,tensorboard]"], ["csv", "wandb", "tensorboard"]),
    ],
    ids=str,
)
def test_csv_is_always_on(overrides: list[str], names: list[str]) -> None:
    assert sorted(_group(*overrides)) == sorted(names)


def test_csv_lies_in_the_folder_of_the_stage(tmp_path: Path) -> None:
    (logger,) = _make({"csv": CSV}, tmp_path)
    assert isinstance(logger, CSVLogger)
    logger.log_metrics({"train/loss": 0.5}, step=7)
    logger.save()
    (path,) = (tmp_path / "stage" / "logs" / "kegnet").rglob("metrics.csv")
    with path.open() as file:
        assert list(csv.DictReader(file)) == [{"step": "7", "train/loss": "0.5"}]


def test_fits_of_a_stage_have_files_of_their_own(tmp_path: Path) -> None:
    for name in ("generator_0", "generator_1"):
        (logger,) = _make({"csv": CSV}, tmp_path, "generators", name)
        logger.log_metrics({"train/loss": 0.5}, step=0)
        logger.save()
    found = {path.relative_to(tmp_path).parts[:3] for path in tmp_path.rglob("metrics.csv")}
    assert found == {("stage", "logs", "generator_0"), ("stage", "logs", "generator_1")}


def _write_curve(folder: Path, losses: list[float]) -> None:
    """Write what a CSV logger leaves of a fit, one file per attempt."""
    for number, loss in enumerate(losses):
        file = folder / f"version_{number}" / "metrics.csv"
        file.parent.mkdir(parents=True)
        file.write_text(f"epoch,step,train/loss,val/accuracy\n{number},{10 * number},{loss},\n")


def test_metrics_of_all_attempts_are_read(tmp_path: Path) -> None:
    _write_curve(tmp_path, [0.5, 0.25])
    (tmp_path / "version_1" / "metrics.csv").open("a").write("1,10,,0.75\n")
    assert read_metrics(tmp_path) == {
        0: {"epoch": 0, "train/loss": 0.5},
        10: {"epoch": 1, "train/loss": 0.25, "val/accuracy": 0.75},
    }
    assert read_metrics(tmp_path / "nothing") == {}


def test_tensorboard_has_a_run_per_fit_and_the_result(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _write_curve(tmp_path / "teacher" / "logs" / "teacher", [0.5, 0.25])
    for attempt in range(2):
        loggers = _loggers({"tensorboard": TENSORBOARD}, tmp_path)
        with loggers.running():
            loggers.finish_stage(_stage(tmp_path / "teacher", "teacher"), [])
            (logger,) = loggers.make("student", "kegnet", tmp_path / "stage")
            assert isinstance(logger, TensorBoardLogger)
            assert loggers.make("evaluation", "T+KegNet", tmp_path / "stage") == [], "a chart of one point"
            logger.log_metrics({"train/loss": 0.1 + attempt}, step=7)
            logger.finalize("success")
            loggers.finish({"accuracy": 0.9, "method": "T+KegNet", "T+KegNet/accuracy": 0.9})
    scalars = {}
    for name in ("teacher", "student/kegnet", "result"):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / name)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars[name, tag] = [(event.step, round(event.value, 3)) for event in events.Scalars(tag)]
        if name == "result":
            assert "_hparams_/session_start_info" in events.summary_metadata
    assert scalars == {
        ("teacher", "epoch"): [(0, 0), (10, 1)],
        ("teacher", "train/loss"): [(0, 0.5), (10, 0.25)],
        ("student/kegnet", "train/loss"): [(7, 1.1)],
        ("result", "accuracy"): [(0, 0.9)],
    }


class Recorder(Logger):
    """Keeps what it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.hyperparameters: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    @property
    def experiment(self) -> None:
        return None

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        self.hyperparameters = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


class Sized(Recorder):
    """Needs an argument."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)


@pytest.fixture
def wandb_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what the W&B logger would be made with."""

    def make(**specification: Any) -> Recorder:
        monkeypatch.setattr(pytorch_lightning.loggers, "WandbLogger", Recorder)
        (logger,) = _make({"wandb": STAGES | specification}, tmp_path)
        assert isinstance(logger, Recorder)
        return logger

    return make


def test_wandb_has_a_run_a_stage_in_one_group(tmp_path: Path, wandb_options: Any) -> None:
    logger = wandb_options(tags=["mine"], artifacts=False)
    expected = {
        "project": "kegnet_pl", "entity": None, "tags": ["digits", "option1", "mine"],
        "save_dir": str(tmp_path / "run"),
        "name": "student kegnet · digits option1, seed 3", "group": "digits-0123", "job_type": "student",
    }  # fmt: skip
    assert {key: logger.options[key] for key in expected} == expected
    assert "artifacts" not in logger.options
    assert logger.hyperparameters == {"seed": 3, "student": {"epochs": 8}, "stage": "student", "network": "kegnet"}


def test_wandb_is_offline_without_a_key(wandb_options: Any) -> None:
    assert not has_wandb_key()
    assert wandb_options().options["offline"] is True


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_wandb_is_online_with_a_key(monkeypatch: pytest.MonkeyPatch, wandb_options: Any, variable: str) -> None:
    monkeypatch.setenv(variable, "0" * 40)
    assert has_wandb_key()
    assert "offline" not in wandb_options().options


@pytest.mark.parametrize(("mine", "known"), [(True, True), (False, False)])
def test_wandb_key_in_netrc(tmp_path: Path, mine: bool, known: bool, wandb_options: Any) -> None:
    machine = urlparse(str(wandb.Settings().base_url)).hostname if mine else "example.org"
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine {machine} login user password {'0' * 40}\n")
    netrc.chmod(0o600)
    assert has_wandb_key() is known
    assert ("offline" in wandb_options().options) is not known


def test_wandb_key_of_a_server_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine wandb.example.org login user password {'0' * 40}\n")
    netrc.chmod(0o600)
    assert has_wandb_key()


def test_damaged_netrc_is_no_key(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine")
    assert not has_wandb_key()


def test_empty_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_wandb_key()


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_wandb_mode_is_the_users_decision(monkeypatch: pytest.MonkeyPatch, mode: str, wandb_options: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert "offline" not in wandb_options().options


def test_online_without_a_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"wandb login.*kept offline if there is no key"):
        _loggers({"wandb": STAGES}, tmp_path, []).make("student", "kegnet", tmp_path / "stage")


def test_wandb_is_asked_for_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        _loggers({"csv": CSV, "wandb": WANDB}, tmp_path, [])
    _loggers({"csv": CSV}, tmp_path, [])


def test_offline_in_the_configuration_is_the_users_decision(wandb_options: Any) -> None:
    assert wandb_options(offline=False).options["offline"] is False


def test_other_loggers_get_their_own_arguments_alone(tmp_path: Path) -> None:
    (logger,) = _make({"mine": {"_target_": "tests.unit.pipeline.test_loggers.Recorder", "size": 3}}, tmp_path)
    assert isinstance(logger, Recorder)
    assert logger.options == {"size": 3}
    assert logger.hyperparameters["seed"] == 3


def test_every_stage_has_a_wandb_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    loggers = _loggers({"wandb": STAGES}, tmp_path)
    seen = []
    for stage in ("teacher", "student"):
        (logger,) = loggers.make(stage, stage, tmp_path / stage)
        logger.log_metrics({"train/loss": 0.5}, step=0)
        seen.append(logger.experiment)
        loggers.finish_stage(_stage(tmp_path / stage, stage), [])
        with pytest.raises(Exception, match="finished"):
            seen[-1].log({"train/loss": 0.5})
    assert seen[0].id != seen[1].id


def test_fits_of_one_stage_share_a_run_and_their_metrics_have_their_names(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    loggers = _loggers({"wandb": STAGES}, tmp_path)
    pair = [loggers.make("generators", "generators", tmp_path)[0] for _ in range(2)]
    for value, logger in enumerate(pair):
        logger.log_metrics({f"generator_{value}/train/loss": float(value)}, step=10)
    first, second = (logger.experiment for logger in pair if isinstance(logger, WandbLogger))
    assert first is second and first.name == "generators · digits option1, seed 3"
    assert (first.summary["generator_0/train/loss"], first.summary["generator_1/train/loss"]) == (0, 1)
    loggers.finish_stage(_stage(tmp_path / "stage", "generators"), [])
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


def test_a_stage_that_was_broken_off_goes_on_with_its_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    loggers, ids = _loggers({"wandb": STAGES}, tmp_path), []
    for _ in range(2):
        (logger,) = loggers.make("student", "kegnet", tmp_path / "stage")
        ids.append(logger.experiment.id)
        assert logger._wandb_init["resume"] == "allow"
        loggers.finish(None)
    (other,) = loggers.make("student", "kegnet", tmp_path / "anew")
    assert ids[0] == ids[1] != other.experiment.id
    loggers.finish(None)


def test_a_server_that_does_not_answer_makes_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / "run").mkdir()
    told: list[str] = []
    quick = STAGES | {"settings": {"_target_": "wandb.Settings", "silent": True, "init_timeout": 2}}
    loggers = _loggers({"wandb": quick}, tmp_path, told)
    for stage in ("teacher", "student"):
        (logger,) = loggers.make(stage, stage, tmp_path / stage)
        logger.log_metrics({"train/loss": 0.5}, step=0)
        assert logger.experiment.offline
        loggers.finish_stage(_stage(tmp_path / stage, stage), [])
    assert len(told) == 1, "asked once"
    assert 1 < loggers.waited < 20, "which the stage's seconds leave out"
    assert "W&B does not respond" in told[0] and "wandb sync" in told[0]
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2


class _Online:
    """Stands for a run on the server, which no test can reach."""

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self.used: list[Any] = []
        self.logged: list[Any] = []

    def use_artifact(self, artifact: Any) -> None:
        assert not self.offline, "the client refuses it"
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append(artifact)


@pytest.mark.parametrize(("offline", "used"), [(False, False), (False, True), (True, True)])
def test_artifacts_have_their_lineage(tmp_path: Path, offline: bool, used: bool) -> None:
    stage, parents = _stage(tmp_path / "stage"), [_stage(tmp_path / name, name) for name in ("teacher", "evaluation")]
    run = _Online(offline)
    record_artifact(run, stage, parents, used=used)
    (artifact,) = run.used if used and not offline else run.logged
    assert (artifact.name, artifact.type) == ("student-0123", "model")
    assert artifact.metadata["parents"] == {"teacher": "teacher-0123"}
    assert list(artifact.manifest.entries) == ["network.safetensors"]
    assert artifact.manifest.entries["network.safetensors"].local_path == str(stage.folder / "network.safetensors")
    assert len(run.used) + len(run.logged) == 1


def test_objects_are_made_only_where_wandb_takes_them(tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        raise AssertionError("nobody takes it")

    _loggers({"csv": CSV}, tmp_path).show("student", "kegnet", tmp_path, make)


def test_nothing_to_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    loggers = _loggers({"csv": CSV}, tmp_path)
    with loggers.running():
        loggers.finish_stage(_stage(tmp_path / "stage"), [])
        loggers.finish({})
    assert "wandb" not in sys.modules, "W&B was imported to close it"


def test_without_a_home_wandb_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(UserError, match=r"a home folder .* Set HOME to a writable folder"):
        _loggers({"wandb": WANDB}, tmp_path)
    _loggers({"csv": CSV}, tmp_path)


def test_the_users_mode_group_and_identifier_of_wandb_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "RUN_GROUP": "mine", "RUN_ID": "abc"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    runs = []
    for specification, sweep in ((STAGES, None), (WANDB, None), (WANDB, "sweep")):
        loggers = _loggers({"wandb": specification}, tmp_path, sweep=sweep)
        with loggers.running():
            (logger,) = loggers.make("teacher", "teacher", tmp_path / "teacher")
            assert isinstance(logger, WandbLogger | Namespaced)
            runs.append((logger.experiment.id, logger.experiment.group, logger.experiment.offline))
    assert runs == [("abc-teacher", "mine", True), ("abc", "mine", True), ("abc-digits-0123", "mine", True)]
    assert os.environ["WANDB_MODE"] == "offline"


class Kept(DummyLogger):
    """Keeps what it is given."""

    rows: ClassVar[list[tuple[dict[str, float], int]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override]
        self.rows.append((metrics, step))


def test_curves_of_other_processes_reach_the_loggers_of_rank_0(tmp_path: Path) -> None:
    loggers = _loggers({"csv": CSV, "kept": {"_target_": f"{__name__}.Kept"}}, tmp_path)
    files = loggers.of_files()
    assert [tracker.key for tracker in files._trackers] == ["csv"]
    for epoch in range(2):  # another process, and its second attempt
        (logger,) = files.make("generators", "generators", tmp_path, files="generator_1")
        logger.log_metrics({"generator_1/train/loss": 2.0 - epoch, "epoch": epoch}, 10 * epoch)
        logger.save()
    loggers.pass_on("generators", tmp_path, ["generator_1", "generator_2"])
    assert Kept.rows == [
        ({"generator_1/train/loss": 2.0, "epoch": 0.0}, 0),
        ({"generator_1/train/loss": 1.0, "epoch": 1.0}, 10),
    ]


def test_a_sweep_agent_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "SWEEP_ID": "s1", "RUN_ID": "abc"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with pytest.raises(ConfigError, match=r"Set logger.wandb.runs=pipeline"):
        _loggers({"wandb": STAGES}, tmp_path)
    loggers = _loggers({"wandb": WANDB}, tmp_path)
    with loggers.running():
        made = [loggers.make(stage, stage, tmp_path / stage)[0] for stage in ("teacher", "generators")]
        assert {logger.experiment.id for logger in made if isinstance(logger, Namespaced)} == {"abc"}


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (WANDB | {"runs": "each"}, r"`logger.mine.runs` to be pipeline or stages, but got 'each'"),
        (WANDB | {"nots": "x"}, r"in `logger.mine`, but got nots\. Remove it"),
        (TENSORBOARD | {"max_queu": 3}, r"in `logger.mine`, but got max_queu\. Remove it"),
        (CSV | {"flush": 3}, r"`logger.mine` to be built from its settings, but got: .*'flush'"),
        ({"_target_": "nowhere.Logger"}, r"`logger.mine._target_` to be a Lightning logger, but nowhere.Logger"),
        (
            {"_target_": "tests.unit.pipeline.test_loggers.Sized", "colour": "x"},
            r"arguments of tests.unit.pipeline.test_loggers.Sized, but got: missing a required argument: 'size'",
        ),
    ],
    ids=str,
)
def test_a_wrong_setting_is_an_error_before_anything_trains(
    tmp_path: Path, specification: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message), _loggers({"mine": specification}, tmp_path).running():
        raise AssertionError("something trains")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"Expected the package {name} for its logger.*pip install"):
        _loggers({name: _group(f"logger={name}")[name]}, tmp_path)


def test_an_interrupted_run_is_continued_by_one_process_only(tmp_path: Path) -> None:
    path = tmp_path / "store" / "p.wandb.json"
    first = KeptRun(path)
    identifier = first.start()
    assert (first.begin("teacher"), first.begin("teacher")) == (True, False)
    at_the_same_time = KeptRun(path)
    assert at_the_same_time.start() != identifier
    at_the_same_time.close(success=True)
    first.close(success=False)
    second = KeptRun(path)
    assert second.start() == identifier
    assert (second.begin("teacher"), second.begin("generators")) == (False, True)
    second.close(success=True)
    third = KeptRun(path)
    assert third.start() != identifier and third.begin("teacher")
    third.close(success=True)
    assert not list(path.parent.iterdir())
