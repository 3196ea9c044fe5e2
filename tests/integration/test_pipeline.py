"""The stages in a row, and what the store finds again."""

import html
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import nn

import kegnet_pl
from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.quantization import OnnxNetwork
from kegnet_pl.compression import TuckerLayer
from kegnet_pl.compression.automatic import THREE_LAYERS
from kegnet_pl.data import DigitsDataModule, FilesDataModule, Split
from kegnet_pl.networks import LeNet5
from kegnet_pl.networks.foreign import FILE_MODULE
from kegnet_pl.pipeline.context import run_fingerprint
from kegnet_pl.pipeline.run import run
from kegnet_pl.pipeline.sample_monitor import SAMPLES
from kegnet_pl.pipeline.stages.samples import are_kept, describe_student_source
from kegnet_pl.pipeline.teacher_card import expand_card
from kegnet_pl.reporting.figures import read_curves
from kegnet_pl.reporting.results import TRIAL, Row
from kegnet_pl.runtime.errors import ConfigError, DivergedError, StoreError, UserError, WeightsError
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SyntheticSource
from kegnet_pl.training import GeneratorModule
from kegnet_pl.training.base import TrainingModule
from kegnet_pl.training.student_module import StudentModule
from tests.integration.conftest import (
    FAST,
    FORKS,
    PLAIN,
    Prepared,
    Refused,
    configure,
    copy_store,
    go,
    kinds,
    no_pictures,
    no_training,
    stages,
)


class NormNet(nn.Module):
    """A small network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, stride=4)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


NORM_NET = ("teacher=custom", f"teacher.network._target_={__name__}.NormNet", "compression.target=1.2")
OTHER_STUDENT = (
    "student=lenet5",
    f"student.network._target_={__name__}.NormNet",
    "~student.network.channels",
    "~student.network.classes",
)


def teacher_file(folder: Path) -> Path:
    """Return the weights of the teacher in the store of a run's folder."""
    (file,) = (folder / "store").glob("teacher-*/network.safetensors")
    return file


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "run" / "results.json").read_text())
    return rows


def test_rows_and_artefacts(tmp_path: Path) -> None:
    rows = go(tmp_path, draw=True)
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Uniform", "T+Normal", "T+KegNet"]
    teacher, compressed, *students = rows
    assert teacher["compression_ratio"] == 1 and teacher["parameters"] == 61_706
    for row in (compressed, *students):
        assert row["teacher_accuracy"] == teacher["accuracy"]
        assert row["compression_ratio"] == pytest.approx(61_706 / row["parameters"], abs=1e-4)
        assert row["macs"] < row["teacher_macs"] == teacher["macs"]
    assert {row["selection"] for row in students} == {"last"}
    assert set(students[-1]["stage_seconds"]) == {"teacher", "compression", "generators", "student", "evaluation"}
    assert "generators" not in students[0]["stage_seconds"], "noise needs no generators"

    folder = tmp_path / "store" / f"student-{students[-1]['fingerprint']}"
    student = load_network(folder)
    assert sum(parameter.numel() for parameter in student.parameters()) == students[-1]["parameters"]
    assert student(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    curves = sorted(path.parent.parent.name for path in (tmp_path / "store").glob("generators-*/logs/*/*/metrics.csv"))
    assert curves == ["generators", "generators"], "a version for each fit"


def test_second_run_trains_nothing(tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_store(prepared(), tmp_path)
    first = read_rows(prepared())
    before = stages(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a trainer was started")

    monkeypatch.setattr(Trainer, "fit", refuse)
    second = go(tmp_path, "resume=require", "trainer.log_every_n_steps=7", "callbacks.resume.every_n_epochs=2")
    assert stages(tmp_path) == before
    assert [row["accuracy"] for row in second] == [row["accuracy"] for row in first]
    assert [row["seconds"] for row in second] == [row["seconds"] for row in first]


@pytest.mark.parametrize(
    ("override", "rebuilt"),
    [
        ("student.optimizer.lr=0.002", ["evaluation", "student"]),
        ("generator.optimizer.lr=0.002", ["evaluation", "generators", "student"]),
        ("logger=tensorboard", []),
        ("compression=fraction", ["compression", "evaluation", "evaluation", "student"]),
        (
            "teacher.optimizer.lr=0.002",
            ["compression", "evaluation", "evaluation", "evaluation", "generators", "student", "teacher"],
        ),
    ],
)
def test_a_change_rebuilds_the_stage_and_its_children_only(
    tmp_path: Path, prepared: Prepared, override: str, rebuilt: list[str]
) -> None:
    copy_store(prepared("sources=[kegnet]", train=False), tmp_path)
    before = stages(tmp_path)
    go(tmp_path, "sources=[kegnet]", override, train=False)
    after = stages(tmp_path)
    assert {name: after[name] for name in before} == before
    assert kinds(set(after) - set(before)) == rebuilt


LONG = ("sources=[kegnet]", "teacher.epochs=3", "generator.epochs=3", "student.epochs=3")


@contextmanager
def interrupted(kind: str, epoch: int, index: int = 0) -> Iterator[None]:
    """Raise an error where an epoch of a module of a kind begins."""
    start_epoch = TrainingModule.on_train_epoch_start

    def crash(module: TrainingModule) -> None:
        if (type(module).__name__, module.current_epoch, module.index) == (kind, epoch, index):
            raise RuntimeError("the power went out")
        start_epoch(module)

    with mock.patch.object(TrainingModule, "on_train_epoch_start", crash), pytest.raises(RuntimeError, match="power"):
        yield


def copy_parents(source: Path, target: Path, stage: str) -> None:
    """Copy a store without a stage and those that depend on it."""
    copy_store(source, target)
    order = ["teacher", "compression", "generators", "student", "evaluation"]
    for name in stages(target):
        if order.index(name.split("-")[0]) >= order.index(stage):
            shutil.rmtree(target / "store" / name)


def assert_same_weights(first: Path, second: Path) -> None:
    """Check that two stores hold the same stages with the same bits."""
    assert set(stages(first)) == set(stages(second))
    for name in stages(first):
        for file in (first / "store" / name).glob("*.safetensors"):
            mine, other = load_file(file), load_file(second / "store" / name / file.name)
            assert mine.keys() == other.keys()
            for key, value in mine.items():
                assert torch.equal(value, other[key]), f"{name}/{file.name}: {key}"


@pytest.mark.parametrize(
    ("stage", "kind", "override"),
    [
        ("teacher", "TeacherModule", "data=digits"),
        ("generators", "GeneratorModule", "data=digits"),
        ("generators", "GeneratorModule", "generator.parallel=vmap"),
        ("student", "StudentModule", "data=digits"),
        ("student", "StudentModule", "student.selection=synthetic"),
    ],
)
def test_resumed_stage_continues_to_the_same_bits(
    tmp_path: Path, prepared: Prepared, stage: str, kind: str, override: str
) -> None:
    whole = prepared(*LONG, override)
    copy_parents(whole, tmp_path, stage)
    with interrupted(kind, 2):
        go(tmp_path, *LONG, override)
    assert stage not in kinds(stages(tmp_path))
    go(tmp_path, *LONG, override)
    assert_same_weights(whole, tmp_path)


def test_finished_generator_of_an_interrupted_stage_is_not_trained_again(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(*LONG, "data=digits")
    copy_parents(whole, tmp_path, "generators")
    with interrupted("GeneratorModule", 1, index=1):
        go(tmp_path, *LONG)
    trained: list[tuple[int, int]] = []
    start_epoch = TrainingModule.on_train_epoch_start

    def watch(module: TrainingModule) -> None:
        if isinstance(module, GeneratorModule):
            trained.append((module.index, module.current_epoch))
        start_epoch(module)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", watch)
    go(tmp_path, *LONG)
    assert trained == [(1, 1), (1, 2)]
    assert_same_weights(whole, tmp_path)


def _files(folder: Path, stage: str) -> set[str]:
    (found,) = (folder / "store").glob(f"{stage}-*")
    return {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}


def test_generators_together_leave_what_one_by_one_leaves(tmp_path: Path, prepared: Prepared) -> None:
    """The same files, nearly the same weights (rounding differs), so another fingerprint."""
    rows = {}
    for training in ("vmap", "sequential", "auto"):
        copy_parents(prepared(), tmp_path / training, "generators")
        more = ["sources=[kegnet]", f"generator.parallel={training}"]
        rows[training] = go(tmp_path / training, *more, train=training != "auto")
    logged = {"logs/generators/version_1/metrics.csv", "logs/generators/version_1/hparams.yaml"}  # of the second fit
    assert _files(tmp_path / "vmap", "generators") | logged == _files(tmp_path / "sequential", "generators")
    marks = {name: next(stage for stage in stages(tmp_path / name) if stage.startswith("generators")) for name in rows}
    assert marks["auto"] == marks["sequential"] != marks["vmap"]
    manifests = {
        name: json.loads((tmp_path / name / "store" / marks[name] / "manifest.json").read_text()) for name in rows
    }
    mine, other = (manifests[name]["metrics"]["generators"] for name in ("vmap", "sequential"))
    assert mine.keys() == other.keys() == {"0", "1"}
    for index in mine:
        assert mine[index] == pytest.approx(other[index], rel=1e-3)
    assert mine["0"] != mine["1"]


def test_one_generator_is_never_stacked(tmp_path: Path) -> None:
    one = ["sources=[kegnet]", "generator.count=1"]
    rows = [go(tmp_path, *one, f"generator.parallel={how}", train=False) for how in ("vmap", "sequential")]
    assert rows[0][-1]["fingerprint"] == rows[1][-1]["fingerprint"]


@pytest.mark.parametrize(
    ("override", "differs"),
    [
        ("student.optimizer.lr=0.002", True),
        ("seed=3", True),
        ("trainer.precision=bf16-mixed", True),
        ("trainer.devices=2", True),
        ("+trainer.gradient_clip_val=0.1", True),
        ("+callbacks.stop._target_=pytorch_lightning.callbacks.Timer", True),
        ("data.root=elsewhere", False),
        ("logger=wandb", False),
        ("store=elsewhere", False),
        ("resume=never", False),
        ("trainer.log_every_n_steps=7", False),
        ("callbacks.resume.every_n_epochs=2", False),
    ],
)
def test_what_makes_another_group_of_runs(override: str, differs: bool) -> None:
    first, second = (RunSettings.from_config(configure(FAST, "data=mnist", *more)) for more in ([], [override]))
    assert first != second
    assert (run_fingerprint(first) != run_fingerprint(second)) is differs


def test_students_of_several_seeds_may_share_generators(tmp_path: Path, prepared: Prepared) -> None:
    given = f"teacher.weights={teacher_file(prepared())}"
    first = go(tmp_path, "sources=[kegnet]", given, train=False)
    second = go(tmp_path, "sources=[kegnet]", given, "seed=1", "generator.seed=0", train=False)
    assert first[-1]["fingerprint"] != second[-1]["fingerprint"]
    assert kinds(stages(tmp_path)).count("generators") == 1
    go(tmp_path, "sources=[kegnet]", given, "seed=1", train=False)
    assert kinds(stages(tmp_path)).count("generators") == 2


def test_noise_may_have_a_budget_of_its_own(tmp_path: Path, prepared: Prepared) -> None:
    plain = read_rows(prepared())
    copy_store(prepared(), tmp_path)
    more = ["student.baselines.samples=64", "student.baselines.epochs=1", "student.baselines.lr=0.01"]
    own = go(tmp_path, "sources=[normal,kegnet]", *more)
    assert [row["learning_rate"] for row in own] == [None, None, 0.01, plain[-1]["learning_rate"]]
    assert [row["samples"] for row in own] == [None, None, 64, 128]
    assert own[-1]["fingerprint"] == plain[-1]["fingerprint"], "KegNet is not concerned"
    student = tmp_path / "store" / f"student-{own[2]['fingerprint']}" / "manifest.json"
    settings = json.loads(student.read_text())["config"]["student"]
    assert (settings["samples"], settings["epochs"], settings["optimizer"]["lr"]) == (64, 1, 0.01)
    assert "baselines" not in settings


def test_short_trainings_choose_a_learning_rate(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_store(prepared(), tmp_path)
    (row,) = [row for row in go(tmp_path, "sources=[uniform]", "student.optimizer.lr=auto") if row["samples"]]
    (chosen,) = re.findall(
        r"student \(.*\): learning rate (\S+), by short trainings with 0\.0003 \(loss ", capsys.readouterr().out
    )
    assert row["learning_rate"] == float(chosen)
    given = go(tmp_path, "sources=[uniform]", f"student.optimizer.lr={chosen}")[-1]
    assert given["fingerprint"] != row["fingerprint"]
    one, other = (load_file(tmp_path / "store" / f"student-{each['fingerprint']}" / "network.safetensors")
                  for each in (row, given))  # fmt: skip
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_rows_tell_recipe_and_entropy_of_labels(tmp_path: Path, prepared: Prepared) -> None:
    rows = go(copy_store(prepared(), tmp_path), "sources=[uniform]", "recipe=fast", "resume=require")
    assert {row["recipe"] for row in rows} == {"fast"}
    assert [row["label_entropy"] is None for row in rows] == [True, True, False]
    assert 0 < rows[-1]["label_entropy"] < 2.303


def test_fresh_samples_are_counted_as_drawn(tmp_path: Path, prepared: Prepared) -> None:
    rows = go(
        copy_store(prepared(), tmp_path),
        "sources=[normal]",
        "student.resample_each_epoch=true",
        "student.norm=frozen",
        "student.sampling_norm=batch",
    )
    assert rows[-1]["costs"]["samples_made"] == 2 * 128, "two epochs"
    assert all(seconds >= 0 for seconds in rows[-1]["costs"]["seconds"].values())


def test_a_student_of_samples_on_a_disk_is_the_one_of_samples_in_memory(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    name = f"student-{read_rows(prepared())[-2]['fingerprint']}"
    shutil.rmtree(copy_store(prepared(), tmp_path) / "store" / name)
    rows = go(tmp_path, "sources=[normal]", "student.memory=1e-6")
    printed = "".join(capsys.readouterr().out.split())  # a long path is broken into lines
    assert f"isinatemporaryfilein{tmp_path / 'store'}:0.0" in printed
    assert rows[-1]["fingerprint"] == name.removeprefix("student-"), "the budget changes the fingerprint"
    weights = [(folder / "store" / name / "network.safetensors").read_bytes() for folder in (prepared(), tmp_path)]
    assert weights[0] == weights[1]
    assert {path.name for path in (tmp_path / "store").iterdir()} - {*stages(tmp_path)} == {".locks"}


def test_jitter_concerns_generators_alone(tmp_path: Path, prepared: Prepared) -> None:
    shaken = go(copy_store(prepared(), tmp_path), "student.noise_std=1.0")
    by = {row["method"]: row for row in read_rows(prepared())}, {row["method"]: row for row in shaken}
    assert by[0]["T+KegNet"]["label_entropy"] != by[1]["T+KegNet"]["label_entropy"]
    for method in ("T+Uniform", "T+Normal"):
        assert by[0][method]["fingerprint"] == by[1][method]["fingerprint"]


@pytest.mark.parametrize(
    ("method", "override"),
    [
        ("normal", "student.sampling_norm=batch"),
        ("kegnet", "student.validation_samples=64"),
        ("kegnet", "student.feature_distillation.layers=[conv1]"),
        ("kegnet", "generator.objective.statistics.term._target_=kegnet_pl.losses.DecoderLoss"),
    ],
)  # fmt: skip
def test_what_a_result_does_not_depend_on_rebuilds_nothing(
    tmp_path: Path, prepared: Prepared, method: str, override: str
) -> None:
    # No training: a stage that is built anew is a stage more.
    weightless = ["student.feature_distillation.weight=0", "generator.objective.statistics.weight=0"]
    copy_store(prepared(*weightless, train=False), tmp_path)
    before = stages(tmp_path)
    go(tmp_path, f"sources=[{method}]", *weightless, override, train=False)
    assert stages(tmp_path) == before


def test_a_teacher_of_other_data_is_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path, "sources=[]", train=False)
    read = DigitsDataModule.read

    def fewer(self: DigitsDataModule) -> dict[str, Split]:
        return {part: split[: len(split) // 2] if part == "train" else split for part, split in read(self).items()}

    monkeypatch.setattr(DigitsDataModule, "read", fewer)
    go(tmp_path, "sources=[]", train=False)
    assert kinds(stages(tmp_path)).count("teacher") == 2


def test_hints_are_counted_and_named_layers_must_be_there(tmp_path: Path, prepared: Prepared) -> None:
    copy_store(prepared(), tmp_path)
    row = go(
        tmp_path,
        "sources=[normal]",
        "student.feature_distillation.weight=1",
        "student.feature_distillation.layers=[conv*]",
    )[-1]
    assert row["costs"]["teacher_forwards"] == 128 + 2 * 128, "labels, and two epochs"
    assert row["costs"]["samples_made"] == 128
    with pytest.raises(ConfigError, match="a layer that matches 'conv9'"):
        go(
            tmp_path,
            "sources=[normal]",
            "student.feature_distillation.weight=1",
            "student.feature_distillation.layers=[conv9]",
        )


@pytest.mark.parametrize("selection", ["last", "synthetic"])
def test_costs_are_told_apart(prepared: Prepared, selection: str) -> None:
    tmp_path = prepared() if selection == "last" else prepared("student.selection=synthetic")
    rows = read_rows(tmp_path)
    config = configure(FAST)
    generator, student = config["generator"], config["student"]
    trained = generator["count"] * generator["epochs"] * generator["steps_per_epoch"] * generator["batch_size"]
    sheet = 100 * 10 * generator["count"] + 5 * 11  # and the walks
    watched = generator["count"] * generator["epochs"] * 10 * SAMPLES
    drawn = student["samples"] + (student["validation_samples"] if selection == "synthetic" else 0)
    teacher, _, uniform, _, kegnet = (row["costs"] for row in rows)
    assert (teacher["samples_made"], teacher["teacher_forwards"]) == (0, 539)
    assert (uniform["samples_made"], uniform["teacher_forwards"]) == (drawn, drawn)
    assert kegnet["samples_made"] == kegnet["teacher_forwards"] == trained + watched + sheet + drawn
    for work in ("teacher_training", "compression", "generator_training", "drawing", "labelling", "student_training"):
        assert kegnet["seconds"][work] > 0, work
    assert kegnet["seconds"]["evaluation"] > 0
    assert uniform["seconds"]["generator_training"] == 0
    assert kegnet["peak_memory"]["host_mb"] > 100 and kegnet["peak_memory"]["device_mb"] == 0
    stage = tmp_path / "store" / f"student-{rows[-1]['fingerprint']}" / "manifest.json"
    seconds = json.loads(stage.read_text())["costs"]["seconds"]
    assert (seconds["evaluation"] > 0) is (selection == "synthetic"), "validation between epochs is no training"
    assert sum(seconds.values()) == pytest.approx(json.loads(stage.read_text())["seconds"], abs=0.02)


def _go_until_killed(folder: Path) -> None:
    """Run the pipeline until the second epoch of a generator begins, and end the process without a word."""

    def stop(module: TrainingModule) -> None:
        if isinstance(module, GeneratorModule) and module.current_epoch == 1:
            os._exit(9)

    TrainingModule.on_train_epoch_start = stop  # type: ignore[method-assign]
    go(folder, "sources=[kegnet]")


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_costs_of_an_interrupted_stage_are_not_forgotten(tmp_path: Path, prepared: Prepared, end: str) -> None:
    copy_parents(prepared(), tmp_path, "generators")
    if end == "crash":
        with interrupted("GeneratorModule", 1):
            go(tmp_path, "sources=[kegnet]")
    else:
        process = FORKS.Process(target=_go_until_killed, args=(tmp_path,))
        process.start()
        process.join(300)
        assert process.exitcode == 9
    (bill,) = (tmp_path / "store").glob(".generators-*/costs.json")
    spent = json.loads(bill.read_text())
    assert 0 < spent["seconds"]["generator_training"] <= spent["total"]
    go(tmp_path, "sources=[kegnet]")
    (path,) = (tmp_path / "store").glob("generators-*/manifest.json")
    config = configure(FAST)["generator"]
    epoch = config["steps_per_epoch"] * config["batch_size"] + 10 * SAMPLES
    made = config["count"] * (config["epochs"] * epoch + 100 * 10) + 5 * 11
    manifest = json.loads(path.read_text())
    assert manifest["costs"]["samples_made"] == made
    assert manifest["seconds"] > spent["total"]


def test_seeds_differ_and_repeat(tmp_path: Path, prepared: Prepared) -> None:
    go(tmp_path, "sources=[kegnet]")
    assert_same_weights(prepared("sources=[kegnet]"), tmp_path)
    go(tmp_path, "sources=[kegnet]", "seed=1", train=False)
    drawn = [load_file(file) for file in (tmp_path / "store").glob("generators-*/generator_0.safetensors")]
    key = next(iter(drawn[0]))
    assert len(drawn) == 2 and not torch.equal(drawn[0][key], drawn[1][key])


def test_batch_norm_learns_statistics_in_teacher_and_student(tmp_path: Path) -> None:
    """Networks come from disk in evaluation mode; Lightning does not change the mode it is given."""
    teacher, student = _teacher_and_student(tmp_path, "sources=[normal]")
    assert not torch.equal(teacher["norm1.running_mean"], torch.zeros(4))
    assert not torch.equal(student["norm1.running_mean"], teacher["norm1.running_mean"])
    assert student["norm1.num_batches_tracked"] > teacher["norm1.num_batches_tracked"] > 0


@pytest.mark.parametrize(
    "override", ["+trainer.gradient_clip_val=0.1", "+callbacks.stop._target_=pytorch_lightning.callbacks.Timer"]
)
def test_a_setting_that_may_change_the_result_makes_other_stages(
    tmp_path: Path, prepared: Prepared, override: str
) -> None:
    second = go(tmp_path, "sources=[normal]", override, train=False)
    assert {row["fingerprint"] for row in read_rows(prepared())}.isdisjoint(row["fingerprint"] for row in second)


def test_a_damaged_stage_is_refused_or_set_aside_and_built_again(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(prepared())
    copy_store(prepared(), tmp_path)
    stage = tmp_path / "store" / f"student-{rows[-1]['fingerprint']}"
    (stage / "network.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"damaged: network\.safetensors: No such file"):
        load_network(stage)
    with pytest.raises(StoreError, match=r"damaged .*Run the command with resume=auto"):
        go(tmp_path, "resume=require")
    go(tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert f"Warning: the stage {stage.name} is damaged" in said and f"renamed to .{stage.name}.damaged" in said
    assert_same_weights(prepared(), tmp_path)


def test_another_network_as_student(tmp_path: Path, prepared: Prepared) -> None:
    rows = go(copy_store(prepared(), tmp_path), "sources=[kegnet]", "student=lenet5")
    assert [row["method"] for row in rows] == ["teacher", "S", "S+KegNet"]
    assert rows[-1]["student"] == "LeNet5" and rows[-1]["compression_ratio"] == 1 and rows[-1]["compression"] is None


@pytest.mark.parametrize("selection", ["synthetic", "real"])
def test_selection_is_named(tmp_path: Path, prepared: Prepared, selection: str) -> None:
    copy_parents(prepared(), tmp_path, "generators")
    rows = go(tmp_path, "sources=[normal]", f"student.selection={selection}", "student.epochs=3")
    assert rows[-1]["selection"] == selection
    (student,) = (tmp_path / "store").glob("student-*")
    curve = [value for _, value in read_curves(student / "logs" / "normal")["val/accuracy"]]
    assert rows[-1]["epochs"] == len(curve) == 3
    assert rows[-1]["epoch"] == curve.index(max(curve)) + 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["student.norm=adapt", "student.feature_distillation.weight=1"],
            r"with batch norm for .*, but LeNet5 has none\. Set student\.norm=batch student\.feature.*custom/image",
        ),
        (
            [*NORM_NET[:2], "student=lenet5", "student.norm=adapt", "student.feature_distillation.weight=1"],
            r"LeNet5 has no .*Set student\.norm=batch student\.feature_distillation\.weight=0",
        ),
        (
            [*OTHER_STUDENT, "student.feature_distillation.weight=1", "student.feature_distillation.layers=[fc2]"],
            r"teacher's layers .* NormNet has no fc2\.",
        ),
        (
            [*OTHER_STUDENT, "student.norm=frozen"],
            r"statistics to keep .* NormNet has never seen a sample\. Set student\.norm=batch\.",
        ),
    ],
    ids=["teacher without batch norm", "student without batch norm", "no such layer", "no statistics"],
)
def test_layers_that_are_not_there_are_named_before_generators_train(
    tmp_path: Path, prepared: Prepared, overrides: list[str], message: str
) -> None:
    copy_parents(prepared(train=False), tmp_path, "generators")
    with pytest.raises(ConfigError, match=message):
        go(tmp_path, *overrides, train=False)
    assert "generators" not in kinds(stages(tmp_path))


def test_rows_tell_which_epoch_was_kept(tmp_path: Path) -> None:
    rows = go(tmp_path, "sources=[normal]", "student.epochs=2", "teacher.epochs=3")
    assert [(row["epochs"], row["epoch"]) for row in rows] == [(3, 3), (None, None), (2, 2)]


def test_without_any_real_data(tmp_path: Path, prepared: Prepared) -> None:
    shape = ["data=none", "data.input_shape=[1,32,32]", "data.classes=10"]
    rows = go(tmp_path, *shape, "sources=[kegnet]", f"teacher.weights={teacher_file(prepared())}")
    assert all(row["accuracy"] is None and row["test_set"] is None for row in rows)


def test_curves_are_written_without_a_logger(tmp_path: Path) -> None:
    go(tmp_path, "sources=[]", "logger=[]")
    (teacher,) = (tmp_path / "store").glob("teacher-*")
    assert (teacher / "logs" / "teacher" / "version_0" / "metrics.csv").exists()


def test_wrong_input_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Expected a weight file at"):
        go(tmp_path, f"teacher.weights={tmp_path / 'nowhere.pt'}")
    with pytest.raises(ConfigError, match=r"to accept samples of shape \(1, 32, 32\), but it failed"):
        go(tmp_path, "teacher.network.channels=3")
    with pytest.raises(ConfigError, match=r"generator=image makes images \('data\.input_shape"):
        go(tmp_path, "generator=dense")
    with pytest.raises(ConfigError, match=r"generator of 10 noise dimensions, .* has 4\. Set generator\.noise_dim=4"):
        go(tmp_path, "generator.network.noise_dim=4")
    with pytest.raises(ConfigError, match=r"to have 10 classes, as the data has, but it has 7\."):
        go(tmp_path, "teacher.network.classes=7")
    with pytest.raises(StoreError, match="resume=require"):
        go(tmp_path, "resume=require")
    with pytest.raises(ValueError, match="'conv9' matches none of: conv1, conv2"):
        go(tmp_path, "compression=evbmf", "compression.rules=[{layers: conv9, rank: 2}]")
    with pytest.raises(ValueError, match=r"between 1 and 16 for layer 'conv2' \(16 output channels\), but got 20"):
        go(tmp_path, "compression=evbmf", "compression.rules=[{layers: conv2, rank: {in: 2, out: 20}}]")


def test_a_stopped_run_keeps_finished_stages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches none of"):
        go(tmp_path, "compression=evbmf", "compression.rules=[{layers: conv9, rank: 2}]", train=False)
    assert kinds(stages(tmp_path)) == ["teacher"]


def test_a_stage_without_memory_is_a_sentence_and_goes_on(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*PLAIN, "sources=[normal]", "student.epochs=3"]

    def fail(module: TrainingModule, *_: Any) -> None:
        if module.current_epoch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(StudentModule, "on_train_epoch_start", fail)
        said = refused(FAST, *settings, f"store={tmp_path / 'store'}", "hydra.run.dir=run")
    assert "Error: Expected enough memory for the stage student" in said and "lower student.batch_size" in said
    before = stages(tmp_path)
    assert "student" not in kinds(before)
    began = []
    monkeypatch.setattr(StudentModule, "on_train_epoch_start", lambda module: began.append(module.current_epoch))
    go(tmp_path, *settings)
    assert began == [2], "the two epochs before are kept"
    assert before.items() <= stages(tmp_path).items()


def _teacher_and_student(folder: Path, *overrides: str) -> list[dict[str, torch.Tensor]]:
    """Return the weights of a network with batch norm and of its student."""
    rows = go(folder, *NORM_NET, *overrides)
    return [
        load_file(folder / "store" / f"{stage}-{row['fingerprint']}" / "network.safetensors")
        for stage, row in (("teacher", rows[0]), ("student", rows[-1]))
    ]


def test_norm_of_the_student(tmp_path: Path, prepared: Prepared) -> None:
    teacher, student = _teacher_and_student(tmp_path, "sources=[kegnet]", "student.norm=adapt")
    # Two epochs of one step move a scale by some thousandths, adapting it by much more.
    assert (student["norm1.weight"] - teacher["norm1.weight"]).abs().max() > 0.05
    with pytest.raises(ConfigError, match=r"Set student\.norm=batch"):
        go(copy_store(prepared(), tmp_path / "other"), "sources=[kegnet]", "student.norm=adapt")


@pytest.mark.filterwarnings("error:Found .* in eval mode")
def test_frozen_statistics_stay_and_nobody_is_warned_of_it(tmp_path: Path) -> None:
    teacher, student = _teacher_and_student(tmp_path, "sources=[normal]", "student.norm=frozen")
    kept = [name for name in teacher if "running" in name]
    assert len(kept) == 4
    for name in kept:
        torch.testing.assert_close(student[name], teacher[name], rtol=0, atol=0)
    assert (student["norm1.weight"] != teacher["norm1.weight"]).any(), "scales learn"


class Stripes(SyntheticSource):
    """Images of horizontal waves, as a source of the user's own."""

    title, color, marker, prior = "Stripes", "#008080", "s", "procedural"

    def __init__(self, input_shape: tuple[int, ...], amplitude: float = 1.0) -> None:
        super().__init__()
        self.input_shape, self.amplitude = input_shape, amplitude

    def sample(self, n: int, seed: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        phases = 6.3 * torch.rand(n, 1, self.input_shape[-2], 1, generator=rng)
        return self.amplitude * phases.sin().expand(n, *self.input_shape).contiguous()


def test_own_sources_and_mixtures(tmp_path: Path, prepared: Prepared) -> None:
    copy_store(prepared(train=False), tmp_path)
    target = f"+source.stripes._target_={__name__}.Stripes"
    sources = "sources=[stripes,{stripes: 1, kegnet: 3},{kegnet: 0.5, normal: 0.5}]"
    rows = go(tmp_path, target, "+source.stripes.amplitude=2.0", sources, train=False)
    assert [(row["method"], row["source"]["prior"]) for row in rows[2:]] == [
        ("T+Stripes", "procedural"),
        ("T+KegNet 75 % + Stripes 25 %", "teacher + procedural"),
        ("T+KegNet 50 % + Normal 50 %", "teacher"),
    ]
    assert rows[3]["source"]["shares"] == {"kegnet": 0.75, "stripes": 0.25}
    assert {row["samples"] for row in rows[2:]} == {128}
    assert kinds(stages(tmp_path)).count("generators") == 1, "those that were there"
    louder = go(tmp_path, target, "+source.stripes.amplitude=3.0", sources, train=False)
    same = [first["fingerprint"] == second["fingerprint"] for first, second in zip(rows, louder, strict=True)]
    assert same == [True, True, False, False, True]
    with pytest.raises(ConfigError, match=r"different titles, .* but got stripes \(Stripes\), again \(Stripes\)"):
        go(tmp_path, target, target.replace("stripes", "again"), "sources=[stripes,again]", train=False)


REAL = "sources=[uniform,normal,kegnet,real]"


def test_the_ceiling_is_one_student_more(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = read_rows(prepared())
    copy_store(prepared(), tmp_path)
    before = stages(tmp_path)
    rows = go(tmp_path, REAL)
    assert "student (real data) is not a data-free result" in capsys.readouterr().out
    assert [row["fingerprint"] for row in rows[:-1]] == [row["fingerprint"] for row in plain]
    assert kinds(set(stages(tmp_path)) - set(before)) == ["evaluation", "student"]
    ceiling = Row.from_dict(rows[-1])
    assert (ceiling.method, ceiling.prior, ceiling.is_ceiling) == ("T+Real", "real data", True)
    assert [ceiling.samples, ceiling.epochs, ceiling.selection] == [
        rows[-2][key] for key in ("samples", "epochs", "selection")
    ]
    assert ceiling.costs["samples_made"] == 0 and "generators" not in ceiling.stage_seconds

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a trainer was started")

    monkeypatch.setattr(Trainer, "fit", refuse)
    after = stages(tmp_path)
    config = configure(FAST, *PLAIN, f"store={tmp_path / 'store'}", REAL, "resume=require")
    with no_pictures():
        assert run(config, tmp_path / "run") == rows[-2]["accuracy"], "a sweep compares what is data-free"
    assert stages(tmp_path) == after
    assert f"student       {tmp_path}/store/student-{rows[-2]['fingerprint']}" in capsys.readouterr().out


def test_the_ceiling_depends_on_the_training_data_which_no_other_student_reads(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["sources=[normal,real]", f"teacher.weights={teacher_file(prepared())}"]
    first = go(tmp_path, *more, train=False)
    read, part = DigitsDataModule.read, DigitsDataModule.part

    def fewer(self: DigitsDataModule) -> dict[str, Split]:
        return {name: split[: len(split) // 2] if name == "train" else split for name, split in read(self).items()}

    monkeypatch.setattr(DigitsDataModule, "read", fewer)
    second = go(tmp_path, *more, train=False)
    same = [one["fingerprint"] == other["fingerprint"] for one, other in zip(first, second, strict=True)]
    assert same == [True, True, True, False]

    def refuse(self: DigitsDataModule, name: str) -> Split:
        assert name == "test", f"{name} was read"
        return part(self, name)

    monkeypatch.setattr(DigitsDataModule, "part", refuse)
    go(tmp_path / "other", "sources=[normal]", more[1], train=False)
    with pytest.raises(AssertionError, match="train was read"):
        go(tmp_path / "other", *more, train=False)


def test_the_ceiling_may_be_alone_and_is_not_the_student_of_the_run(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = go(copy_store(prepared(train=False), tmp_path), "sources=[real]", train=False, draw=True)
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Real"]
    assert f"student       {tmp_path}/store/compression-{rows[1]['fingerprint']}" in capsys.readouterr().out
    assert "student (real data) is not a data-free result" in (tmp_path / "run" / "report.html").read_text()
    (row,) = go(tmp_path, "sources=[real]", "student.selection=real", train=False)[2:]
    manifest = tmp_path / "store" / f"student-{row['fingerprint']}" / "manifest.json"
    digits = DigitsDataModule()
    assert json.loads(manifest.read_text())["config"]["data"]["content"] == digits.digest("train", "val")


def test_a_source_that_is_mixed_with_generators_is_built_before_training(tmp_path: Path) -> None:
    wrong = ["+source.leaves.mean=2", "+source.leaves.std=1"]
    with pytest.raises(ValueError, match=r"Expected `mean` in \(0, 1\)"):
        go(tmp_path, "sources=[{kegnet: 0.5, leaves: 0.5}]", *wrong, train=False)
    assert not stages(tmp_path)


FILES = ["data=files", "data.input_shape=[1,32,32]", "data.classes=10"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=none", *FILES[1:]], r"real training data for the source real, but got data=none\. Choose data="),
        ([*FILES, "data.test=test.npz"], r"a split 'train' of .* for the source real, but got test\. Set data\.train="),
        (["sources=[{real: 1, kegnet: 1}]"], r"mixture without real data, .* got kegnet, real\. Use real as"),
        (["student.selection=synthetic"], r"`student.selection` to be last or real .* but got synthetic\. Set"),
        (
            ["compression.fit=function", "compression.source=real"],
            r"without real data, .* but got real\. Use compression",
        ),
    ],
    ids=["no data", "no training data", "mixture", "selection", "compression"],
)
def test_where_real_data_has_no_place_it_is_refused_at_once(
    tmp_path: Path, prepared: Prepared, overrides: list[str], message: str
) -> None:
    if "data.test=test.npz" in overrides:
        overrides = [*FILES, f"data.test={write_digits(tmp_path / 'test.npz', 'test')}"]
    sources = [] if any("sources" in override for override in overrides) else ["sources=[real]"]
    with pytest.raises((ConfigError, ValueError), match=message):
        go(tmp_path, *sources, f"teacher.weights={teacher_file(prepared())}", *overrides)
    assert not stages(tmp_path)


def test_a_compression_by_function_names_its_samples(tmp_path: Path, prepared: Prepared) -> None:
    plain = read_rows(prepared("teacher.epochs=5", "sources=[kegnet]"))
    copy_store(prepared("teacher.epochs=5", "sources=[kegnet]"), tmp_path)
    common = ["teacher.epochs=5", "sources=[normal,kegnet]", "compression.fit=function", "compression.samples=500",
              "compression.oversampling=4"]  # fmt: skip
    rows = go(tmp_path, *common)
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Normal", "T+KegNet"]
    assert rows[0]["fingerprint"] == plain[0]["fingerprint"]
    assert rows[0]["compression_source"] is None and rows[1]["source"] is None
    assert all(row["compression_source"]["prior"] == "teacher + procedural" for row in rows[1:])  # it selects them
    assert [Row.from_dict(row).prior for row in rows] == ["", *["teacher + procedural"] * 3]
    unselected = go(tmp_path, *common, "compression.oversampling=1", "compression.matching=0", "sources=[normal]")
    assert [Row.from_dict(row).prior for row in unselected] == ["", "procedural", "procedural"]
    assert rows[1]["accuracy"] > plain[1]["accuracy"] + 0.05
    assert rows[1]["compression_ratio"] == pytest.approx(8, rel=0.05)
    before = stages(tmp_path)
    go(tmp_path, *common, "resume=require")
    assert stages(tmp_path) == before
    with pytest.raises(ConfigError, match=r"`compression.source` to be a source without generators, .* got kegnet"):
        go(tmp_path, *common, "compression.source=kegnet")
    with pytest.raises(ConfigError, match=r"to be one of blobs, correlated, fields, kegnet, .*, but got dots"):
        go(tmp_path, *common, "compression.source=dots")


def test_a_teacher_of_one_class_is_named_at_every_run(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(teacher_file(prepared()))
    weights["fc2.bias"][3] = 1e6
    save_file(weights, tmp_path / "teacher.safetensors")
    for _ in range(2):
        go(tmp_path, f"teacher.weights={tmp_path / 'teacher.safetensors'}", "compression.fit=function",
           "compression.samples=20", "sources=[]", train=False)  # fmt: skip
        out = " ".join(capsys.readouterr().out.split())
        assert "gives the same class to all held-out synthetic samples" in out
        assert "[1/3] teacher: The output of LeNet5 is read as logits." in out
        assert "[1/3] teacher: accuracy" in out and "Warning: The teacher's accuracy on the test data is" in out
        assert "Expected" not in out and "data.mean and data.std" not in out, "the data set has them"


def test_samples_are_selected_and_mixed_and_the_student_is_reconstructed(tmp_path: Path, prepared: Prepared) -> None:
    common = ["teacher.epochs=5", "sources=[normal,leaves]"]
    plain = prepared(*common)
    copy_store(plain, tmp_path)
    options = ["student.oversampling=2", "student.mixing=0.5", "student.reconstruct=true", "student.optimizer.lr=1e-9"]
    rows = read_rows(plain)
    assert [Row.from_dict(row).prior for row in rows] == ["", "", "none", "procedural"]
    students = {}
    for count in range(4):  # each option makes another student of leaves; noise stays as it is drawn
        found = go(tmp_path, *common, *options[-1:], *options[:count])
        students[count] = {row["method"]: row for row in found}
        assert Row.from_dict(found[-1]).prior == ("teacher + procedural" if count else "procedural")
    assert len({found["T+Leaves"]["fingerprint"] for found in students.values()}) == 4
    assert len({found["T+Normal"]["fingerprint"] for found in students.values()}) == 2  # with and without the fit
    made = [students[count]["T+Leaves"]["costs"]["samples_made"] for count in (0, 1)]
    assert made[1] == 2 * made[0] > 0  # with the candidates that are not selected
    # No step is made at this rate: the fit alone brings the student nearer to the teacher.
    assert students[0]["T+Leaves"]["accuracy"] == pytest.approx(rows[1]["accuracy"], abs=0.02)
    assert students[3]["T+Leaves"]["accuracy"] > rows[1]["accuracy"] + 0.05
    before = stages(tmp_path)
    go(tmp_path, *common, *options, "resume=require")
    assert stages(tmp_path) == before


def test_images_of_sources_have_the_range_of_the_data(tmp_path: Path, prepared: Prepared) -> None:
    common = ["sources=[leaves]", "student.epochs=1", "student.samples=64"]
    first = read_rows(prepared(*common))
    copy_store(prepared(*common), tmp_path)
    manifest = json.loads(next(tmp_path.glob("store/student-*/manifest.json")).read_text())
    assert manifest["config"]["source"]["definitions"]["leaves"]["mean"] == [0.3053]
    (again,) = (row for row in go(tmp_path, *common, "+source.leaves.mean=0.5") if row["method"] == "T+Leaves")
    assert again["fingerprint"] != first[-1]["fingerprint"]


def test_samples_of_a_compression_by_weights_change_nothing(tmp_path: Path, prepared: Prepared) -> None:
    copy_store(prepared("sources=[]", train=False), tmp_path)
    go(tmp_path, "sources=[]", "compression.source=normal", "compression.samples=50", "resume=require", train=False)


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1024, 10)

    def forward(self, x):
        return self.linear(x.flatten(1)) * {factor}
"""


def rewrite(folder: Path, module: str, content: str) -> None:
    """Write a module of one's own anew, as between two runs."""
    (folder / f"{module}.py").write_text(content)
    sys.modules.pop(module, None)
    importlib.invalidate_caches()


def write_digits(path: Path, part: str) -> Path:
    """Write a split of the digits as a file of one's own."""
    digits = DigitsDataModule()
    digits.setup()
    split = digits.part(part)
    np.savez(path, x=split.x.numpy(), y=split.y.numpy())
    return path


def test_changed_code_of_ones_own_network_builds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kegnet_pl"  # as a clone is called, in which one works
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    overrides = ["sources=[]", "teacher=custom", "teacher.network._target_=own_network.Net", "compression=ratio"]
    for factor, teachers in (("1", 1), ("1", 1), ("2", 2)):
        rewrite(folder, "own_network", NETWORK.format(factor=factor))
        go(tmp_path, *overrides, train=False)
        assert kinds(stages(tmp_path)).count("teacher") == teachers


OPTIMIZER = """
from torch.optim import SGD


class Mine(SGD):
    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr * {factor})
"""


def test_changed_code_of_ones_own_optimizer_trains_students_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for factor, students in (("1", 1), ("1", 1), ("2", 2)):
        rewrite(tmp_path, "own_optimizer", OPTIMIZER.format(factor=factor))
        go(tmp_path, "sources=[uniform]", "student.optimizer._target_=own_optimizer.Mine", train=False)
        found = kinds(stages(tmp_path))
        assert (found.count("teacher"), found.count("student")) == (1, students)


CALLBACK = """
from pytorch_lightning import Callback


class Mine(Callback):
    number = {factor}
"""


def test_changed_code_of_ones_own_callback_builds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for factor, teachers in (("1", 1), ("1", 1), ("2", 2)):
        rewrite(tmp_path, "own_callback", CALLBACK.format(factor=factor))
        go(tmp_path, "sources=[]", "+callbacks.mine._target_=own_callback.Mine", train=False)
        assert kinds(stages(tmp_path)).count("teacher") == teachers


def test_files_of_data_may_move(tmp_path: Path) -> None:
    """Training data is identified by its content; new or missing test data causes no training."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for part in ("train", "test"):
            write_digits(tmp_path / name / f"{part}.npz", part)
    mine = ["sources=[uniform]", "data=files", "data.input_shape=[1,32,32]", "data.classes=10"]
    for more in (
        ["data.train=here/train.npz"],
        ["data.train=there/train.npz", "data.test=here/test.npz"],
        ["data.train=there/train.npz", "data.test=there/test.npz"],
    ):
        go(tmp_path, *mine, *(part.replace("=", f"={tmp_path}/", 1) for part in more), train=False)
    trained = [name for name in kinds(stages(tmp_path)) if name != "evaluation"]
    assert trained == ["compression", "student", "teacher"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.optimizer._target_=torch.optim.Adamm"], "Adamm"),
        (["generator.optimizer._partial_=false"], "torch.optim.Adam"),
        (["+student.optimizer.speed=2"], "`student.optimizer` to be built from its settings, but got: .*speed"),
        (["student.optimizer._target_=torch.nn.ParameterList"], "`student.optimizer` to be built from its settings"),
        (["student.optimizer={_target_: torch.nn.Identity, _partial_: true, lr: 1}"], "to be a torch.optim.Optimizer"),
        (["student.selection=real", "data=files", "data.input_shape=[1,32,32]", "data.classes=10"], "split 'val'"),
        (["compression=fraction", "compression.rank=2.5"], "2.5"),
        (["compression.when_larger=foo"], "foo"),
        (["compression.rules=[]"], "at least one rule"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_later_stages_would_refuse_is_told_at_once(tmp_path: Path, overrides: list[str], message: str) -> None:
    if "data=files" in overrides:
        overrides = [*overrides, f"data.train={write_digits(tmp_path / 'train.npz', 'train')}"]
    with pytest.raises((ConfigError, ValueError), match=message):
        go(tmp_path, *overrides)
    assert not stages(tmp_path)


def test_what_cannot_be_trained_together_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clipped = ["sources=[kegnet]", "+trainer.gradient_clip_val=1", "teacher=mlp", "generator=dense"]
    split = (torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).numpy(), np.arange(20) % 3)
    np.savez(tmp_path / "train.npz", x=split[0], y=split[1])
    rows = ["data=files", "data.input_shape=[6]", "data.classes=3", f"data.train={tmp_path / 'train.npz'}"]
    go(tmp_path, *clipped, *rows)
    assert "Generators are trained one after the other, since torch cannot vectorise them" in capsys.readouterr().out


def test_the_same_weights_in_another_file_are_the_same_teacher(tmp_path: Path, prepared: Prepared) -> None:
    weights = teacher_file(prepared())
    torch.save({"state_dict": {f"net.{key}": value for key, value in load_file(weights).items()}}, tmp_path / "copy.pt")
    marks = {
        go(tmp_path, "sources=[]", f"teacher.weights={file}")[0]["fingerprint"]
        for file in (weights, tmp_path / "copy.pt")
    }
    assert len(marks) == 1


def test_ones_own_test_data(tmp_path: Path, prepared: Prepared) -> None:
    rows = read_rows(prepared())
    write_digits(tmp_path / "test.npz", "test")
    mine = [
        f"teacher.weights={teacher_file(prepared())}",
        "data=files",
        "data.input_shape=[1,32,32]",
        "data.classes=10",
    ]
    measured = go(tmp_path, "sources=[kegnet]", *mine, f"data.test={tmp_path / 'test.npz'}")
    assert measured[0]["accuracy"] == rows[0]["accuracy"]
    assert measured[0]["test_set"] == "files: 539 test samples"
    with pytest.raises(ValueError, match="a split 'val' of the data set 'files', but got test"):
        go(tmp_path, "sources=[kegnet]", *mine, f"data.test={tmp_path / 'test.npz'}", "student.selection=real")


def test_a_mistyped_file_is_no_run_without_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a file at nowhere\.npz, but there is none\. Check data\.test"):
        go(
            tmp_path, "data=files", "data.input_shape=[1,32,32]", "data.classes=10", "teacher.weights=any.pt",
            "data.test=nowhere.npz",
        )  # fmt: skip


def test_bad_test_data_is_told_before_anything_takes_time(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.zeros((4, 1, 32, 32)), y=np.full(4, 10))
    with pytest.raises(ValueError, match="classes 0 to 9 in data set 'files', but got 10 to 10"):
        go(
            tmp_path, "data=files", "data.input_shape=[1,32,32]", "data.classes=10", "teacher.weights=nowhere.pt",
            f"data.test={tmp_path / 'test.npz'}",
        )  # fmt: skip
    assert not stages(tmp_path)


@pytest.mark.parametrize("size", [28, 40])
def test_images_of_other_sizes_need_no_generator_of_ones_own(tmp_path: Path, size: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, 2, size, size))
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    rows = go(
        tmp_path, "sources=[kegnet]", "data=none", f"data.input_shape=[2,{size},{size}]", "data.classes=3",
        "teacher=custom", "compression=ratio", "compression.target=2",
        "teacher.network._target_=tests.integration.test_pipeline.make_linear",
        f"+teacher.network.size={size}", f"teacher.weights={tmp_path / 'mine.pt'}",
    )  # fmt: skip
    assert [row["method"] for row in rows] == ["teacher", "T", "T+KegNet"]


def make_linear(size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * size * size, 3))


def make_classifier(answer: str) -> nn.Module:
    torch.manual_seed(0)
    return {"dict": Dictionary(), "probabilities": nn.Sequential(make_linear(8), nn.Softmax(dim=1))}[answer]


class Dictionary(nn.Module):
    """Returns its logits in a dict, as classifiers of other libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = make_linear(8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": x, "scores": self.layers(x)}


@pytest.mark.parametrize(
    ("answer", "given", "said"),
    [
        ("probabilities", [], "The output of Sequential is read as probabilities."),
        ("dict", ["teacher.output_key=scores"], "The output of Dictionary at 'scores' is read as logits."),
    ],
)
def test_teachers_of_other_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: str, given: list[str], said: str
) -> None:
    teacher = make_classifier(answer)
    torch.save(teacher.state_dict(), tmp_path / "mine.pt")
    rows = go(
        tmp_path, "sources=[normal]", "data=none", "data.input_shape=[2,8,8]", "data.classes=3", "teacher=custom",
        "compression=ratio", "compression.target=1.5", "compression.fit=function", "compression.source=normal",
        "teacher.network._target_=tests.integration.test_pipeline.make_classifier",
        f"+teacher.network.answer={answer}", f"teacher.weights={tmp_path / 'mine.pt'}", *given,
    )  # fmt: skip
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Normal"]
    assert said in capsys.readouterr().out
    (folder,) = (tmp_path / "store").glob("student-*")
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    trust = ["tests"]  # a function of this module made the teacher
    student, logits = load_network(folder, trust=trust), load_network(folder, logits=True, trust=trust)(x)
    if answer == "dict":
        assert torch.equal(student(x)["scores"], logits)
    else:
        assert torch.allclose(student(x).sum(dim=1), torch.ones(5)) and (logits < 0).all()
    key = "scores" if answer == "dict" else None
    assert kegnet_pl.measure_accuracy(student, Split(x, logits.argmax(dim=1)), output_key=key) == 1


def test_agreement_stands_beside_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sources=[normal,strokes]", "agreement.sources=[waves,procedural,uniform]"]
    rows = go(tmp_path, *given)
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Normal", "T+Strokes"]
    assert rows[0]["agreement"] is None
    own = [[name for name, one in row["agreement"]["sources"].items() if one["own"]] for row in rows[1:]]
    assert own == [[], ["uniform"], ["procedural"]], "noise is like noise, and procedural images have strokes"
    assert all(row["agreement"]["over"] == ["waves"] for row in rows[1:]), "all are compared by the same sources"
    out = capsys.readouterr().out
    assert "Agreement is not accuracy" in out and "student (Strokes) agrees least on class" in out
    before = stages(tmp_path)
    assert [name.split("-")[0] for name in before].count("agreement") == 3
    again = go(tmp_path, *given, "resume=require")
    assert [row["agreement"] for row in again] == [row["agreement"] for row in rows] and stages(tmp_path) == before
    folders = json.loads((tmp_path / "run" / "stages.json").read_text())["networks"]
    measured = json.loads((tmp_path / "run" / folders["T"]["agreement"] / "manifest.json").read_text())["metrics"]
    assert sum(measured["waves"]["counts"]) == rows[1]["agreement"]["sources"]["waves"]["samples"] == 100
    teacher, student = (
        load_network(tmp_path / "run" / folders[method][stage], logits=True)
        for method, stage in (("teacher", "teacher"), ("T+Normal", "student"))
    )
    pixels = {name: configure()["data"][name] for name in ("mean", "std")}
    library = kegnet_pl.measure_agreement(student, teacher, (1, 32, 32), sources=["waves"], samples=100, **pixels)
    assert round(library.sources["waves"].agreement, 4) == rows[2]["agreement"]["mean"], "the library's number"
    for folder in (tmp_path / "store").glob("agreement-*"):
        shutil.rmtree(folder)
    assert go(tmp_path, *given, "resume=require")[1]["agreement"] is None


@pytest.mark.parametrize(("seed", "said"), [(0, "the same class, so agreement is not informative"), (3, "is unknown")])
def test_agreement_needs_no_data(seed: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(seed)
    torch.save(LeNet5().state_dict(), tmp_path / "net.pt")
    given = [
        "data=none", "data.input_shape=[1,32,32]", "data.classes=10", "teacher=lenet5", "compression.target=2",
        f"teacher.weights={tmp_path / 'net.pt'}", "sources=[]", "agreement.sources=null",
    ]  # fmt: skip
    rows = go(tmp_path, *given, draw=True)
    assert rows[1]["accuracy"] is None and 0 < rows[1]["agreement"]["mean"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Agreement with the teacher" in page and "By class of the teacher, for compressed, untrained" in page
    out = capsys.readouterr().out
    assert "an agreement of" in out and said in out, "the network is untrained: it answers with few classes"


@pytest.mark.parametrize("name", ["kegnet", "real"])
def test_agreement_is_measured_without_generators_and_real_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"`agreement.sources` without generators and without real data, but got {name}"
    ):
        go(tmp_path, f"agreement.sources=[{name}]", train=False)


def test_a_run_without_another_source_has_no_objective(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"agreement of the student \(Strokes\) for objective=agreement, .*: all sources made"
    ):
        go(tmp_path, "sources=[strokes]", "agreement.sources=[procedural]", "objective=agreement", train=False)
    with pytest.raises(ConfigError, match=r"`agreement\.sources` with at least one source"):
        configure("agreement.sources=[]", "objective=agreement")


def test_latency_stands_beside_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sources=[normal]", "latency.batch_sizes=[1,3]", "latency.seconds=0.01"]
    rows = go(tmp_path, *given, train=False)
    for row in rows:
        assert list(row["latency"]["batches"]) == ["1", "3"] and row["latency"]["device"]
    assert rows[0]["latency"]["batches"]["3"]["speedup"] == 1
    assert rows[1]["latency"] == rows[2]["latency"] != rows[0]["latency"], "students share it"
    out = capsys.readouterr().out
    assert "at 1, 3" in out and "Speed-up: time of the teacher / time of the network, for batches of 1, 3, on" in out
    before = stages(tmp_path)
    assert go(tmp_path, *given, "resume=require", train=False)[1]["latency"] == rows[1]["latency"]
    assert stages(tmp_path) == before
    shutil.rmtree(next((tmp_path / "store").glob("latency-*")))
    assert go(tmp_path, *given, "resume=require", train=False)[1]["latency"] is None

    from kegnet_pl.benchmark import main

    capsys.readouterr()
    options = ["--batch-sizes", "2", "--seconds", "0.01", "--threads", "1", "--json", str(tmp_path / "latency.json")]
    assert main([str(tmp_path / "run"), *options]) == 0
    assert "measured on" in capsys.readouterr().out
    assert [row["network"] for row in json.loads((tmp_path / "latency.json").read_text())["rows"]] == [
        "teacher",
        "student",
    ]


@pytest.mark.parametrize("library", ["file", "huggingface"])
def test_teachers_of_files_and_of_hugging_face(
    tmp_path: Path, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if library == "huggingface":
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=4, num_channels=1)
        ViTForImageClassification(config).save_pretrained(tmp_path / "model")
        given = ["teacher=huggingface", f"teacher.path={tmp_path / 'model'}"]
    else:
        layers = "nn.Flatten(), nn.Linear(256, 60), nn.Linear(60, 4)"
        code = f"from torch import nn\ndef make():\n    return nn.Sequential({layers})"
        (tmp_path / "net.py").write_text(code)
        torch.save(nn.Sequential(nn.Flatten(), nn.Linear(256, 60), nn.Linear(60, 4)).state_dict(), tmp_path / "w.pt")
        given = ["teacher=file", f"teacher.path={tmp_path / 'net.py'}", "teacher.factory=make"]
        given += [f"teacher.weights={tmp_path / 'w.pt'}"]
    given += ["data=none", "data.input_shape=[1,16,16]", "data.classes=4", "sources=[normal]", "compression.target=1.3"]
    rows = go(tmp_path, *given, "compression.fit=function", "compression.source=normal")
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Normal"] and rows[1]["compression_ratio"] >= 1.3
    (folder,) = (tmp_path / "store").glob("student-*")
    assert load_network(folder, logits=True)(torch.zeros(2, 1, 16, 16)).shape == (2, 4)
    if library == "huggingface":
        assert "The output of ViTForImageClassification is read as logits." in capsys.readouterr().out
        shutil.rmtree(tmp_path / "model")
        assert hasattr(load_network(folder)(torch.zeros(2, 1, 16, 16)), "logits"), "the folder is not needed again"
    else:
        before = stages(tmp_path)
        (tmp_path / "net.py").write_text(f"{code}  # changed")
        go(tmp_path, *given, "compression.fit=function", "compression.source=normal")
        assert len(stages(tmp_path)) > len(before), "changed code is another network"


def test_mistakes_in_a_teacher_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = "def make():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    (tmp_path / "half.py").write_text(f"from torch import nn\n{make}    return net.half()")
    (tmp_path / "zero.py").write_text(f"from torch import nn\n{make}    nn.init.zeros_(net[1].weight)\n    return net")
    given = ["teacher=file", "teacher.factory=make", "teacher.pretrained=true", "data=none", "data.classes=4"]
    given += ["data.input_shape=[1,8,8]", "sources=[]", "compression.target=1.1"]
    go(tmp_path, *given, f"teacher.path={tmp_path / 'half.py'}")
    assert "weights are converted from float16 to float32" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="returns the same logits for 64 different samples"):
        go(tmp_path, *given, f"teacher.path={tmp_path / 'zero.py'}")
    (tmp_path / "one.py").write_text(f"from torch import nn\n{make}    net[1].bias.data[2] = 99\n    return net")
    go(tmp_path, *given, f"teacher.path={tmp_path / 'one.py'}")
    assert "Warning: Sequential gives class 2 to all of 64 synthetic samples." in capsys.readouterr().out


def test_a_program_teaches_another_network(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 1, 32, 32),), dynamic_shapes=shapes), tmp_path / "n.pt2"
    )
    given = ["teacher=file", f"teacher.path={tmp_path / 'n.pt2'}", "data=none", "data.input_shape=[1,32,32]"]
    given += ["data.classes=10", "sources=[kegnet]"]
    with pytest.raises(ConfigError, match=r"student with another architecture.*n\.pt2.*cannot be compressed"):
        go(tmp_path, *given)
    rows = go(tmp_path, *given, "student=lenet5")
    assert [row["method"] for row in rows] == ["teacher", "S", "S+KegNet"]
    with pytest.raises(ConfigError, match=r"`teacher\.weights` to be null.*the program has weights"):
        go(tmp_path, *given, "student=lenet5", "teacher.weights=w.pt")
    with pytest.raises(ConfigError, match="quantization=none with a teacher that is a program"):
        go(tmp_path, *given, "student=lenet5", "quantization=int8")


def test_a_teacher_that_takes_pixels(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Linear(30, 4))"
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Linear(30, 4))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    x = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    np.savez(tmp_path / "test.npz", x=x.numpy(), y=network(x).argmax(dim=1).numpy())
    rows = go(
        tmp_path, "teacher=file", f"teacher.path={tmp_path / 'net.py'}", "teacher.factory=make", "data=files",
        f"teacher.weights={tmp_path / 'w.pt'}", f"data.test={tmp_path / 'test.npz'}", "data.input_shape=[1,8,8]",
        "data.classes=4", "data.value_range=[0,255]", "sources=[procedural]", "compression.target=1.2",
        "compression.fit=function",
    )  # fmt: skip
    assert rows[0]["accuracy"] == 1, "the file has pixels, and the network takes pixels"
    card = expand_card([f"teacher_card={tmp_path / 'run' / 'teacher_card.yaml'}", "sources=[]"])
    again = go(tmp_path, *card, "compression.target=1.2", "compression.fit=function")
    assert again[1]["fingerprint"] == rows[1]["fingerprint"], "the card of a run names the same teacher"
    (folder,) = (tmp_path / "store").glob("student-*")
    pixels, standardised = load_network(folder)(x), load_network(folder, logits=True)((x / 255 - 0.45) / 0.25)
    torch.testing.assert_close(pixels, standardised, atol=1e-3, rtol=1e-3)


def test_a_pretrained_teacher_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`teacher\.weights` to be null.*\(teacher\.pretrained=true\)"):
        go(tmp_path, "teacher=torchvision", "teacher.arch=resnet18", "teacher.pretrained=true", "teacher.weights=w.pt")


def test_a_finished_run_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kegnet_pl.export import main

    go(tmp_path, "sources=[normal]", "agreement.sources=[normal]", train=False)
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--format", "torch_export,safetensors"]) == 0
    assert "largest relative difference from the network: 0.0e+00" in capsys.readouterr().out
    out = tmp_path / "run" / "export"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.json", "model.pt2", "model.safetensors"]
    x = torch.randn(3, 1, 32, 32)
    found = torch.export.load(out / "model.pt2").module()(x)
    torch.testing.assert_close(found, load_network(out, "model")(x))
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["pipeline_tag"] == "image-classification" and "data-free" in front["tags"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    for part in ("student (normal noise)", "`model.pt2`", "kegnet_pl.load_network", "## Limits", "539 test samples"):
        assert part in body, part
    assert re.search(r"accuracy \| \d+\.\d\d % on .* \(95 % interval: \d", body)
    assert "logits (scores before the softmax) of 10 classes, `(N, 10)`" in body
    named = [str(tmp_path / "run"), "--format", "safetensors", "--method", "compressed, untrained"]
    assert main([*named, "--out", str(tmp_path / "T")]) == 0
    assert "compressed, untrained" in (tmp_path / "T" / "README.md").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "other")]) == 1
    assert "another README.md" in capsys.readouterr().err
    shutil.rmtree(next((tmp_path / "store").glob("student-*")))
    assert main([str(tmp_path / "run")]) == 1
    assert "but its folder was deleted" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), "--method", "T+Real"]) == 1
    assert "`method` to be one of teacher, T, T+Normal, but got 'T+Real'" in capsys.readouterr().err


def test_the_output_that_a_run_used_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kegnet_pl.export import main

    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 3)\n"
        "    def forward(self, x):\n        return {'features': x, 'out': self.b(self.a(x).relu())}\n"
    )
    given = ["teacher=file", f"teacher.path={tmp_path / 'net.py'}", "teacher.factory=Net", "teacher.pretrained=true"]
    given += ["teacher.output_key=out", "data=none", "data.input_shape=[6]", "data.classes=3", "sources=[]"]
    go(tmp_path, *given, "compression.target=1.2", draw=True)
    (folder,) = (tmp_path / "store").glob("compression-*")
    said = f'(kegnet_pl.load_network reads it, with trust=["{tmp_path / "net.py"}"])'
    out = capsys.readouterr().out
    assert said in out
    assert f"export        python -m kegnet_pl.export {tmp_path / 'run'} --trust {tmp_path / 'net.py'}\n" in out
    line = f'kegnet_pl.load_network("{folder}", trust=["{tmp_path / "net.py"}"])'
    assert line in html.unescape((tmp_path / "run" / "report.html").read_text())
    with monkeypatch.context() as patched:
        patched.setattr("sys.modules", {name: one for name, one in sys.modules.items() if FILE_MODULE not in name})
        assert main([str(tmp_path / "run")]) == 1
    assert not (tmp_path / "run" / "export").exists(), "a refused export leaves no folder"
    assert main([str(tmp_path)]) == 1
    assert "Expected stages.json in" in capsys.readouterr().err, "a folder above a run"
    assert main([str(tmp_path / "run"), "--format", "torch_export", "--out", str(tmp_path / "out")]) == 0
    x = torch.randn(4, 6)
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(x)
    torch.testing.assert_close(found, load_network(folder)(x)["out"])


def test_the_samples_of_a_student_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kegnet_pl.export import main

    go(tmp_path, "sources=[normal,kegnet]", "student.samples=20", train=False)
    run, out = str(tmp_path / "run"), tmp_path / "set"
    arguments = [run, "--format", "safetensors", "--out", str(out), "--samples", "20", "--pictures"]
    assert main(arguments) == 0
    assert "20 samples of KegNet (prior: teacher)" in capsys.readouterr().out
    found = load_file(out / "samples.safetensors")
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "x": (20, 1, 32, 32), "probabilities": (20, 10), "y": (20,)
    }  # fmt: skip
    (teacher,) = (tmp_path / "store").glob("teacher-*")
    with torch.no_grad():
        probabilities = load_network(teacher, logits=True)(found["x"]).softmax(dim=1)
    torch.testing.assert_close(found["probabilities"], probabilities)
    assert torch.equal(found["y"], probabilities.argmax(dim=1))
    pictures = sorted((out / "samples").glob("*/*.png"))
    assert len(pictures) == 20 and {int(path.parent.name) for path in pictures} == set(found["y"].tolist())
    sample = found["x"][int(pictures[0].stem), 0]
    shown = np.asarray(Image.open(pictures[0]))[..., 0] / 255
    np.testing.assert_allclose(shown, (0.3053 + 0.3761 * sample).clamp(0, 1), atol=0.5 / 255 + 1e-6)
    data = FilesDataModule("set", (1, 32, 32), 10, train=out / "samples.safetensors")
    data.setup()
    assert len(data.part("train")) == 20
    assert main([*arguments, "--method", "T"]) == 1
    assert "a student that was trained (T+Normal, T+KegNet), but got T" in capsys.readouterr().err
    shutil.rmtree(next((tmp_path / "store").glob("generators-*")))
    assert main(arguments) == 1
    assert "these folders were deleted: generators" in capsys.readouterr().err


MATCHED = (*NORM_NET, "sources=[normal,procedural]", "student.matching=1", "student.mixing=0.5", "student.samples=40")


def test_matched_samples_are_drawn_once_for_all_compressions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = go(tmp_path, *MATCHED)
    assert kinds(stages(tmp_path)).count("samples") == 1, "noise is not matched"
    assert ["samples" in row["stage_seconds"] for row in rows] == [False, False, False, True]
    (folder,) = (tmp_path / "store").glob("samples-*")
    assert {name: tuple(value.shape) for name, value in load_file(folder / "samples.safetensors").items()} == {
        "train/x": (40, 1, 32, 32), "train/logits": (40, 10)
    }  # fmt: skip

    def refuse(*_: object) -> None:
        raise AssertionError("samples were matched again")

    with monkeypatch.context() as patched:
        patched.setattr("kegnet_pl.sources.matching.match_statistics", refuse)
        go(tmp_path, *MATCHED, "compression.target=1.1", "student.temperature=2")
        assert kinds(stages(tmp_path)).count("samples") == 1 and kinds(stages(tmp_path)).count("student") == 4
        with pytest.raises(AssertionError, match="matched again"):
            go(tmp_path, *MATCHED, "student.samples=41")
    # A student whose own stage draws the samples is the same.
    drawing = copy_store(tmp_path, tmp_path / "drawing")
    for stage in (*(drawing / "store").glob("student-*"), *(drawing / "store").glob("samples-*")):
        shutil.rmtree(stage)
    monkeypatch.setattr("kegnet_pl.pipeline.run.are_kept", lambda *_: False)
    own = go(drawing, *MATCHED)
    assert "samples" not in kinds(stages(drawing))
    networks = [
        load_file(root / "store" / f"student-{row['fingerprint']}" / "network.safetensors")
        for root, row in ((tmp_path, rows[-1]), (drawing, own[-1]))
    ]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


def test_matched_validation_samples_are_kept_and_an_export_reads_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kegnet_pl.export import main

    selected = ["student.selection=synthetic", "student.validation_samples=20", "student.resample_each_epoch=true"]
    go(tmp_path, *MATCHED, *selected, "student.epochs=2")
    (folder,) = (tmp_path / "store").glob("samples-*")
    stored = load_file(folder / "samples.safetensors")
    assert [len(stored[f"{split}/x"]) for split in ("train", "val")] == [40, 20]
    monkeypatch.setattr("kegnet_pl.sources.matching.match_statistics", lambda x, *_: x)
    arguments = [str(tmp_path / "run"), "--format", "safetensors", "--out", str(tmp_path / "set"), "--samples"]
    for count, same in (("40", True), ("38", False)):
        assert main([*arguments, count, "--trust", __name__]) == 0
        found = load_file(tmp_path / "set" / "samples.safetensors")["x"]
        assert torch.equal(found, stored["train/x"][: len(found)]) == same


def test_large_sets_of_matched_samples_stay_out_of_the_store() -> None:
    def is_kept(*overrides: str) -> bool:
        settings = RunSettings.from_config(configure("student.matching=1", "sources=[procedural]", *overrides))
        return are_kept(settings, describe_student_source(settings, {"procedural": 1.0}))

    assert is_kept() and not is_kept("student.matching=0")
    assert is_kept("student.samples=262144") and not is_kept("student.samples=262145")  # 1 GiB of 1 x 32 x 32


@pytest.mark.parametrize("by", ["macs", "latency"])
def test_a_compression_by_operations_or_time(tmp_path: Path, by: str) -> None:
    given = [f"compression.by={by}", "compression.target=1.02", "compression.batch_size=4", "compression.fit=function"]
    try:
        rows = go(tmp_path, "sources=[]", "compression.source=normal", *given, train=False)
    except ValueError as error:
        assert by == "latency" and "by latency, but got 1.02" in str(error)  # on this machine
    else:
        assert by == "latency" or rows[1]["teacher_macs"] / rows[1]["macs"] >= 1.02


@pytest.mark.parametrize("setting", ["by=macs", "round_to=8"])
def test_a_compression_for_speed_needs_samples(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"Set compression\.fit=function"):
        go(tmp_path, "sources=[]", f"compression.{setting}", "compression.target=2", train=False)


def test_a_pretrained_teacher_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEGNET_DATA_DIR", str(tmp_path / "nowhere"))
    (tmp_path / "net.py").write_text("from kegnet_pl.networks import ResNet14 as Net")
    given = ["teacher=file", f"teacher.path={tmp_path / 'net.py'}", "teacher.factory=Net", "teacher.pretrained=true"]
    rows = go(tmp_path, "data=svhn", *given, "sources=[]", "compression.target=1.2", train=False)
    assert [row["accuracy"] for row in rows] == [None, None]


def test_warnings_are_in_results_report_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Generators of two steps do not convince the teacher."""
    rows = go(tmp_path, "sources=[kegnet]", "student.optimizer.lr=1e-9", draw=True)
    assert rows[0]["warnings"] == [TRIAL], "debug=fast"
    trial, *warnings = rows[-1]["warnings"]
    said = " ".join(warnings)
    assert "The teacher gives the intended class to few samples of generator" in said
    assert "gives the teacher's class to only" in said and "of its training samples. The level of chance is 10%" in said
    out = capsys.readouterr().out
    assert trial == TRIAL and out.count(TRIAL) == 1
    assert all(f"Warning about student (KegNet): {line}" in out for line in warnings)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count(f'<p class="lead">{TRIAL}</p>') == 1
    assert page.count('<p class="warning"><b>student (KegNet)</b>') == len(warnings)

    from kegnet_pl.export import main

    assert main([str(tmp_path / "run"), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"## Warnings\n\n- {TRIAL}\n- The teacher gives the intended class" in card


def test_a_diverged_student_is_not_published(tmp_path: Path, prepared: Prepared) -> None:
    copy_parents(prepared(), tmp_path, "generators")
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        go(tmp_path, "sources=[normal]", "student.baselines.lr=1e30")
    assert kinds(stages(tmp_path)) == ["compression", "teacher"]


def test_a_source_that_does_not_fit_the_teacher_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples of shape \(features,\) .* but got \(1, 32, 32\)\. Use 'sour"):
        go(tmp_path, "sources=[kegnet,correlated]", train=False)
    assert not list((tmp_path / "store").glob("*-*"))


INT8 = ["quantization=int8", "sources=[normal]"]


def test_networks_are_quantised_beside_those_in_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latency = ["latency.batch_sizes=[1,3]", "latency.seconds=0.01", "agreement.sources=[waves,procedural,normal]"]
    plain = go(tmp_path, *INT8[1:], *latency)
    before = stages(tmp_path)
    capsys.readouterr()
    rows = go(tmp_path, *INT8, *latency, draw=True)
    out = capsys.readouterr().out
    (file,) = re.findall(r"^int8 +(\S+)$", out, flags=re.MULTILINE)
    assert Path(file).parent.name == f"quantization-{rows[-1]['fingerprint']}" and Path(file).is_file()
    assert [row["method"] for row in rows] == ["teacher", "T", "T+Normal", "teacher int8", "T+Normal int8"]
    kept = ("accuracy", "fingerprint", "latency", "quantization", "size")
    assert [[row[key] for key in kept] for row in rows[:3]] == [[row[key] for key in kept] for row in plain]
    teacher, student = rows[3:]
    assert (teacher["student"], teacher["source"], teacher["samples"]) == (None, None, None)
    assert (student["source"]["name"], student["samples"], student["epoch"]) == ("normal", 128, rows[2]["epoch"])
    for row, float32 in ((teacher, rows[0]), (student, rows[2])):
        about = row["quantization"]
        assert (about["format"], about["activations"], about["samples"]) == ("int8", "int8", 20)
        assert about["source"]["name"] == "procedural" and about["runtime"].startswith("ONNX Runtime ")
        assert abs(row["accuracy"] - float32["accuracy"]) < 0.1
        assert (row["parameters"], row["macs"]) == (float32["parameters"], float32["macs"])
        assert row["latency"]["batches"].keys() == {"1", "3"} and row["latency"] != float32["latency"]
        assert row["seconds"] == row["stage_seconds"]["quantization"]
        assert row["agreement"]["over"] == ["waves"], "the other sources made a network of the run"
        own = {name for name, one in row["agreement"]["sources"].items() if one["own"]}
        assert own == ({"procedural"} if row is teacher else {"normal", "procedural"})
    assert teacher["agreement"]["mean"] > 0.9 and abs(student["agreement"]["mean"] - rows[2]["agreement"]["mean"]) < 0.1
    assert teacher["latency"]["batches"]["3"]["speedup"] != 1, "its baseline is the teacher in float32"
    assert teacher["size"] < 0.4 * rows[0]["size"] and rows[0]["size"] > 4 * rows[0]["parameters"]
    assert "int8: weights and activations, calibrated on 20 samples of Procedural" in out and "MB" in out
    assert out.count("found (") == 3, "teacher, compression and student are those of the run in float32"
    new = set(stages(tmp_path)) - set(before)
    made = ["agreement", "evaluation", "quantization"]
    assert kinds(new) == sorted([*made, *made, "latency"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "student (normal noise), int8" in page and "calibrated on 20 samples" in page

    again = stages(tmp_path)
    assert go(tmp_path, *INT8, *latency, "resume=require")[4]["accuracy"] == student["accuracy"]
    assert stages(tmp_path) == again


def test_a_run_returns_the_accuracy_of_float32(tmp_path: Path) -> None:
    config = configure(FAST, *PLAIN, f"store={tmp_path / 'store'}", *INT8)
    with no_training(), no_pictures():
        found = run(config, tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows[-1]["method"] == "T+Normal int8" and found == rows[2]["accuracy"]


def test_weights_alone_without_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = go(tmp_path, "sources=[]", "quantization=int8_weights")
    assert [row["method"] for row in rows] == ["teacher", "T", "teacher int8", "T int8"]
    for row in rows[2:]:
        assert (row["quantization"]["source"], row["quantization"]["samples"]) == (None, None)
    assert rows[2]["quantization"]["agreement"] > 0.8 and abs(rows[2]["accuracy"] - rows[0]["accuracy"]) < 0.1
    assert rows[2]["size"] < 0.4 * rows[0]["size"]
    assert "int8: weights; ONNX files" in capsys.readouterr().out


def _weights(folder: Path) -> Path:
    path = folder / "teacher.pt"
    torch.save(LeNet5().state_dict(), path)
    return path


def test_generators_and_real_data_calibrate_where_the_run_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = go(tmp_path, "sources=[kegnet]", "quantization=int8", "quantization.source=kegnet", train=False)
    assert rows[-1]["quantization"]["source"]["prior"] == "teacher"
    assert rows[-2]["method"] == "teacher int8" and "generators" in rows[-2]["stage_seconds"]
    capsys.readouterr()
    rows = go(tmp_path, *INT8, "quantization.source=real", train=False)
    assert rows[-1]["quantization"]["source"]["prior"] == "real data"
    said = (
        "student (normal noise), int8 is not a data-free result: it was calibrated on real data, as a ceiling for the "
        "others."
    )
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quantization.source=kegnet"], r"`quantization\.source` to be a source without generators, .* add kegnet"),
        (["quantization.source=real", "data=none", "data.input_shape=[1,32,32]", "data.classes=10",
          "teacher.weights=w"], r"real training data for quantization\.source=real, but got data=none"),
        (["quantization.source=real", *FILES, "data.test=test.npz"], r"a split 'train' .* for the source real"),
    ],
    ids=["no generators", "no data", "no training data"],
)  # fmt: skip
def test_calibration_that_is_not_possible_is_refused_at_once(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    if "data.test=test.npz" in overrides:
        overrides = [*overrides[:-1], f"data.test={write_digits(tmp_path / 'test.npz', 'test')}",
                     f"teacher.weights={_weights(tmp_path)}"]  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        go(tmp_path, *INT8, *overrides)
    assert not stages(tmp_path)


def test_a_missing_runtime_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'kegnet_pl\[onnx\]'"):
        go(tmp_path, *INT8)
    assert not stages(tmp_path)


def test_a_finished_run_is_exported_in_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    from kegnet_pl.export import main

    go(tmp_path, *INT8, "quantization.source=normal")
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--format", "safetensors", "--int8", "--int8-weights"]) == 0
    out = capsys.readouterr().out
    assert out.count("of 20 held-out samples of Procedural") == 2
    folder = tmp_path / "run" / "export"
    x = torch.randn(3, 1, 32, 32)
    expected = load_network(folder, "model")(x).detach()
    for name in ("model.int8.onnx", "model.int8-weights.onnx"):
        (found,) = onnxruntime.InferenceSession(folder / name).run(None, {"input": x.numpy()})
        assert float((torch.from_numpy(found) - expected).abs().max()) < 0.2 * float(expected.abs().max())
    text = (folder / "README.md").read_text()
    for part in ("`model.int8.onnx` | onnx, int8 weights and activations, calibrated on 20 samples of Procedural "
                 "(prior knowledge: procedural)", "`model.int8-weights.onnx` | onnx, int8 weights |",
                 "held-out samples of Procedural", "session.disable_quant_qdq"):  # fmt: skip
        assert part in text, part
    capsys.readouterr()
    for arguments, message in (
        (["--source", "kegnet"], "a run with generators for --source kegnet"),
        (["--source", "real"], "a source of synthetic samples in --source, but got real"),
        (["--source", "magic"], "Use one of"),
        (["--method", "T+Normal int8"], "one of teacher, T, T+Normal, but got"),
    ):
        assert main([str(tmp_path / "run"), "--format", "safetensors", "--int8", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_a_teacher_of_pixels_and_probabilities_is_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kegnet_pl.export import main

    code = (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.fc = nn.Linear(256, 4)\n"
        "    def forward(self, x):\n"
        "        return self.fc((x.flatten(1) / 255 - 0.45) / 0.25).softmax(dim=1)\n"
    )
    (tmp_path / "net.py").write_text(code)
    given = ["teacher=file", f"teacher.path={tmp_path / 'net.py'}", "teacher.factory=Net", "teacher.pretrained=true"]
    given += ["data=none", "data.input_shape=[1,16,16]", "data.classes=4", "data.value_range=[0,255]"]
    rows = go(tmp_path, *given, *INT8, "compression=fraction", "quantization.samples=200", train=False)
    assert rows[-2]["method"] == "teacher int8" and rows[-2]["quantization"]["agreement"] > 0.9
    capsys.readouterr()
    arguments = [str(tmp_path / "run"), "--format", "safetensors", "--method", "teacher", "--int8", "--trust"]
    assert main([*arguments, str(tmp_path / "net.py")]) == 0
    (agreement,) = re.findall(r"class for ([\d.]+)% of 200 held-out samples", capsys.readouterr().out)
    assert float(agreement) > 90
    pixels = 255 * torch.rand(50, 1, 16, 16)
    found = OnnxNetwork(tmp_path / "run" / "export" / "model.int8.onnx")(pixels)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(50), atol=0.02, rtol=0)
    folder = tmp_path / "run" / "export"
    expected = load_network(folder, "model", trust=[str(folder / "net.py")])(pixels).detach()
    assert float((found - expected).abs().max()) < 0.1


def test_a_pruned_teacher_is_trained_with_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Presets set norm=adapt and feature distillation: the student learns from the channels that it has kept."""
    given = [
        "sources=[normal]", "teacher=resnet14", "compression=pruning", "compression.target=1.5",
        "compression.fit=function", "compression.samples=64", "compression.oversampling=1", "compression.round_to=4",
        "student.norm=adapt", "student.feature_distillation.weight=1", "student.reconstruct=true",
    ]  # fmt: skip
    rows = go(tmp_path, *given)
    assert [(row["method"], row["student"]) for row in rows[1:]] == [("T", "pruning1.5"), ("T+Normal", "pruning1.5")]
    assert all(1.5 <= row["compression_ratio"] < 1.8 for row in rows[1:])
    assert rows[1]["compression_source"]["name"] == "procedural"
    out = capsys.readouterr().out
    assert "Compression (pruned 1.5x), layer by layer" in out and "channels in, out" in out
    (found,) = (tmp_path / "store").glob("compression-*/compression.json")
    notes = {row["layer"]: row["note"] for row in json.loads(found.read_text())["rows"]}
    assert notes["conv1"].startswith("outputs unchanged: the network fails"), "its shortcut has a fixed width"
    (folder,) = (tmp_path / "store").glob("student-*")
    student = load_network(folder)
    assert sum(value.numel() for value in student.parameters()) == rows[2]["parameters"]
    assert not any(isinstance(layer, TuckerLayer) for layer in student.modules())
    before = stages(tmp_path)
    assert go(tmp_path, *given, "resume=require")[2]["accuracy"] == rows[2]["accuracy"]
    assert stages(tmp_path) == before

    from kegnet_pl.export import main

    assert main([str(tmp_path / "run"), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| compression | structured pruning" in card and "Tucker" not in card
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(load_network(tmp_path / "out", "model")(x), student(x))


def test_methods_of_compression_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compression=auto", "compression.target=1.5", "compression.fit=function", "compression.samples=64"]
    rows = go(tmp_path, "sources=[normal]", *given)
    assert [row["student"] for row in rows[1:]] == ["auto1.5", "auto1.5"]
    out = capsys.readouterr().out
    (manifest,) = (tmp_path / "store").glob("compression-*/manifest.json")
    metrics = json.loads(manifest.read_text())["metrics"]
    assert metrics["compared"].keys() == {"pruning", "tucker", THREE_LAYERS}
    assert metrics["compared"][metrics["method"]] == metrics["agreement"]
    assert [row["compression"] for row in rows] == [None, metrics["method"], metrics["method"]]
    assert (
        f"Compression by {metrics['method']}. Agreement before training, on 16 held-out samples: pruning"
        in " ".join(out.split())
    )
    compressed = load_network(manifest.parent)
    factorised = any(isinstance(layer, TuckerLayer) for layer in compressed.modules())
    assert factorised == (metrics["method"] != "pruning")
    go(tmp_path, "sources=[normal]", *given, "resume=require")
    assert "Compression by" in capsys.readouterr().out

    from kegnet_pl.export import main

    assert main([str(tmp_path / "run"), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    said = {"pruning": "| compression | structured pruning", "tucker": "| compression | factorisation"}
    assert said[metrics["method"]] in (tmp_path / "out" / "README.md").read_text()


def test_a_pruning_without_its_package_stops_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match=r"pip install 'kegnet_pl\[pruning\]'"):
        go(tmp_path, "sources=[normal]", "compression=pruning", "compression.fit=function")
    with pytest.raises(ConfigError, match=r"pip install 'kegnet_pl\[pruning\]'"):
        go(tmp_path, "sources=[normal]", "compression=auto", "compression.fit=function")
    assert not stages(tmp_path), "a teacher was trained first"
