"""Reading weight files that strangers may have written."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kegnet_pl.api.weights import load_weights, read_state_dict
from kegnet_pl.networks import LeNet5, ResNet14
from kegnet_pl.runtime.errors import WeightsError


class _Network(nn.Module):
    def __init__(self, features: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, features, 3)
        self.norm = nn.BatchNorm2d(features) if norm else nn.Identity()
        self.fc = nn.Linear(features, 2)


def _state(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        key: torch.randn_like(value) if value.is_floating_point() else value + 3
        for key, value in _Network().state_dict().items()
    }


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def _assert_loads(path: Path, state: dict[str, Tensor]) -> None:
    network = _Network()
    load_weights(network, path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


OTHERS = {"decoder.layers.0.weight": torch.ones(3, 3), "log_sigma": torch.zeros(1)}

CONTENTS = {
    "state dict": lambda state: state,
    "the authors' release": lambda state: {"model_state": state, "epoch": 3, "optimizer_state": {"state": {}}},
    "a Lightning checkpoint": lambda state: {
        "state_dict": _prefixed(state, "network.") | OTHERS,
        "epoch": 3,
        "callbacks": {"x": {"y": 1}},
    },
    "a Lightning checkpoint of a deeper network": lambda state: {"state_dict": _prefixed(state, "module.teacher.net.")},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "model": lambda state: {"model": state},
    "DataParallel": lambda state: _prefixed(state, "module."),
    "torch.compile": lambda state: _prefixed(state, "_orig_mod."),
    "both wrappers in a container": lambda state: {"state_dict": _prefixed(state, "_orig_mod.module.")},
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["new", "old"])
def test_layouts(tmp_path: Path, name: str, zipped: bool) -> None:
    state = _state()
    torch.save(CONTENTS[name](state), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    _assert_loads(tmp_path / "weights.pt", state)


@pytest.mark.parametrize("prefix", ["", "module.", "network."])
def test_safetensors(tmp_path: Path, prefix: str) -> None:
    state = _state()
    save_file(_prefixed(state, prefix), tmp_path / "weights.safetensors")
    _assert_loads(tmp_path / "weights.safetensors", state)


def test_read_returns_tensors_by_key(tmp_path: Path) -> None:
    state = _state()
    torch.save({"state_dict": _prefixed(state, "network.")}, tmp_path / "weights.ckpt")
    found = read_state_dict(str(tmp_path / "weights.ckpt"))
    assert set(found) == {f"network.{key}" for key in state}
    assert all(value.device.type == "cpu" for value in found.values())


def test_old_files_lack_the_count_of_batches(tmp_path: Path) -> None:
    state = _state()
    del state["norm.num_batches_tracked"]
    torch.save(state, tmp_path / "weights.pt")
    network = _Network()
    load_weights(network, tmp_path / "weights.pt")
    assert torch.equal(network.norm.running_mean, state["norm.running_mean"])


@pytest.mark.parametrize("folder", [False, True])
def test_no_file(tmp_path: Path, folder: bool) -> None:
    path = tmp_path if folder else tmp_path / "nowhere.pt"
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message
    assert ("a folder" in message) is folder
    assert str(Path.cwd()) in message
    assert "teacher.weights" in message


def _save(path: Path, kind: str) -> bytes:
    if kind == "safetensors":
        save_file(_state(), path)
    else:
        torch.save({"model_state": _state()}, path, _use_new_zipfile_serialization=kind == "new")
    return path.read_bytes()


def _suffix(kind: str) -> str:
    return ".safetensors" if kind == "safetensors" else ".pth.tar"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["new", "old", "safetensors"])
def test_truncated_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights{_suffix(kind)}"
    content = _save(path, kind)
    wrong = {}
    for size in [*range(0, len(content), 13), len(content) - 1]:
        path.write_bytes(content[:size])
        try:
            read_state_dict(path)
        except WeightsError as error:
            good = "truncated" in str(error) and str(path) in str(error) and f"({size:,} bytes)" in str(error)
            if not good or "Python objects" in str(error):
                wrong[size] = str(error)
        except Exception as error:
            wrong[size] = f"{type(error).__name__}: {error}"
        else:
            wrong[size] = "was read"
    assert not wrong, f"{len(wrong)} of {len(content) // 13} cuts, such as {dict(list(wrong.items())[:3])}"


@pytest.mark.parametrize("content", [b"not found " * 50, b"<!DOCTYPE html><html>404</html>", b"\x00" * 300])
@pytest.mark.parametrize("kind", ["new", "safetensors"])
def test_no_weight_file_at_all(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"weights{_suffix(kind)}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        read_state_dict(path)


class _Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"junk\xff\xfe", "it is not a complete file of torch.save")],
)
def test_what_is_no_weight_file_at_all(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        read_state_dict(tmp_path / "weights.pt")
    assert "weights_only" not in str(caught.value), "torch's advice to unpickle anything"


@pytest.mark.parametrize("how", ["new", "old", "pickle"])
@pytest.mark.parametrize("what", ["attack", "module"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_objects_are_not_loaded(tmp_path: Path, how: str, what: str) -> None:
    trap = tmp_path / "trap"
    content = {"model_state": _state(), "extra": _Attack(trap) if what == "attack" else _Network()}
    path = tmp_path / "weights.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"extra": content["extra"]}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "new")
    with pytest.raises(WeightsError, match=r"Python objects.*torch\.save\(model\.state_dict\(\), FILE\)") as caught:
        read_state_dict(path)
    assert "truncated" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "described"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dict with the keys epoch, lr"),
        ({"model_state": {"a": 1}}, "a dict with the keys a"),
        ({}, r"\(none\)"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
    ],
)
def test_tensors_but_no_state_dict(tmp_path: Path, content: Any, described: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=rf"state dict.*{described}.*torch\.save"):
        read_state_dict(tmp_path / "weights.pt")


def test_another_network_with_missing_and_unknown_keys(tmp_path: Path) -> None:
    state = _state()
    state["head.weight"] = state.pop("fc.weight")
    torch.save(state, tmp_path / "weights.pt")
    network = _Network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(network, tmp_path / "weights.pt")
    message = str(caught.value)
    assert "missing: fc.weight" in message
    assert "unknown: head.weight" in message
    assert "other shapes" not in message
    for name in ("_Network", str(tmp_path / "weights.pt"), "teacher=", "data.classes", "data.input_shape"):
        assert name in message
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was overwritten"


def test_another_network_with_other_shapes(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "weights.pt")
    with pytest.raises(
        WeightsError,
        match=r"other shapes: conv\.weight is .*conv\.bias is \(4,\) in the file, \(5,\) in the network.* and 4 more",
    ):
        load_weights(_Network(features=5), tmp_path / "weights.pt")


def test_long_lists_are_cut_short(tmp_path: Path) -> None:
    torch.save({f"layer{index}": torch.ones(1) for index in range(30)}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"unknown: layer0, layer1, layer2 and 27 more"):
        load_weights(_Network(), tmp_path / "weights.pt")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "channels", "cls"), [("mnist", 1, LeNet5), ("fashion", 1, ResNet14), ("svhn", 3, ResNet14)]
)
def test_released_teachers(reference_dir: Path, name: str, channels: int, cls: type[nn.Module]) -> None:
    path = reference_dir / "teachers" / f"{name}.pth.tar"
    network = cls(channels=channels, classes=10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_weights(network, path)
    same = [key for key, value in network.state_dict().items() if torch.equal(value, before[key])]
    assert all(key.endswith("num_batches_tracked") for key in same), same
    with pytest.raises(WeightsError, match="those of another network"):
        load_weights(cls(channels=4 - channels, classes=10), path)


@pytest.mark.data
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_released_teacher_cut_short(reference_dir: Path, tmp_path: Path, share: float) -> None:
    content = (reference_dir / "teachers" / "mnist.pth.tar").read_bytes()
    path = tmp_path / "mnist.pth.tar"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match="truncated"):
        read_state_dict(path)


def test_programs_are_told_from_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    torch.jit.save(torch.jit.script(network), tmp_path / "script.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3),)), tmp_path / "export.pt2")
    for name in ("script.pt", "export.pt2"):
        with pytest.raises(WeightsError, match=rf"{name}, but got a program .*save\(model\.state_dict\(\), FILE\)"):
            load_weights(network, tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(WeightsError, match=r"a\.pt, but got: permission denied\. Change its permissions"):
        read_state_dict(tmp_path / "a.pt")


def test_buffers_of_ones_own_may_be_infinite_and_weights_and_statistics_may_not(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(network.state_dict(), tmp_path / "masked.pt")
    load_weights(network, tmp_path / "masked.pt")
    for key in ("0.weight", "1.running_var"):
        state = {name: value.clone() for name, value in network.state_dict().items()}
        state[key].fill_(torch.inf)
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(WeightsError, match=rf"infinite or other values in: {key}"):
            load_weights(network, tmp_path / "wrong.pt")


@pytest.mark.parametrize("wrap", [
    lambda state: {"model": state, "epoch": 3},
    lambda state: {"net": {f"module.{key}": value for key, value in state.items()}},
    lambda state: {"ema": state},
    lambda state: {"model": {"state_dict": {f"_orig_mod.{key}": value for key, value in state.items()}}},
    lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "state_dict_ema": {}},
    lambda state: {"state_dict_ema": state, "optimizer": {}},
])  # fmt: skip
def test_wrappers_of_other_programs_are_understood(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    source, network = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network[0].weight, source[0].weight)


class _Renaming(nn.Sequential):
    """Reads the names of an earlier version, as many networks do."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(f"{prefix}old.")]:
            state_dict[key.replace("old.", "0.")] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.mark.parametrize("rename", [
    lambda key: f"old.{key.split('.', 1)[1]}",
    lambda key: f"0.module.{key.split('.', 1)[1]}",
    lambda key: f"net._orig_mod.0._fsdp_wrapped_module.{key.split('.', 1)[1]}",
])  # fmt: skip
def test_the_network_itself_decides_which_keys_fit(tmp_path: Path, rename: Callable[[str], str]) -> None:
    source, network = nn.Sequential(nn.Linear(3, 2)), _Renaming(nn.Linear(3, 2))
    torch.save({rename(key): value for key, value in source.state_dict().items()}, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network[0].weight, source[0].weight)


def test_wrappers_inside_of_the_network_and_shared_weights(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network = nn.Sequential(nn.DataParallel(nn.Linear(3, 3)), nn.Linear(3, 3))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network[0].module.weight, source[0].weight)
    source[1].weight = source[0].weight
    shared = {key: value for key, value in source.state_dict().items() if key != "1.weight"}
    torch.save(shared, tmp_path / "shared.pt")
    load_weights(source, tmp_path / "shared.pt")
    with pytest.raises(WeightsError, match=r"missing: 1\.weight"):
        load_weights(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tmp_path / "shared.pt")


def test_lazy_layers_get_their_weights(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    x = torch.randn(5, 3)
    assert torch.equal(network(x), source(x))
    with pytest.raises(WeightsError, match=r"missing: 0\.weight"):
        torch.save({"0.bias": torch.zeros(4)}, tmp_path / "part.pt")
        load_weights(nn.Sequential(nn.LazyLinear(4)), tmp_path / "part.pt")
