"""Every shipped configuration composes, presets keep their numbers, and every experiment starts."""

import importlib.resources
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module

from kegnet_pl.data import RealDataModule
from kegnet_pl.networks import CifarResNet
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.context import open_context
from kegnet_pl.pipeline.objects import build
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.settings import RunSettings
from tests.integration.conftest import FAST, configure, go

ROOT = Path(str(importlib.resources.files("kegnet_pl.conf")))
PRESETS = sorted(
    path.relative_to(ROOT / "experiment").with_suffix("").as_posix() for path in ROOT.glob("experiment/**/*.yaml")
)
PAPER = {
    # learning rates of teacher, generator, student; decoder blocks; alpha, beta (PAPER sections 2, 5, 6)
    "mnist_lenet": (1e-5, 1e-3, 1e-5, 1, 1, 0),
    "fashion_resnet": (1e-2, 1e-2, 1e-4, 3, 1, 10),
    "svhn_resnet": (1e-4, 1e-2, 1e-4, 3, 1, 1),
    "shuttle_mlp": (1e-3, 1e-4, 1e-4, 2, 1, 0),
    "pendigits_mlp": (1e-3, 1e-4, 1e-4, 2, 1, 0),
    "letter_mlp": (1e-3, 1e-4, 1e-4, 2, 1, 0),
}
FOLDERS = ["", "paper/", "strict/"]
BEST = [f"best/{name}" for name in PAPER]
GROUPS = [
    "callbacks", "compression", "data", "generator", "logger", "quantization", "source", "student", "teacher",
    "trainer",
]  # fmt: skip
SNAPSHOT = json.loads((Path(__file__).parent / "snapshots" / "presets.json").read_text())
PUBLIC = {"cifar10_resnet20": 20, "cifar10_resnet56": 56}
"""Preset whose teacher has public weights, which the user names -> depth of the teacher."""
NEEDED = {
    "custom/table": ["data=letter", "teacher=mlp"],
    "custom/signal": ["data.input_shape=[1,64]"],
    **{name: ["teacher.weights=w"] for name in PUBLIC},
}
"""Preset -> settings that its user adds; the others run with the default data."""
SINCE = (
    "compression.method", "compression.fold", "compression.by", "compression.round_to", "compression.batch_size",
    "latency.", "agreement.", "objective", "quantization.", "teacher.output", "teacher.pretrained", "preset",
    "verify_store", "trial", "generator.processes", "student.memory", "compression.matching", "student.matching",
)  # fmt: skip
"""Settings that are not in the snapshot of any preset: they are younger."""
NEW = (
    "source.", "compression.plans.", "compression.fit", "compression.source", "compression.samples",
    "compression.oversampling", "student.reconstruct", "student.oversampling", "student.mixing", "teacher.weights_url",
    *SINCE,
)  # fmt: skip
"""Settings that are not in the snapshot of older presets, which was made before they were."""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def test_each_experiment_of_the_paper_has_a_preset_for_each_recipe() -> None:
    expected = {folder + name for folder in FOLDERS for name in PAPER}
    assert set(PRESETS) == expected | set(PUBLIC) | set(BEST) | {
        "digits_lenet",
        "custom/batch_norm",
        "custom/image",
        "custom/signal",
        "custom/table",
    }


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_their_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolved configuration is the stored one; of older presets, that of the schedules before presets."""
    for variable in ("KEGNET_DATA_DIR", "KEGNET_SWEEP"):
        monkeypatch.delenv(variable, raising=False)
    config = configure(f"experiment={name}", *NEEDED.get(name, []))
    resolved = RunSettings.from_config(config).compression.model_dump(include={"rules", "target", "when_larger"})
    config["compression"] |= resolved
    left_out = ("source.", "compression.plans.", *SINCE) if name.startswith(("best/", "custom/")) else NEW
    found = {key: value for key, value in _flat(config).items() if not key.startswith(left_out)}
    assert found == SNAPSHOT["every preset"] | SNAPSHOT[name]


def test_the_demo_is_the_default() -> None:
    assert configure() == configure("experiment=digits_lenet")


@pytest.mark.parametrize("name", BEST)
def test_the_strongest_recipe_has_the_experiments_teacher_and_generators(name: str) -> None:
    strongest, plain = (RunSettings.from_config(configure(f"experiment={key}")) for key in (name, name[5:]))
    assert (strongest.recipe, plain.recipe) == ("best", "fast")
    assert strongest.data == plain.data and strongest.teacher == plain.teacher
    assert strongest.compression == plain.compression
    (shares,) = strongest.sources
    assert "real" not in shares and strongest.student.selection == "last"
    if "kegnet" in shares:
        longer = {"epochs", "lr_scheduler"} if "resnet" in name else set()
        of_strongest, of_plain = (settings.generator.model_dump(exclude=longer) for settings in (strongest, plain))
        assert of_strongest == of_plain


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_file(name: str) -> None:
    """Its first line is the command; it refers to no other preset and computes nothing."""
    text = (ROOT / "experiment" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 45
    command = "# python -m kegnet_pl" + ("" if name == "digits_lenet" else f" experiment={name}")
    assert text.splitlines()[0] == "# @package _global_" and text.splitlines()[1].startswith(command)
    assert "${" not in text and "/experiment" not in text


OPTIONS = [
    (name, option)
    for name in PAPER
    for option in ("option1", "option2", "option3")
    if not (name.endswith("mlp") and option == "option3")  # the paper has two options for tables
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_experiments_can_be_built(name: str, option: str) -> None:
    settings = RunSettings.from_config(configure(f"experiment={name}", f"compression={option}"))
    assert settings.compression.name == option and settings.compression.rules
    build(settings.teacher.network)
    build(settings.generator.network)
    build(settings.generator.decoder)
    for term in settings.generator.objective.values():
        build(term.term)
    assert build(settings.data).input_shape == tuple(settings.data.input_shape)


@pytest.mark.parametrize("folder", ["paper/", "strict/"])
@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_authors_schedule_has_the_papers_settings(name: str, folder: str) -> None:
    settings = RunSettings.from_config(configure(f"experiment={folder}{name}"))
    generator, student = settings.generator, settings.student
    found = (
        settings.teacher.optimizer.lr,
        generator.optimizer.lr,
        student.optimizer.lr,
        generator.decoder["blocks"],
        generator.objective["decoder"].weight,
        generator.objective["diversity"].weight,
    )
    assert found == PAPER[name]
    assert (generator.count, generator.epochs, generator.steps_per_epoch, generator.batch_size) == (5, 200, 100, 256)
    assert (student.samples, student.epochs, student.batch_size) == (32_000, 400, 64)


@pytest.mark.parametrize("name", [*(folder + name for folder in FOLDERS for name in sorted(PAPER)), *BEST])
def test_debug_is_next_to_nothing_for_every_student(name: str) -> None:
    student = configure(f"experiment={name}", FAST)["student"]
    for budget in (student, student["baselines"]):
        assert (budget["samples"], budget["epochs"]) == (128, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_only_presets_of_the_paper_touch_real_data(name: str) -> None:
    config = configure(f"experiment={name}", *NEEDED.get(name, []))
    assert (config["student"]["selection"] == "real") == name.startswith("paper/") == (config["recipe"] == "paper")


def test_the_users_settings_win_over_a_preset() -> None:
    config = configure("experiment=paper/svhn_resnet", "student.epochs=3", "student.selection=last",
                       "student.patience=null", "student.min_epochs=null", "data=mnist")  # fmt: skip
    found = config["student"]["epochs"], config["student"]["selection"], config["data"]["name"]
    assert found == (3, "last", "mnist")


LIBRARIES = {
    "torchvision": ["teacher.arch=resnet18"],
    "timm": ["teacher.arch=resnet18"],
    "huggingface": ["teacher.path=model"],
    "file": ["teacher.path=net.py", "teacher.factory=make"],
}
"""Option of the group `teacher` -> settings that it needs."""


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group: str) -> None:
    for path in sorted((ROOT / group).glob("*.yaml")):
        unknown = path.stem in ("none", "files")
        more = ["data.input_shape=[1,32,32]", "data.classes=3", "teacher.weights=w"] if unknown else []
        more += ["trainer.devices=2"] if path.stem == "ddp" else []
        more += [f"{group}.network._target_=torch.nn.Identity", "compression=ratio"] if path.stem == "custom" else []
        more += [f"sources=[{path.stem}]"] if group == "source" else []
        more += LIBRARIES.get(path.stem, [])
        config = configure(f"{group}={path.stem}", *more)
        assert config[group]


def test_every_file_says_what_it_is() -> None:
    for path in ROOT.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path


def test_unknown_keys_are_refused() -> None:
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        cfg = compose("config")
    with pytest.raises(Exception, match="Key 'colour' is not in struct"):
        cfg.generator.colour = "red"
    RunSettings.from_config(to_plain(cfg))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", sorted(PAPER))
def test_experiments_start_on_real_data(
    name: str, data_dir: Path, reference_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is that of 500 test samples, as ResNet14 takes long for 10,000 images; parity tests measure the rest."""
    part = RealDataModule.part
    monkeypatch.setattr(
        RealDataModule, "part", lambda data, name: part(data, name)[:500] if name == "test" else part(data, name)
    )
    released = {"mnist_lenet": "mnist", "fashion_resnet": "fashion", "svhn_resnet": "svhn"}
    weights = f"teacher.weights={reference_dir / 'teachers' / released[name]}.pth.tar" if name in released else "seed=1"
    rows = go(tmp_path, f"experiment={name}", f"data.root={data_dir}", weights, "sources=[kegnet]", "generator.count=1")
    assert [row["method"] for row in rows] == ["teacher", "T", "T+KegNet"]
    assert all(row["accuracy"] is not None for row in rows)
    if name in released:
        assert rows[0]["accuracy"] > 0.9


@pytest.mark.parametrize("name", PUBLIC)
def test_presets_with_public_teachers_build_and_ask_for_the_weights(name: str) -> None:
    config = configure(f"experiment={name}", "teacher.weights=w")
    assert build(config["teacher"]["network"]).state_dict().keys() == CifarResNet(PUBLIC[name]).state_dict().keys()
    assert build(config["data"]).input_shape == (3, 32, 32)
    assert (config["compression"]["name"], config["compression"]["target"]) == ("ratio2", 2)
    with pytest.raises(
        ConfigError, match=r"the preset does not train a teacher.*Download it from https://github\.com/.*FILE"
    ):
        configure(f"experiment={name}")
    configure(f"experiment={name}", "teacher.weights_url=null")


def _write_public_teacher(folder: Path, depth: int) -> list[str]:
    """Write a checkpoint like the public ones and test images; return the settings that name them."""
    teacher = CifarResNet(depth)
    teacher(torch.randn(8, 3, 32, 32))  # statistics of batch norm
    state = {f"module.{name}": value for name, value in teacher.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, folder / "teacher.th")
    torch.save({"x": torch.randn(12, 3, 32, 32), "y": torch.arange(12) % 10}, folder / "test.pt")
    return [
        f"teacher.weights={folder / 'teacher.th'}", "data=files", f"data.test={folder / 'test.pt'}",
        "data.input_shape=[3,32,32]", "data.classes=10", "student.samples=64",
    ]  # fmt: skip


def test_a_public_teacher_is_compressed_and_its_student_trained(tmp_path: Path) -> None:
    rows = go(tmp_path, "experiment=cifar10_resnet20", *_write_public_teacher(tmp_path, 20), "sources=[kegnet]",
              "generator.count=1")  # fmt: skip
    assert [row["method"] for row in rows] == ["teacher", "T", "T+KegNet"]
    assert rows[0]["parameters"] == 269_722 and rows[0]["teacher"] == "resnet20"
    assert all(2 <= row["compression_ratio"] < 2.02 for row in rows[1:])
    assert all(row["accuracy"] is not None for row in rows)


def test_a_public_teacher_has_a_student_from_scratch(tmp_path: Path) -> None:
    """By the settings that the preset names."""
    lines = (ROOT / "experiment" / "cifar10_resnet56.yaml").read_text().splitlines()
    said = next(line.split(": ")[1].split() for line in lines if line.startswith("# Another student: "))
    assert said[0] == "student=resnet20"
    given = ["experiment=cifar10_resnet56", *_write_public_teacher(tmp_path, 56), "sources=[normal]", *said]
    rows = go(tmp_path, *given, "student.baselines.samples=64", "student.epochs=1")
    assert [row["method"] for row in rows] == ["teacher", "S", "S+Normal"]
    assert [row["parameters"] for row in rows] == [853_018, 269_722, 269_722]


def test_missing_test_data_is_said_and_does_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["data=mnist", "data.download=false", f"data.root={tmp_path}", f"store={tmp_path / 'store'}"]
    config = configure(*missing, "teacher.weights=given.pt")
    context = open_context(RunSettings.from_config(config), config, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert context.data is None and "Accuracy will not be measured" in said
    with pytest.raises(FileNotFoundError, match=r"data\.download=true"):
        open_context(RunSettings.from_config(configure(*missing)), configure(*missing), tmp_path)


@pytest.mark.parametrize("preset", ["batch_norm", "image", "table"])
@pytest.mark.parametrize("generator", ["image", "dense", "custom"])
def test_presets_for_other_networks_are_for_every_generator(preset: str, generator: str) -> None:
    target = "generator.network._target_=kegnet_pl.networks.generator.DenseGenerator"
    own = ["+generator.network.features=7", target] if generator == "custom" else []
    shape = "[3,32,32]" if generator == "image" else "[7]"
    config = configure(
        f"experiment=custom/{preset}", "data=none", f"data.input_shape={shape}", "data.classes=3", "teacher=mlp",
        "teacher.weights=w", f"generator={generator}", *own,
    )  # fmt: skip
    build(config["generator"]["network"])
    build(config["generator"]["decoder"])


def test_the_examples_of_the_help_compose() -> None:
    header = yaml.safe_load((ROOT / "hydra" / "default.yaml").read_text())["help"]["header"].replace("\\\n", "")
    commands = [shlex.split(line) for line in header.splitlines() if "python -m kegnet_pl teacher=" in line]
    configs = [configure(*arguments[3:]) for arguments in commands]
    assert [config["data"]["classes"] for config in configs] == [10, 1000]
    assert all(config["data"]["name"] == "none" for config in configs)
