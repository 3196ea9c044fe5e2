"""Networks of other libraries and of Python files, and the recipes that rebuild them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import answers_of, as_classifier, count_classes, explain_answers
from kegnet_pl.networks.foreign import from_file, from_huggingface, from_timm, from_torchvision, recipe_of
from kegnet_pl.pipeline.objects import build
from kegnet_pl.runtime.errors import ConfigError

FILE = """
import torch
from helper import WIDTH
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.layer = nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.layer(x)

def number():
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "helper.py").write_text("WIDTH = 6")
    return str(tmp_path / "net.py")


def _huggingface(folder: Path) -> str:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=4)
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    return str(folder)


def _make(name: str, folder: Path) -> tuple[nn.Module, tuple[int, ...], int]:
    if name == "torchvision":
        return from_torchvision("squeezenet1_1", classes=5), (3, 64, 64), 5
    if name == "timm":
        return from_timm("vit_tiny_patch16_224", classes=5, channels=1, img_size=32, depth=2), (1, 32, 32), 5
    return from_huggingface(_huggingface(folder)), (3, 16, 16), 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "timm", "huggingface"])
def test_networks_of_libraries_are_compressed_and_rebuilt(name: str, tmp_path: Path) -> None:
    network, shape, classes = _make(name, tmp_path / "model")
    network.eval()
    classifier = as_classifier(network, shape)
    assert count_classes(classifier, shape) == classes
    assert explain_answers(classifier).endswith("is read as logits.")
    assert (answers_of(classifier) is not None) == (name == "huggingface")
    small = CompressionPlan([Rule("*", "target")], 1.2, fold=True).apply(classifier, shape).network.eval()
    save_network(small, tmp_path, "network", recipe_of(small, {}))
    x = torch.randn(2, *shape)
    again = load_network(tmp_path, logits=True)
    assert again(x).shape == (2, classes)
    torch.testing.assert_close(again(x), small(x))
    if name == "huggingface":
        assert torch.equal(load_network(tmp_path)(x).logits, again(x)), "it answers as the original does"


def test_a_recipe_names_no_pretrained_weights() -> None:
    assert recipe_of(from_torchvision("squeezenet1_1", classes=5), {})["_target_"].endswith("foreign.from_torchvision")
    assert recipe_of(nn.Linear(2, 2), {"_target_": "x"}) == {"_target_": "x"}
    network = from_torchvision("squeezenet1_1", classes=5)
    assert recipe_of(copy.deepcopy(network), {}) == recipe_of(network, {})


@pytest.mark.parametrize("arch", ["inception_v3", "googlenet"])
def test_pretrained_networks_are_rebuilt_with_their_arguments(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def build(name: str, weights: str | None = None, **options: Any) -> nn.Module:  # no download
        return make(name, weights=None, init_weights=False, **(options if weights is None else PRETRAINED[name]))

    make = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", build)
    network = from_torchvision(arch, pretrained=True)
    recipe = recipe_of(network, {})
    again = instantiate(recipe)
    assert set(again.state_dict()) == set(network.state_dict())
    assert again.transform_input is network.transform_input is True


PRETRAINED: dict[str, dict[str, Any]] = {  # arguments that the weights of torchvision change
    "inception_v3": {"transform_input": True, "aux_logits": True},
    "googlenet": {"transform_input": True, "aux_logits": False},
}


def _write_import(file: str) -> str:
    path = Path(file).with_name("broken.py")
    path.write_text("import a_package_that_does_not_exist\n")
    return str(path)


def test_a_network_of_a_file(file: str) -> None:
    network = from_file(file, "Net", classes=4)
    assert network(torch.zeros(2, 6)).shape == (2, 4)
    again = instantiate(recipe_of(network, {}))
    assert again.layer.out_features == 4
    copy.deepcopy(network)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda file: from_file("nowhere.py", "Net"), "`teacher.path` to be a file, but found none at 'nowhere.py'"),
        (lambda file: from_file(file), r"returns the network, but got null\. The file defines Net, number\.$"),
        (lambda file: from_file(_write_import(file), "Net"), r"to import broken\.py, but it failed: No module named"),
        (lambda file: from_file(file, "Nett"), r"class or function of net\.py \(Net, number\), but got 'Nett'"),
        (lambda file: from_file(file, "number"), r"number of net\.py to return a torch\.nn\.Module, but got 3"),
        (lambda file: from_torchvision("resnet19"), "one of torchvision's .*resnet18.* but got 'resnet19'"),
        (lambda file: from_timm("vit_tinny"), r"an architecture of timm \(.*vit.*\), but got 'vit_tinny'"),
        (lambda file: from_huggingface(str(Path(file).parent)), "a folder or a Hub name of an image classifier, but "),
    ],
)
def test_mistakes_are_named(call: Any, message: str, file: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(file)


def test_the_weight_of_a_compressed_layer_is_read_by_foreign_code() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(20, 20)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.to(self.layer.weight.dtype))
            return out

    small = CompressionPlan([Rule("*", 3)]).apply(Reads(), (20,)).network
    assert small(torch.zeros(2, 20)).shape == (2, 20)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network as TorchScript, as torch.export with any and with one batch size, and its weights."""
    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    x = torch.zeros(2, 1, 8, 8)
    torch.export.save(
        torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), folder / "n.pt2"
    )
    torch.export.save(torch.export.export(network, (x,)), folder / "fixed.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(network).save(folder / "n.ts")
    torch.save(network.state_dict(), folder / "weights.pt")
    torch.save(network(torch.arange(320.0).sin().reshape(5, 1, 8, 8)), folder / "expected.pt")
    return folder


@pytest.mark.parametrize("name", ["n.pt2", "n.ts"])
def test_programs_are_frozen_teachers(programs: Path, tmp_path: Path, name: str) -> None:
    network = as_classifier(from_file(str(programs / name)), (1, 8, 8))
    x = torch.arange(320.0).sin().reshape(5, 1, 8, 8).requires_grad_()
    copied = copy.deepcopy(network).eval()
    logits = copied(x)
    torch.testing.assert_close(logits, torch.load(programs / "expected.pt"))
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.abs().sum() > 0, "generators learn through the program"
    assert not any(weight.requires_grad for weight in copied.parameters())
    save_network(network, tmp_path, "network", recipe_of(network, {}))
    torch.testing.assert_close(load_network(tmp_path, trust=[str(programs / name)])(x), logits)
    with pytest.raises(ValueError, match="layer"):
        CompressionPlan([Rule("*", 0.5)]).apply(network, (1, 8, 8))


def test_a_program_of_one_batch_size_is_refused(programs: Path) -> None:
    with pytest.raises(ValueError, match=r"Guard failed.*dynamic_shapes="):
        count_classes(as_classifier(from_file(str(programs / "fixed.pt2")), (1, 8, 8)), (1, 8, 8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weights.pt", {}, r"another file, or damaged.*teacher\.weights"),
        ("missing.pt2", {}, r"found none at .*missing\.pt2"),
        ("n.pt2", {"factory": "make"}, r"Python file in `teacher\.path` for a factory"),
    ],
)
def test_other_files_are_no_programs(programs: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_file(str(programs / name), **options)


@pytest.mark.parametrize(
    "text",
    ["import sys\ndef make(): ...\nsys.exit(0)\n", "def make():\n    raise SystemExit(0)\n",
     "import argparse\nargparse.ArgumentParser().parse_args(['--unknown'])\ndef make(): ...\n"],
)  # fmt: skip
def test_a_script_that_ends_the_program_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "script.py").write_text(text)
    with pytest.raises(ConfigError, match=r"script\.py to return, but it ended the program with sys\.exit\([02]\)"):
        from_file(str(tmp_path / "script.py"), "make")
    target = {"_target_": "kegnet_pl.networks.foreign.from_file", "path": str(tmp_path / "script.py")}
    with pytest.raises(ConfigError, match="below `if __name__"):
        build({**target, "factory": "make"})
    with pytest.raises(ConfigError, match=r"`sys\.exit` to return"):
        build({"_target_": "sys.exit"})


class Forgetful(nn.Module):
    def __init__(self) -> None:
        self.classes = 3


def test_a_module_that_forgets_its_base_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"module Forgetful to be initialised.*Call super\(\)\.__init__\(\) first"):
        build({"_target_": f"{__name__}.Forgetful"})
    with pytest.raises(ValueError, match=r"network Forgetful to be initialised"):
        kegnet_pl.train_generators(Forgetful(), (8,), device="cpu")
    with pytest.raises(ValueError, match=r"network Forgetful to be initialised"):
        kegnet_pl.compress(Forgetful(), (8,))


class Listed(nn.Module):
    def __init__(self, kind: str = "list") -> None:
        super().__init__()
        layer = nn.Linear(8, 3)
        self.layers: Any = {"list": [layer], "dict": {"a": layer}}[kind]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.layers["a"] if isinstance(self.layers, dict) else self.layers[0])(x)
        return out


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_layers_in_a_list_of_python_are_named(kind: str) -> None:
    message = rf"Listed to have weights, but its layers are in a {kind} of Python, `layers`.*Use nn\.ModuleList"
    with pytest.raises(ValueError, match=message):
        build({"_target_": f"{__name__}.Listed", "kind": kind})
    with pytest.raises(ValueError, match=message):
        kegnet_pl.train_generators(Listed(kind), (8,), device="cpu")
    with pytest.raises(ValueError, match=message):
        kegnet_pl.measure_agreement(Listed(kind), nn.Linear(8, 3), (8,))
