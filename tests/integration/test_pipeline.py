"""The stages in a row, and what the store finds again."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import load_file

from kegnet_pl.artefacts import load_network
from kegnet_pl.errors import ConfigError, StoreError, WeightsError
from kegnet_pl.modules.base import SeededModule
from kegnet_pl.pipeline import run
from tests.integration.conftest import FAST, configure

SCHEMA = json.loads((importlib.resources.files("kegnet_pl.reporting") / "results.schema.json").read_text())


def go(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run the pipeline on next to nothing; return the rows of results.json."""
    config = configure(FAST, f"store={folder / 'store'}", *overrides)
    out = folder / "run"
    out.mkdir(parents=True, exist_ok=True)
    run(config, out)
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    jsonschema.validate(rows, SCHEMA)
    return rows


def stages(folder: Path) -> dict[str, float]:
    """Return the finished stages of a store, and when each was published."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "store").glob("[!.]*/manifest.json")}


def kinds(names: set[str]) -> list[str]:
    return sorted(name.split("-")[0] for name in names)


def test_rows_and_artefacts(tmp_path: Path) -> None:
    rows = go(tmp_path)
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
    assert curves == ["generator_0", "generator_1"]


def test_second_run_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go(tmp_path)
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
def test_a_change_rebuilds_the_stage_and_its_children_only(tmp_path: Path, override: str, rebuilt: list[str]) -> None:
    go(tmp_path, "methods=[kegnet]")
    before = stages(tmp_path)
    go(tmp_path, "methods=[kegnet]", override)
    after = stages(tmp_path)
    assert {name: after[name] for name in before} == before
    assert kinds(set(after) - set(before)) == rebuilt


@pytest.mark.parametrize("kind", ["TeacherModule", "GeneratorModule", "StudentModule"])
@pytest.mark.parametrize("more", ["data=digits", "student.selection=synthetic"])
def test_interrupted_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, more: str
) -> None:
    long = ("methods=[kegnet]", "teacher.epochs=3", "generator.epochs=3", "student.epochs=3", more)
    go(tmp_path / "unbroken", *long)
    start_epoch = SeededModule.on_train_epoch_start

    def crash(module: SeededModule) -> None:
        if type(module).__name__ == kind and module.current_epoch == 2:
            raise RuntimeError("the power went out")
        start_epoch(module)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(SeededModule, "on_train_epoch_start", crash)
        go(tmp_path / "broken", *long)
    published = kinds(set(stages(tmp_path / "broken")))
    assert {"TeacherModule": "teacher", "GeneratorModule": "generators", "StudentModule": "student"}[
        kind
    ] not in published
    go(tmp_path / "broken", *long)
    for name in stages(tmp_path / "unbroken"):
        for file in (tmp_path / "unbroken" / "store" / name).glob("*.safetensors"):
            mine, other = load_file(file), load_file(tmp_path / "broken" / "store" / name / file.name)
            assert mine.keys() == other.keys()
            for key, value in mine.items():
                assert torch.equal(value, other[key]), f"{name}/{file.name}: {key}"


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    def weights(folder: Path, seed: int) -> torch.Tensor:
        rows = go(folder, "methods=[kegnet]", f"seed={seed}")
        return load_file(folder / "store" / f"student-{rows[-1]['fingerprint']}" / "network.safetensors")[
            "conv3.1.weight"
        ]

    first = weights(tmp_path / "a", 0)
    assert torch.equal(first, weights(tmp_path / "b", 0))
    assert not torch.equal(first, weights(tmp_path / "a", 1))


def test_batch_norm_learns_statistics_in_teacher_and_student(tmp_path: Path) -> None:
    """Networks come from disk in evaluation mode; Lightning does not change the mode it is given."""
    rows = go(tmp_path, "methods=[normal]", "teacher=resnet14", "compression=fraction")
    initial = {key: torch.zeros(16) for key in ("norm1.running_mean",)}
    teacher = load_file(tmp_path / "store" / f"teacher-{rows[0]['fingerprint']}" / "network.safetensors")
    student = load_file(tmp_path / "store" / f"student-{rows[-1]['fingerprint']}" / "network.safetensors")
    for key, value in initial.items():
        assert not torch.equal(teacher[key], value)
        assert not torch.equal(student[key], teacher[key])
    assert student["norm1.num_batches_tracked"] > teacher["norm1.num_batches_tracked"] > 0


@pytest.mark.parametrize(
    "override", ["+trainer.gradient_clip_val=0.1", "+callbacks.stop._target_=pytorch_lightning.callbacks.Timer"]
)
def test_a_setting_that_may_change_the_result_makes_other_stages(tmp_path: Path, override: str) -> None:
    first = go(tmp_path, "methods=[normal]")
    second = go(tmp_path, "methods=[normal]", override)
    assert first[0]["fingerprint"] != second[0]["fingerprint"]


def test_a_damaged_stage_says_so(tmp_path: Path) -> None:
    rows = go(tmp_path, "methods=[normal]")
    (tmp_path / "store" / f"student-{rows[-1]['fingerprint']}" / "network.safetensors").unlink()
    with pytest.raises(StoreError, match=r"damaged .*Delete that folder"):
        go(tmp_path, "methods=[normal]")


def test_another_network_as_student(tmp_path: Path) -> None:
    rows = go(tmp_path, "methods=[kegnet]", "student=lenet5")
    assert [row["method"] for row in rows] == ["teacher", "S", "S+KegNet"]
    assert rows[-1]["student"] == "LeNet5" and rows[-1]["compression_ratio"] == 1


@pytest.mark.parametrize("selection", ["synthetic", "real"])
def test_selection_is_named(tmp_path: Path, selection: str) -> None:
    rows = go(tmp_path, "methods=[normal]", f"student.selection={selection}", "student.patience=1")
    assert rows[-1]["selection"] == selection


def test_without_any_real_data(tmp_path: Path) -> None:
    trained = go(tmp_path / "with", "methods=[kegnet]")
    weights = tmp_path / "with" / "store" / f"teacher-{trained[0]['fingerprint']}" / "network.safetensors"
    shape = ["data=none", "data.input_shape=[1,32,32]", "data.classes=10"]
    rows = go(tmp_path / "without", *shape, "methods=[kegnet]", f"teacher.weights={weights}")
    assert all(row["accuracy"] is None and row["test_set"] is None for row in rows)


def test_wrong_input_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Expected a weight file at"):
        go(tmp_path, f"teacher.weights={tmp_path / 'nowhere.pt'}")
    with pytest.raises(ConfigError, match=r"to take samples of shape \(1, 32, 32\), but it failed"):
        go(tmp_path, "teacher.network.channels=3")
    with pytest.raises(ConfigError, match=r"generator=image for"):
        go(tmp_path, "generator=dense")
    with pytest.raises(ConfigError, match=r"logits of shape \(2, 10\).*got \(2, 7\)"):
        go(tmp_path, "teacher.network.classes=7")
    with pytest.raises(StoreError, match="resume=require"):
        go(tmp_path, "resume=require")
    with pytest.raises(ValueError, match="'conv9' matches none of: conv1, conv2"):
        go(tmp_path, "compression=evbmf", "compression.rules=[{layers: conv9, rank: 2}]")
    with pytest.raises(ValueError, match=r"between 1 and 16 for layer 'conv2' \(16 output channels\), but got 20"):
        go(tmp_path, "compression=evbmf", "compression.rules=[{layers: conv2, rank: {in: 2, out: 20}}]")


def test_a_stopped_run_keeps_finished_stages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches none of"):
        go(tmp_path, "compression=evbmf", "compression.rules=[{layers: conv9, rank: 2}]")
    assert kinds(set(stages(tmp_path))) == ["teacher"]
