"""Code that files which travel may name."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kegnet_pl import load_network
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.trust import UntrustedCodeError, check_code, read_recipe
from kegnet_pl.networks.foreign import list_own_code
from kegnet_pl.runtime.errors import WeightsError

NET = """
from pathlib import Path
from torch import nn
Path("{mark}").touch()
class MyNet(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
"""


class OwnNet(nn.Linear):
    """A class of a module that is imported."""

    def __init__(self) -> None:
        super().__init__(2, 3)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it runs; return the mark."""
    mark = tmp_path / "ran"
    (tmp_path / "their_net.py").write_text(NET.format(mark=mark))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_net", raising=False)
    return mark


def _stored(folder: Path, recipe: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_network(nn.Linear(2, 3), folder, "network", recipe)
    return folder


LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


@pytest.mark.parametrize(
    "recipe",
    [
        {"_target_": "os.system", "command": "touch {mark}"},
        {"_target_": "their_net.MyNet"},
        {"_target_": "torch.hub.load", "repo_or_dir": "x"},
        {"_target_": "torch.nn.modules.module.warnings.os.system"},
        {"_target_": "kegnet_pl.networks.lenet.torch.hub.load", "repo_or_dir": "x"},
        {"_target_": "kegnet_pl.networks.foreign.from_file", "path": "{file}", "factory": "MyNet"},
        {"_target_": "kegnet_pl.networks.foreign.from_program", "path": "{file}"},
        {"_target_": "kegnet_pl.networks.foreign.importlib.import_module", "name": "their_net"},
        {"_target_": "${oc.env:HOME}"},
        {"_target_": "torch.nn.Sequential", "_args_": [LINEAR, {"_target_": "their_net.MyNet"}]},
        {**LINEAR, "bias": "${oc.decode:'{_target_: their_net.MyNet}'}"},
        {**LINEAR, "bias": {"_target_": "builtins.eval", "_args_": ["1"]}},
        {"_target_": "pytorch_lightning.LightningModule"},
        {"_target_": ["x"]},
        {"_target_": "MyNet"},
        {},
    ],
    ids=lambda recipe: str(recipe.get("_target_")),
)
def test_other_code_does_not_run(tmp_path: Path, module: Path, recipe: dict[str, Any]) -> None:
    text = json.dumps(recipe).replace("{mark}", str(module)).replace("{file}", str(tmp_path / "their_net.py"))
    folder = _stored(tmp_path / "stage", json.loads(text))
    with pytest.raises(Exception, match="Expected") as caught:
        load_network(folder)
    assert type(caught.value).__name__ in ("UntrustedCodeError", "UserError")
    assert not module.exists() and "their_net" not in sys.modules


def test_what_the_user_trusts_runs(tmp_path: Path, module: Path) -> None:
    folder = _stored(tmp_path / "stage", {"_target_": "their_net.MyNet"})
    with pytest.raises(UntrustedCodeError, match=r"their_net\.MyNet: .*--trust their_net .*trust=\['their_net'\]"):
        load_network(folder)
    assert not module.exists()
    assert load_network(folder, trust="their_net")(torch.zeros(1, 2)).shape == (1, 3)
    assert module.exists()
    assert load_network(folder).weight.shape == (3, 2), "imported by now"


def test_a_file_is_trusted_by_its_path(tmp_path: Path, module: Path) -> None:
    path = tmp_path / "their_net.py"
    recipe = {"_target_": "kegnet_pl.networks.foreign.from_file", "path": str(path), "factory": "MyNet"}
    folder = _stored(tmp_path / "stage", recipe)
    for trust in ((), ("their_net",), ("kegnet_pl.networks.foreign.from_file",), (str(tmp_path / "other.py"),)):
        with pytest.raises(UntrustedCodeError, match=r"from_file with .*their_net\.py"):
            load_network(folder, trust=trust)
    assert not module.exists()
    assert load_network(folder, trust=[str(path)]).weight.shape == (3, 2)
    assert load_network(folder).weight.shape == (3, 2), "executed by now"


def test_code_that_needs_trust_is_listed(tmp_path: Path) -> None:
    path = str(tmp_path / "net.py")
    file = {"_target_": "kegnet_pl.networks.foreign.from_file", "path": path, "factory": "make"}
    assert list_own_code(file) == [path]
    assert list_own_code([{"_target_": "mine.nets.MyNet", "body": {"_target_": "mine.Body"}}]) == ["mine.nets", "mine"]
    assert list_own_code([LINEAR, {"_target_": "timm.create_model"}, {"path": "x"}]) == []


def test_own_imported_classes_and_the_allow_list(tmp_path: Path) -> None:
    own = f"{OwnNet.__module__}.OwnNet"
    resnet = {"_target_": "kegnet_pl.networks.foreign.from_torchvision", "arch": "resnet18"}
    sources = [{"_target_": "kegnet_pl.sources.NoiseSource"}, {"_target_": "torchvision.models.resnet18"}]
    check_code([LINEAR, {"_target_": own}, resnet, *sources, {"_target_": "kegnet_pl.networks.LeNet5"}], tmp_path)
    assert isinstance(load_network(_stored(tmp_path / "stage", {"_target_": own})), OwnNet)


@pytest.mark.parametrize("name", ["../network", "/etc/network", "a/b", ".."])
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    _stored(tmp_path, LINEAR)
    (tmp_path / "below").mkdir()
    with pytest.raises(FileNotFoundError, match="Expected"):
        load_network(tmp_path / "below", name)


EVIL: dict[str, dict[str, Any]] = {
    "weights of torchvision": {
        "_target_": "torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict", "model_dir": "x",
    },
    "a loader of timm": {"_target_": "timm.models.load_state_dict", "checkpoint_path": "x", "weights_only": False},
    "a writer of timm": {"_target_": "timm.models._hub.save_for_hf", "save_directory": "x"},
    "an address": {
        "_target_": "kegnet_pl.networks.foreign.from_timm", "arch": "test_resnet", "pretrained": True,
        "pretrained_cfg_overlay": {"url": "http://127.0.0.1:1/${oc.env:MY_API_TOKEN}"},
    },
    "a builder with weights": {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"},
    "a folder as a name of timm": {"_target_": "timm.create_model", "model_name": "local-dir:x"},
    "code of a hub": {
        "_target_": "kegnet_pl.networks.foreign.from_config",
        "config": {"model_type": "bert", "auto_map": {"AutoModelForImageClassification": "a/b--evil.Net"}},
    },
    "a path that ends early": {"_target_": "kegnet_pl.networks.foreign.from_file", "path": "a\0b"},
}  # fmt: skip


@pytest.mark.parametrize("recipe", EVIL.values(), ids=EVIL.keys())
def test_libraries_of_the_allow_list_read_no_further_files(tmp_path: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(UntrustedCodeError, match="this code would run, or read further files"):
        read_recipe(recipe, tmp_path / "network.json")


@pytest.mark.parametrize(
    "recipe",
    [
        {"_target_": "torchvision.models.resnet18", "weights": None, "num_classes": 4},
        {"_target_": "timm.create_model", "model_name": "test_resnet", "pretrained": False},
        {"_target_": "kegnet_pl.networks.foreign.from_torchvision", "arch": "resnet18", "classes": 4},
    ],
)
def test_builders_without_weights_are_allowed(tmp_path: Path, recipe: dict[str, Any]) -> None:
    assert read_recipe(recipe, tmp_path / "network.json") == recipe


def test_no_message_shows_a_value_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PLACE", "s3cr3t-value-123")
    recipe = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2, "device": "${oc.env:MY_PLACE}"}
    (tmp_path / "network.json").write_text(json.dumps({"network": recipe}), encoding="utf-8")
    with pytest.raises(WeightsError) as caught:
        load_network(tmp_path)
    assert "s3cr3t" not in str(caught.value) and "${oc.env:MY_PLACE}" in str(caught.value)


def test_a_pipe_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    save_network(
        nn.Linear(2, 3), tmp_path, "network", {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    )
    (tmp_path / "network.safetensors").unlink()
    os.mkfifo(tmp_path / "network.safetensors")
    with pytest.raises(WeightsError, match="Expected a regular file"):
        load_network(tmp_path)
