"""Teacher cards: YAML files in place of settings of the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kegnet_pl.pipeline.teacher_card import expand_card, read_card, write_card
from kegnet_pl.runtime.errors import ConfigError
from tests.integration.conftest import configure

CARD: dict[str, Any] = {"teacher": "resnet14", "weights": "w.pt", "input_shape": [3, 32, 32], "classes": 7}


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, **changes}))
    return path


def test_a_card_stands_for_settings(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    network = {"widths": [4, 8], "options": {"name": 'it\'s \\\\ a "name"', "deep": None, "on": True}}
    path = _write(tmp_path, mean=[0.1, 0.2, 0.3], std=0.25, value_range=[-1, 1], network=network)
    config = configure(*expand_card(["-m", f"teacher_card={path}", "seed=3", "data.classes=9"])[1:])
    assert config["teacher"]["network"]["_target_"].endswith("ResNet14")
    assert {key: config["teacher"]["network"][key] for key in network} == network
    assert config["teacher"]["weights"] == str(tmp_path / "w.pt"), "paths start in the folder of the card"
    data = config["data"]
    assert (data["_target_"], data["input_shape"], data["value_range"]) == (None, [3, 32, 32], [-1, 1])
    assert (data["mean"], data["std"]) == ([0.1, 0.2, 0.3], 0.25)
    assert (config["seed"], data["classes"]) == (3, 9), "the command line wins"


def test_real_data_can_be_added(tmp_path: Path) -> None:
    path = _write(tmp_path, value_range=[0, 1])
    config = configure(*expand_card([f"teacher_card={path}", "data=files", "data.test=x.npz"]))
    assert (config["data"]["name"], config["data"]["value_range"]) == ("files", [0, 1])


def test_without_a_card_nothing_changes() -> None:
    assert expand_card(["-m", "seed=1,2", "--help"]) == ["-m", "seed=1,2", "--help"]


def test_options_of_hydra_stay_before_the_settings(tmp_path: Path) -> None:
    path = _write(tmp_path)
    expanded = expand_card(["--config-dir=conf", "-m", "seed=1", f"teacher_card={path}"])
    assert expanded[:3] == ["--config-dir=conf", "-m", "teacher=resnet14"] and expanded[-1] == "seed=1"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"wieghts": "w"}, [], r"weights, .* but got wieghts"),
        ({"classes": None}, [], r"Expected classes in .*card\.yaml, but got none"),
        ({"teacher": "a=b"}, [], r"`teacher` in .* to be an option of teacher="),
        ({"weights": "${oc.env:HOME}"}, [], r"plain value for teacher\.weights"),
        (
            {"network": {"extra": {"m n": 2}}},
            [],
            "names of letters, digits and _ .* got 'm n' in teacher.network.extra",
        ),
        ({"network": {"extra": [{"m n": 2}]}}, [], "names of letters, digits and _ .* got 'm n' in teacher.network"),
        ({}, ["teacher=lenet5"], "one teacher, but got several"),
        ({}, ["teacher_card=other.yaml"], "one teacher, but got several"),
    ],
)
def test_wrong_cards_are_refused(tmp_path: Path, changes: Any, arguments: list[str], message: str) -> None:
    path = _write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        expand_card([f"teacher_card={path}", *arguments])


@pytest.mark.parametrize("text", [None, "- a list", "a: [", "\x00"])
def test_files_that_are_no_cards(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"teacher card at|settings by name"):
        read_card(tmp_path / "card.yaml")


def test_a_written_card_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "net.py").touch()
    network = {"_target_": "kegnet_pl.networks.foreign.from_file", "path": str(tmp_path / "net.py"), "factory": "make"}
    data = {"input_shape": [2, 9], "classes": 3, "mean": None, "std": None, "batch_size": 4}
    write_card(tmp_path, {"name": "mine", "network": network, "output_key": 0}, data, "w.pt", "sigmoid")
    config = configure(*expand_card([f"teacher_card={tmp_path / 'teacher_card.yaml'}"]))
    assert config["teacher"]["network"] == network
    assert (config["teacher"]["name"], config["teacher"]["outputs"], config["teacher"]["output_key"]) == (
        "mine",
        "sigmoid",
        0,
    )
    assert config["teacher"]["weights"] == "w.pt" and config["data"]["input_shape"] == [2, 9]


def test_a_written_card_can_travel_with_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the card below the working directory; others stay as they were given."""
    project, run, moved = tmp_path / "project", tmp_path / "project" / "outputs" / "run", tmp_path / "moved"
    run.mkdir(parents=True)
    for file in ("project/net.py", "project/w.pt", "other.pt"):
        (tmp_path / file).touch()
    monkeypatch.chdir(project)
    network = {"_target_": "kegnet_pl.networks.foreign.from_file", "path": str(project / "net.py")}
    data = {"input_shape": [2, 9], "classes": 3}
    write_card(run, {"name": "mine", "network": network}, data, "w.pt", "logits")
    assert str(tmp_path) not in (run / "teacher_card.yaml").read_text()
    project.rename(moved)
    card = read_card(moved / "outputs" / "run" / "teacher_card.yaml")
    assert (card["weights"], card["network"]["path"]) == (str(moved / "w.pt"), str(moved / "net.py"))
    monkeypatch.chdir(moved)
    for given in ("../other.pt", str(tmp_path / "other.pt"), "no.pt"):
        write_card(moved / "outputs" / "run", {"name": "mine", "network": network}, data, given, "logits")
        assert f"weights: {given}\n" in (moved / "outputs" / "run" / "teacher_card.yaml").read_text()
