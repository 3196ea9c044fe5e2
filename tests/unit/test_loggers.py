"""Loggers of a stage."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.loggers
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from kegnet_pl.loggers import finish_loggers, has_wandb_key, make_loggers

CSV = {"_target_": "pytorch_lightning.loggers.CSVLogger"}
TENSORBOARD = {"_target_": "pytorch_lightning.loggers.TensorBoardLogger"}
WANDB = {"_target_": "pytorch_lightning.loggers.WandbLogger", "project": "kegnet_pl", "entity": None, "tags": []}


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
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    _end_wandb()
    yield
    _end_wandb()


def _make(specifications: dict[str, Any], folder: Path, stage: str = "student", name: str = "kegnet") -> list[Logger]:
    return make_loggers(
        specifications,
        stage=stage,
        name=name,
        folder=folder / "stage",
        run_folder=folder / "run",
        group="digits-0123",
        hyperparameters={"seed": 3, "student": {"epochs": 8}},
    )


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


def test_tensorboard_starts_with_settings(tmp_path: Path) -> None:
    (logger,) = _make({"tensorboard": TENSORBOARD}, tmp_path)
    assert isinstance(logger, TensorBoardLogger)
    logger.log_metrics({"train/loss": 0.5}, step=0)
    logger.save()
    logger.finalize("success")
    (events,) = (tmp_path / "stage" / "logs" / "kegnet").rglob("events.out.tfevents.*")
    assert events.stat().st_size > 0
    (settings,) = (tmp_path / "stage").rglob("hparams.yaml")
    assert "epochs: 8" in settings.read_text()


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

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        self.hyperparameters = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


@pytest.fixture
def wandb_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what the W&B logger would be made with."""

    def make(**specification: Any) -> Recorder:
        monkeypatch.setattr(pytorch_lightning.loggers, "WandbLogger", Recorder)
        (logger,) = _make({"wandb": WANDB | specification}, tmp_path)
        assert isinstance(logger, Recorder)
        return logger

    return make


def test_wandb_has_a_run_a_stage_in_one_group(tmp_path: Path, wandb_options: Any) -> None:
    logger = wandb_options()
    expected = {
        "project": "kegnet_pl", "entity": None, "tags": [], "save_dir": str(tmp_path / "run"),
        "name": "student/kegnet", "group": "digits-0123", "job_type": "student",
    }  # fmt: skip
    assert {key: logger.options[key] for key in expected} == expected
    assert logger.hyperparameters == {"seed": 3, "student": {"epochs": 8}}


def test_wandb_is_offline_without_a_key(wandb_options: Any) -> None:
    assert not has_wandb_key()
    assert wandb_options().options["offline"] is True


def test_wandb_is_online_with_a_key(monkeypatch: pytest.MonkeyPatch, wandb_options: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()
    assert "offline" not in wandb_options().options


@pytest.mark.parametrize(("machine", "known"), [("api.wandb.ai", True), ("example.org", False)])
def test_wandb_key_in_netrc(tmp_path: Path, machine: str, known: bool, wandb_options: Any) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine {machine} login user password {'0' * 40}\n")
    netrc.chmod(0o600)
    assert has_wandb_key() is known
    assert ("offline" in wandb_options().options) is not known


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


def test_offline_in_the_configuration_is_the_users_decision(wandb_options: Any) -> None:
    assert wandb_options(offline=False).options["offline"] is False


def test_other_loggers_get_their_own_arguments_alone(tmp_path: Path) -> None:
    (logger,) = _make({"mine": {"_target_": "tests.unit.test_loggers.Recorder", "size": 3}}, tmp_path)
    assert isinstance(logger, Recorder)
    assert logger.options == {"size": 3}
    assert logger.hyperparameters["seed"] == 3


def test_every_stage_has_a_wandb_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    seen = []
    for stage in ("teacher", "student"):
        (logger,) = _make({"wandb": WANDB}, tmp_path, stage, stage)
        logger.log_metrics({"train/loss": 0.5}, step=0)
        seen.append(logger.experiment)
        finish_loggers()
        with pytest.raises(Exception, match="finished"):
            seen[-1].log({"train/loss": 0.5})
    assert seen[0].id != seen[1].id


def test_fits_that_run_together_have_wandb_runs_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    loggers = [_make({"wandb": WANDB}, tmp_path, "generators", f"generator_{i}")[0] for i in range(2)]
    for value, logger in enumerate(loggers):
        logger.log_metrics({"train/loss": float(value)}, step=10)
    first, second = (logger.experiment for logger in loggers)
    assert (first.name, second.name) == ("generators/generator_0", "generators/generator_1")
    assert (first.summary["train/loss"], second.summary["train/loss"]) == (0, 1)
    finish_loggers()
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2


def test_a_wandb_run_without_a_key_is_written_to_disk(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (logger,) = _make({"wandb": WANDB}, tmp_path)
    run = logger.experiment
    logger.log_metrics({"train/loss": 0.5}, step=0)
    assert (run.offline, run.job_type, run.group, run.name) == (True, "student", "digits-0123", "student/kegnet")
    assert run.config["student"] == {"epochs": 8}
    finish_loggers()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))


def test_nothing_to_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    finish_loggers()
    assert "wandb" not in sys.modules, "W&B was imported to close it"
