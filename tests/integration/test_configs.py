"""Every shipped configuration composes, and every experiment starts."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from kegnet_pl.schema import check, to_plain

from kegnet_pl.pipeline.run import open_data, run
from kegnet_pl.pipeline.stages import build
from tests.integration.conftest import FAST, configure

ROOT = Path(str(importlib.resources.files("kegnet_pl.conf")))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiment").glob("*.yaml"))
GROUPS = ["callbacks", "compression", "data", "generator", "logger", "student", "teacher", "trainer"]


def test_all_six_paper_experiments_are_there() -> None:
    paper = {"mnist_lenet", "fashion_resnet", "svhn_resnet", "shuttle_mlp", "pendigits_mlp", "letter_mlp"}
    assert paper <= set(EXPERIMENTS)


OPTIONS = [
    (name, option)
    for name in EXPERIMENTS
    for option in ("option1", "option2", "option3")
    if not (name.endswith("mlp") and option == "option3")  # the paper has two options for tables
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_experiment_composes(name: str, option: str) -> None:
    config = configure(f"+experiment={name}", f"compression={option}")
    assert config["compression"]["name"] == option
    for part in ("data", "generator", "student"):
        assert config[part]
    build(config["teacher"]["network"])
    build(config["generator"]["network"])
    build(config["generator"]["decoder"])
    for term in config["generator"]["objective"].values():
        build(term["term"])
    assert build(config["data"]).input_shape == tuple(config["data"]["input_shape"])


PAPER = {
    # learning rates of teacher, generator, student; decoder blocks; alpha, beta (PAPER sections 2, 5, 6)
    "mnist_lenet": (1e-5, 1e-3, 1e-5, 1, 1, 0),
    "fashion_resnet": (1e-2, 1e-2, 1e-4, 3, 1, 10),
    "svhn_resnet": (1e-4, 1e-2, 1e-4, 3, 1, 1),
    "shuttle_mlp": (1e-3, 1e-4, 1e-4, 2, 1, 0),
    "pendigits_mlp": (1e-3, 1e-4, 1e-4, 2, 1, 0),
    "letter_mlp": (1e-3, 1e-4, 1e-4, 2, 1, 0),
}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_experiment_has_the_papers_settings(name: str) -> None:
    config = configure(f"+experiment={name}")
    generator, student = config["generator"], config["student"]
    found = (
        config["teacher"]["optimizer"]["lr"],
        generator["optimizer"]["lr"],
        student["optimizer"]["lr"],
        generator["decoder"]["blocks"],
        generator["objective"]["decoder"]["weight"],
        generator["objective"]["diversity"]["weight"],
    )
    assert found == PAPER[name]
    schedule = (generator["count"], generator["epochs"], generator["steps_per_epoch"], generator["batch_size"])
    assert schedule == (5, 200, 100, 256)
    assert (student["samples"], student["epochs"], student["batch_size"]) == (32_000, 400, 64)
    assert student["selection"] == "last", "no real data in selection unless it is asked for"


@pytest.mark.parametrize("recipe", ["paper", "strict", "fast"])
@pytest.mark.parametrize("name", sorted(PAPER))
def test_debug_is_next_to_nothing_for_every_student(name: str, recipe: str) -> None:
    student = configure(f"+experiment={name}", f"recipe={recipe}", "+debug=fast")["student"]
    for budget in (student, student["baselines"]):
        assert (budget["samples"], budget["epochs"]) == (128, 2)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_recipe_paper_is_the_authors_schedule(name: str) -> None:
    strict, paper = configure(f"+experiment={name}"), configure(f"+experiment={name}", "recipe=paper")
    assert (strict["recipe"], paper["recipe"]) == ("strict", "paper")
    assert paper["generator"] == strict["generator"], "the same generators serve both"
    student = paper["student"]
    assert (student["selection"], student["patience"], student["min_epochs"]) == ("real", 50, 100)
    own = ("selection", "patience", "min_epochs", "baselines", "norm", "shuffle")
    assert {key: value for key, value in student.items() if key not in own} == {
        key: value for key, value in strict["student"].items() if key not in own
    }
    assert (student["norm"], student["shuffle"]) == ("batch", False), "the release"
    decided = {"svhn_resnet": ("adapt", True), "fashion_resnet": ("frozen", False)}.get(name, ("batch", False))
    assert (strict["student"]["norm"], strict["student"]["shuffle"]) == decided
    lr = 1e-6 if name == "mnist_lenet" else 1e-4
    assert student["baselines"] == {"samples": 6400, "epochs": 1000, "temperature": 1.0, "lr": lr}
    same = {"samples": 32_000, "epochs": 400, "temperature": 1.0, "lr": student["optimizer"]["lr"]}
    assert strict["student"]["baselines"] == same, "noise has the budget and the tuning of KegNet"


@pytest.mark.parametrize("name", sorted(PAPER))
@pytest.mark.parametrize("recipe", ["strict", "fast"])
def test_other_recipes_touch_no_real_data(name: str, recipe: str) -> None:
    assert configure(f"+experiment={name}", f"recipe={recipe}")["student"]["selection"] == "last"


def test_the_users_settings_win_over_a_recipe() -> None:
    config = configure("+experiment=svhn_resnet", "recipe=paper", "student.epochs=3", "student.selection=last",
                       "student.patience=null", "student.min_epochs=null")  # fmt: skip
    assert (config["student"]["epochs"], config["student"]["selection"]) == (3, "last")


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group: str) -> None:
    for path in sorted((ROOT / group).glob("*.yaml")):
        unknown = path.stem in ("none", "files")
        more = ["data.input_shape=[1,32,32]", "data.classes=3", "teacher.weights=w"] if unknown else []
        more += ["trainer.devices=2"] if path.stem == "ddp" else []
        more += [f"{group}.network._target_=torch.nn.Identity", "compression=ratio"] if path.stem == "custom" else []
        config = configure(f"{group}={path.stem}", *more)
        assert config[group]


def test_every_key_is_explained() -> None:
    """A YAML file starts by saying what it is for."""
    for path in ROOT.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path


def test_struct_mode() -> None:
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        cfg = compose("config")
    with pytest.raises(Exception, match="Key 'colour' is not in struct"):
        cfg.generator.colour = "red"
    check(to_plain(cfg))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_starts_on_real_data(name: str, data_dir: Path, reference_dir: Path, tmp_path: Path) -> None:
    released = {"mnist_lenet": "mnist", "fashion_resnet": "fashion", "svhn_resnet": "svhn"}
    weights = f"teacher.weights={reference_dir / 'teachers' / released[name]}.pth.tar" if name in released else "seed=1"
    few = "sources=[kegnet]"  # ResNet14 on 10,000 test images takes seconds enough
    store = f"store={tmp_path / 'store'}"
    config = configure(f"+experiment={name}", FAST, f"data.root={data_dir}", store, weights, few)
    run(config, tmp_path)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in rows] == ["teacher", "T", "T+KegNet"]
    assert all(row["accuracy"] is not None for row in rows)
    if name in released:
        assert rows[0]["accuracy"] > 0.9
    assert (tmp_path / "samples.png").is_file()


def test_missing_test_data_is_said_and_does_no_harm(tmp_path: Path) -> None:
    said: list[str] = []
    config = configure("data=mnist", "data.download=false", f"data.root={tmp_path}", "teacher.weights=given.pt")
    assert open_data(config, said.append) is None
    assert "Accuracy will not be measured" in said[0] and str(tmp_path) in said[0]
    with pytest.raises(FileNotFoundError, match=r"data\.download=true"):
        open_data(configure("data=mnist", "data.download=false", f"data.root={tmp_path}"), said.append)


def test_ones_own_network_gets_what_fast_has() -> None:
    fast = configure("+experiment=svhn_resnet", "recipe=fast")
    own = configure(
        "data=none", "data.input_shape=[3,32,32]", "data.classes=10", "teacher=resnet14", "teacher.weights=w",
        "compression=ratio", "schedule=batch_norm",
    )  # fmt: skip
    assert (own["generator"], own["student"]) == (fast["generator"], fast["student"])


SCHEDULES = sorted(path.stem for path in (ROOT / "schedule").glob("*.yaml"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("generator", ["image", "dense", "custom"])
def test_every_schedule_is_for_every_generator(schedule: str, generator: str) -> None:
    target = "generator.network._target_=kegnet_pl.networks.generator.DenseGenerator"
    own = ["+generator.network.features=7", target] if generator == "custom" else []
    shape = "[3,32,32]" if generator == "image" else "[7]"
    config = configure(
        "data=none", f"data.input_shape={shape}", "data.classes=3", "teacher=mlp", "teacher.weights=w",
        "compression=ratio", f"generator={generator}", f"schedule={schedule}", *own,
    )  # fmt: skip
    build(config["generator"]["network"])
    build(config["generator"]["decoder"])


@pytest.mark.parametrize("name", ["fashion_resnet", "svhn_resnet"])
def test_only_fast_looks_at_the_statistics_and_draws_by_repeated_pixels(name: str) -> None:
    def found(recipe: str) -> tuple[Any, ...]:
        generator = configure(f"+experiment={name}", f"recipe={recipe}")["generator"]
        network, weight = generator["network"], generator["objective"]["statistics"]["weight"]
        return network["upsampling"], network["output_norm"], generator["count"], generator["teacher_norm"], weight

    assert found("fast") == ("nearest", "batch", 2, "running", 10.0)
    for recipe in ("strict", "paper"):
        assert found(recipe) == ("transposed", "image", 5, "batch", 0.0)
