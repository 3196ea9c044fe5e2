"""Networks on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.api.sampling import load_generators
from kegnet_pl.compression import CompressionPlan, Rule, factorise
from kegnet_pl.networks import MLP, ResNet14
from kegnet_pl.runtime.errors import WeightsError

RECIPE = {"_target_": "kegnet_pl.networks.MLP", "features": 6, "classes": 3, "width": 12, "blocks": 2, "dropout": 0.5}


def _mlp(seed: int = 1) -> MLP:
    torch.manual_seed(seed)
    return MLP(features=6, classes=3, width=12, blocks=2, dropout=0.5)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    network = _mlp()
    save_network(network, tmp_path, "network", RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.json", "network.safetensors"]
    torch.manual_seed(99)
    found = load_network(tmp_path)
    assert isinstance(found, MLP)
    assert set(found.state_dict()) == set(network.state_dict())
    for key, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert network.training
    assert not any(layer.training for layer in found.modules())


def test_running_statistics_are_kept(tmp_path: Path) -> None:
    network = ResNet14(channels=1, classes=4)
    network(torch.randn(4, 1, 32, 32) * 3 + 1)
    save_network(network, tmp_path, "network", {"_target_": "kegnet_pl.networks.ResNet14", "channels": 1, "classes": 4})
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(load_network(tmp_path)(x), network.eval()(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_layout_is_kept(tmp_path: Path, layout: torch.memory_format) -> None:
    """A student is as fast as measured."""
    network = ResNet14(channels=1, classes=4).to(memory_format=layout).eval()  # type: ignore[call-overload]
    save_network(network, tmp_path, "network", {"_target_": "kegnet_pl.networks.ResNet14", "channels": 1, "classes": 4})
    found = load_network(tmp_path)
    assert {name: value.stride() for name, value in found.named_parameters()} == {
        name: value.stride() for name, value in network.named_parameters()
    }
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(found(x), network(x))


@pytest.mark.parametrize("fold", [False, True])
def test_compressed_networks_are_rebuilt(tmp_path: Path, fold: bool) -> None:
    teacher = _mlp().eval()
    compressed = CompressionPlan([Rule("layers.3", 4)], fold=fold).apply(teacher, (6,))
    assert compressed.report.ranks, "nothing was compressed"
    save_network(compressed.network, tmp_path, "student", RECIPE)
    found = load_network(tmp_path, "student")
    x = torch.randn(5, 6)
    assert torch.equal(found(x), compressed.network.eval()(x))
    assert not torch.allclose(found(x), teacher(x), atol=1e-3), "it is the teacher itself"
    count = sum(parameter.numel() for parameter in found.parameters())
    assert count == sum(parameter.numel() for parameter in compressed.network.parameters())
    assert count < sum(parameter.numel() for parameter in teacher.parameters())


def test_files_hold_the_recipe_and_tensors_alone(tmp_path: Path) -> None:
    network = _mlp()
    network.layers[3] = factorise(network.layers[3], (3, 4))
    save_network(network, tmp_path, "network", RECIPE)
    content = {"network": RECIPE, "ranks": {"layers.3": [3, 4]}, "folded": [], "split": []}
    assert json.loads((tmp_path / "network.json").read_text()) == content
    assert set(load_file(tmp_path / "network.safetensors")) == set(network.state_dict())


def test_several_networks_in_a_folder(tmp_path: Path) -> None:
    for index in range(2):
        save_network(_mlp(seed=index), tmp_path, f"generator_{index}", RECIPE)
    for index in range(2):
        expected = _mlp(seed=index).layers[0].weight
        assert torch.equal(load_network(str(tmp_path), f"generator_{index}").layers[0].weight, expected)


def test_weights_that_are_not_contiguous(tmp_path: Path) -> None:
    network = _mlp()
    weight = torch.randn(6, 12).T
    assert not weight.is_contiguous()
    network.layers[0].weight.data = weight
    save_network(network, tmp_path, "network", RECIPE)
    assert torch.equal(load_network(tmp_path).layers[0].weight, weight)


class Tied(nn.Module):
    """A network that uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


def test_weights_that_are_shared(tmp_path: Path) -> None:
    network = Tied().eval()
    save_network(network, tmp_path, "network", {"_target_": "tests.unit.api.test_checkpoints.Tied"})
    x = torch.randn(3, 6)
    assert torch.equal(load_network(tmp_path)(x), network(x))


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"generator_3\.json in .*folder of a finished stage") as caught:
        load_network(tmp_path, "generator_3")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", [None, "", "x" * 5000, "ä" * 150, "../network", "a/b", "/etc/passwd", "..", "a\0b", 3])
def test_names_that_are_none(tmp_path: Path, name: Any) -> None:
    save_network(_mlp(), tmp_path, "network", RECIPE)
    with pytest.raises(FileNotFoundError, match=r"^Expected ") as caught:
        load_network(tmp_path, name)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("folder", [None, 3, "x" * 5000, "a\0b", "\ud800"])
def test_folders_that_are_none(folder: Any) -> None:
    for load in (load_network, lambda folder: load_generators(folder, _mlp())):
        with pytest.raises(FileNotFoundError, match=r"^Expected ") as caught:
            load(folder)
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_damaged_weights(tmp_path: Path, size: int) -> None:
    save_network(_mlp(), tmp_path, "network", RECIPE)
    path = tmp_path / "network.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"network\.safetensors"):
        load_network(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    save_network(_mlp(), tmp_path, "network", RECIPE)
    (tmp_path / "network.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"network\.safetensors"):
        load_network(tmp_path)


def test_weights_of_another_recipe(tmp_path: Path) -> None:
    save_network(_mlp(), tmp_path, "network", RECIPE | {"width": 13})
    with pytest.raises(WeightsError, match="other shapes"):
        load_network(tmp_path)
