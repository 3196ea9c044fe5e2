"""Files that run without the package."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api import export
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.export import export_network
from kegnet_pl.api.trust import UntrustedCodeError
from kegnet_pl.export import _copy_own_file, export_run, main
from kegnet_pl.networks import MLP, LeNet5
from kegnet_pl.networks.foreign import from_file
from kegnet_pl.runtime.errors import UserError
from tests.unit.reporting.rows import TEACHER, student, write_run


class _Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(features=6, classes=3, width=8, blocks=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(x), "features": x}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x).mean(dim=1))
        return out


def _compressed(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    return kegnet_pl.compress(network, shape, 1.5, fit="weights", fold=True, progress=False).network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (LeNet5(), (1, 32, 32)),
        (nn.Sequential(MLP(features=6, classes=3, width=20, blocks=2), nn.Softmax(dim=1)), (6,)),
        (nn.Sequential(nn.Conv1d(2, 16, 5), nn.ConvTranspose1d(16, 12, 4, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                       nn.Linear(12, 3)), (2, 40)),
        (_Attention(), (9, 16)),
    ],
    ids=["images", "rows with probabilities", "signals", "attention"],
)  # fmt: skip
def test_each_file_returns_what_the_network_returns(network: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    student = _compressed(network, shape).eval()
    files = export_network(student, tmp_path, shape, ["onnx", "torch_export", "torchscript"])
    assert [file.path.name for file in files] == ["model.onnx", "model.pt2", "model.ts"]
    assert all(file.difference < 1e-4 and file.size == file.path.stat().st_size > 0 for file in files)
    x = torch.randn(3, *shape)
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes(), "no paths of this machine"
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(x), student(x), atol=1e-5, rtol=1e-5)
    for module in (loaded, torch.jit.load(tmp_path / "model.ts")):
        maps = [value for value in module.parameters() if value.dim() == 4]
        assert all(value.is_contiguous(memory_format=torch.channels_last) for value in maps), "faster on a CPU"


def test_a_dictionary_becomes_logits(tmp_path: Path) -> None:
    network = _Dictionary().eval()
    (file,) = export_network(network, tmp_path, (6,), ["torch_export"])
    x = torch.randn(4, 6)
    torch.testing.assert_close(torch.export.load(file.path).module()(x), network(x)["logits"])
    assert isinstance(network(x), dict), "the network itself is not changed"


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(features=6, classes=3, width=8, blocks=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :4], self.network(x)


def test_the_named_output_is_exported_and_quantised(tmp_path: Path) -> None:
    network, x = _Pair().eval(), torch.randn(20, 6)
    export_network(network, tmp_path, (6,), ["torch_export"], output_key=1)
    found = torch.export.load(tmp_path / "model.pt2").module()(x)
    torch.testing.assert_close(found, network(x)[1])
    quantized = kegnet_pl.quantize(network, tmp_path / "int8.onnx", 6, output_key=1)
    torch.testing.assert_close(quantized(x.double()), network(x)[1], atol=0.05, rtol=0.05)
    with pytest.raises(UserError, match="`path` to be a file to write"):
        kegnet_pl.quantize(network, tmp_path, 6)


class _FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Parameter(torch.zeros(1, 1, 6)), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.token.expand(len(x), -1, -1)[:, 0], x], dim=1))


def test_a_file_that_takes_one_batch_size_alone_is_named(tmp_path: Path) -> None:
    try:
        export_network(_FixedBatch(), tmp_path, (6,), ["onnx"])
    except UserError as error:
        assert "Try a fixed batch size" in str(error)
    (exported,) = export_network(_FixedBatch(), tmp_path, (6,), ["onnx"], batch_size=3)
    assert exported.difference < 1e-5


def test_a_fixed_batch(tmp_path: Path) -> None:
    (file,) = export_network(MLP(6, 3, 8, 1), tmp_path, (6,), ["torch_export"], batch_size=4)
    module = torch.export.load(file.path).module()
    assert module(torch.randn(4, 6)).shape == (4, 3)
    with pytest.raises(Exception, match="4"):
        module(torch.randn(5, 6))


def test_other_precisions_and_sizes(tmp_path: Path) -> None:
    (file,) = export_network(MLP(6, 3, 8, 1).double(), tmp_path, (6,), ["torch_export"])
    assert torch.export.load(file.path).module()(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(UserError, match="`batch_size` of at least 1, but got 0"):
        export_network(MLP(6, 3, 8, 1), tmp_path, (6,), ["torch_export"], batch_size=0)
    assert export.compare_outputs(nn.Identity(), lambda x: x * float("nan"), [torch.ones(2, 2)]) == float("inf")


def test_a_file_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(network: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Any:
        path.write_text("x")
        return lambda batch: network(batch) + 0.01

    monkeypatch.setitem(export._WRITERS, "torch_export", ("pt2", write))
    with pytest.raises(UserError, match=r"model\.pt2 to return the outputs of the network, .* but got 0\.0"):
        export_network(MLP(6, 3, 8, 1), tmp_path, (6,), ["torch_export"])
    assert not list(tmp_path.iterdir())


class _Counts(nn.Module):
    """Its result depends on a number that it reads from a tensor, which torch cannot export."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out * 2 if float(x.sum()) > 0 else out


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a network that torch can export as torch_export, but _Counts failed: "):
        export_network(_Counts(), tmp_path, (6,), ["torch_export"])
    with pytest.raises(UserError, match="some of onnx, torch_export, torchscript, but got tflite"):
        export_network(_Counts(), tmp_path, (6,), ["tflite"])


@pytest.mark.parametrize("arguments", [["nowhere"], ["nowhere", "--format", "tflite"]])
def test_the_command_names_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("Error: Expected ")


def test_the_python_file_of_a_network_travels_with_it(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (there / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 3)\n")
    network = from_file(str(there / "net.py"), "make")
    recipe = {"_target_": "kegnet_pl.networks.foreign.from_file", "path": str(there / "net.py"), "factory": "make"}
    save_network(network, here, "model", recipe)
    copied = _copy_own_file(here)
    assert copied == here / "net.py" and json.loads((here / "model.json").read_text())["network"]["path"] == "net.py"
    (there / "net.py").unlink()
    moved = here.rename(tmp_path / "moved")
    with pytest.raises(UntrustedCodeError, match=r"--trust .*moved/net\.py"):
        kegnet_pl.load_network(moved, "model")
    again = kegnet_pl.load_network(moved, "model", trust=[str(moved / "net.py")])
    assert torch.equal(again.weight, network.weight)
    with pytest.raises(FileNotFoundError, match=r'load_network\(folder, "model"\)'):
        kegnet_pl.load_network(moved)


STAGE = "student-0123456789abcdef"


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Return the folder of a stranger's run; its student is in a store beside it, and ``mine`` has private files."""
    stage, run = tmp_path / "store" / STAGE, tmp_path / "runs" / "run"
    stage.mkdir(parents=True)
    recipe = {"_target_": "kegnet_pl.networks.MLP", "features": 6, "classes": 3, "width": 8, "blocks": 1}
    save_network(MLP(6, 3, width=8, blocks=1), stage, "network", recipe)
    write_run(run, [dataclasses.replace(TEACHER, fingerprint="f" * 16), student(0.5)])
    config = {"data": {"input_shape": [6], "classes": 3}, "compression": {"name": "option1"}}
    networks = {"T+KegNet": {"student": f"../../store/{STAGE}"}}
    (run / "stages.json").write_text(json.dumps({"config": config, "networks": networks}))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("private")
    (mine / "net.py").write_text("raise SystemExit('executed')")
    save_network(MLP(6, 3, width=8, blocks=1), mine, "network", recipe)
    return run


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_links_in_the_folder_of_an_export_are_replaced(stranger: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", stranger / "export"
    out.mkdir()
    for name in ("model.ts", "model.json", "model.safetensors", ".model.json.draft", ".README.md.draft"):
        (out / name).symlink_to(mine / "file")
    before = _contents(mine)
    export_run(stranger, formats=["torchscript", "safetensors"])
    assert _contents(mine) == before
    assert not any(path.is_symlink() for path in out.iterdir() if not path.name.endswith(".draft"))
    assert kegnet_pl.load_network(out, "model")(torch.zeros(1, 6)).shape == (1, 3)


@pytest.mark.parametrize(
    ("place", "target", "expected"),
    [
        (f"store/{STAGE}/network.safetensors", "network.safetensors", "is a link that leaves that folder"),
        (f"store/{STAGE}/network.json", "network.json", "is a link that leaves that folder"),
        ("runs/run/export", ".", "is a link that leaves that folder. Copy its target into the folder, or choose --out"),
        ("runs/run/export/README.md", "file", "a link that leaves"),
        ("runs/run/stages.json", "file", "a link that leaves"),
        ("runs/run/results.json", "file", "a link that leaves"),
    ],
)
def test_links_that_leave_a_strangers_folder_are_not_followed(
    stranger: Path, tmp_path: Path, place: str, target: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, link = tmp_path / "mine", tmp_path / place
    before = _contents(mine)
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(mine / target)
    assert main([str(stranger), "--format", "safetensors"]) == 1
    error = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert error.startswith("Error: Expected ") and expected in error and "private" not in error
    assert _contents(mine) == before


@pytest.mark.parametrize("path", ["net.py", "../../mine/net.py", "{mine}/net.py"])
def test_a_strangers_recipe_reads_and_runs_no_file(
    stranger: Path, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, mine = tmp_path / "store" / STAGE, tmp_path / "mine"
    (stage / "net.py").symlink_to(mine / "net.py")
    target = "kegnet_pl.networks.foreign.from_file"
    recipe = {"_target_": target, "path": path.format(mine=mine), "factory": "make"}
    (stage / "network.json").write_text(json.dumps({"network": recipe}))
    assert main([str(stranger), "--format", "safetensors"]) == 1
    assert "--trust" in capsys.readouterr().err and not (stranger / "export" / "net.py").exists()
