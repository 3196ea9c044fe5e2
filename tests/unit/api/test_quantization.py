"""Post-training quantisation with ONNX Runtime."""

import copy
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from kegnet_pl import Split, measure_accuracy
from kegnet_pl.api.export import export_network
from kegnet_pl.api.quantization import OnnxNetwork, draw_samples, quantize
from kegnet_pl.benchmark import measure_latency
from kegnet_pl.compression import measure_agreement
from kegnet_pl.networks import MLP
from kegnet_pl.networks.generator import DenseGenerator
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.sources import GeneratorSource, NormalNoise

SHAPE = (3, 8, 8)


class _Classifier(nn.Module):
    """Convolutions of very different channels, batch norm with statistics, and a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(288, 5),
        )  # fmt: skip
        with torch.no_grad():
            self.layers[0].weight.mul_(torch.logspace(-3, 0, 32).view(-1, 1, 1, 1))
        self.layers(torch.randn(64, *SHAPE) * 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(x), "features": x}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return _Classifier().eval()


@pytest.fixture(scope="module")
def files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxNetwork]:
    folder = tmp_path_factory.mktemp("files")
    samples = 2 * torch.randn(100, *SHAPE, generator=torch.Generator().manual_seed(1))
    return {
        "int8": quantize(network, folder / "all" / "int8.onnx", SHAPE, samples),
        "weights": quantize(network, folder / "weights.onnx", SHAPE),
        "float": OnnxNetwork(export_network(network, folder, SHAPE, ["onnx"])[0].path),
    }


def test_weights_are_int8_with_a_scale_for_each_channel(files: dict[str, OnnxNetwork]) -> None:
    for name, has_activations in (("int8", True), ("weights", False)):
        graph = onnx.load(files[name].path).graph
        kinds = {node.op_type for node in graph.node}
        tensors = {one.name: one for one in graph.initializer}
        assert "BatchNormalization" not in kinds and ("QuantizeLinear" in kinds) == has_activations
        weights = [one for one in tensors.values() if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1]
        assert sorted(tuple(one.dims) for one in weights) == [(5, 288), (32, 3, 3, 3), (32, 32, 3, 3)]
        for one in weights:
            scale = tensors[one.name.replace("_quantized", "_scale")]
            assert list(scale.dims) == [one.dims[0]]
        large = [one for one in tensors.values() if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1]
        assert not large, "no weight is left in float32"
        assert files[name].size == files[name].path.stat().st_size < 0.6 * files["float"].size


def test_a_quantised_network_answers_almost_as_the_network(network: nn.Module, files: dict[str, OnnxNetwork]) -> None:
    x = 2 * torch.randn(300, *SHAPE)
    expected = network(x)["logits"].detach()
    for name, tolerance in (("float", 1e-5), ("weights", 0.02), ("int8", 0.05)):
        found = files[name](x)
        assert found.shape == (300, 5)
        assert float((found - expected).abs().mean()) < tolerance * float(expected.abs().mean()), name
    assert not torch.equal(files["weights"](x), expected) and not torch.equal(files["int8"](x), files["weights"](x))


def test_the_samples_decide_the_ranges(network: nn.Module, tmp_path: Path) -> None:
    x = 2 * torch.randn(300, *SHAPE)
    logits = nn.Sequential(copy.deepcopy(network).layers)
    good = quantize(network, tmp_path / "good.onnx", SHAPE, x[:64])
    bad = quantize(network, tmp_path / "bad.onnx", SHAPE, x[:64] / 50)
    found = [measure_agreement(logits, one, x) for one in (good, bad)]
    assert found[0] is not None and found[1] is not None
    assert found[0] > 0.95 and found[1] < 0.8


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_method_takes_a_last_batch_that_is_smaller(method: str, tmp_path: Path) -> None:
    network = MLP(features=6, classes=3, width=16, blocks=1).eval()
    x = torch.randn(130, 6)
    found = quantize(network, tmp_path / "x.onnx", (6,), x, method=method)  # type: ignore[arg-type]
    assert (measure_agreement(network, found, x) or 0) > 0.9


def test_a_file_is_measured_as_other_networks(network: nn.Module, files: dict[str, OnnxNetwork]) -> None:
    x = 2 * torch.randn(50, *SHAPE)
    split = Split(x, network(x)["logits"].argmax(dim=1))
    assert measure_accuracy(files["float"], split, batch_size=7) == 1
    assert measure_accuracy(files["int8"], split) > 0.9
    networks = {"float32": files["float"], "int8": files["int8"]}
    report = measure_latency(networks, SHAPE, batch_sizes=[2], seconds=0.01, threads=1)
    assert [row.network for row in report.rows] == ["float32", "int8"] and report.rows[0].speedup == 1


def test_copies_share_the_file_and_sessions_follow_the_threads(files: dict[str, OnnxNetwork]) -> None:
    network, x, before = files["int8"], torch.randn(2, *SHAPE), torch.get_num_threads()
    twin = copy.deepcopy(network)
    assert twin.path == network.path and torch.equal(twin(x), network(x))
    torch.set_num_threads(before + 1)
    try:
        session = network._open()
        assert session.get_session_options().intra_op_num_threads == before + 1
        assert network._open() is session
    finally:
        torch.set_num_threads(before)


def test_a_fixed_batch_size_takes_any_batch(network: nn.Module, tmp_path: Path) -> None:
    x = 2 * torch.randn(10, *SHAPE)
    found = quantize(network, tmp_path / "x.onnx", SHAPE, x, batch_size=4)
    assert onnx.load(found.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert found(x).shape == (10, 5)
    torch.testing.assert_close(found(x)[8:], found(x[8:]))
    with pytest.raises(ValueError, match="at least 11 calibration samples, a whole batch, but got 10"):
        quantize(network, tmp_path / "x.onnx", SHAPE, x, batch_size=11)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (torch.zeros(4, 5), {}, r"`samples` of shape \(N, 6\), but got \(4, 5\)"),
        ([1, 2], {}, r"`samples` of shape \(N, 6\), but got list"),
        (torch.full((4, 6), float("nan")), {}, "finite calibration samples"),
        (torch.zeros(0, 6), {}, "at least 1 calibration samples"),
        (torch.zeros(4, 6), {"method": "magic"}, "`method` to be one of"),
    ],
)
def test_mistakes_are_named(samples: Tensor, options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(MLP(6, 3, 8, 1), tmp_path / "x.onnx", (6,), samples, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_missing_package_and_a_damaged_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.onnx").write_text("x")
    with pytest.raises(UserError, match=r"an ONNX file in .*x\.onnx, but ONNX Runtime cannot read it"):
        OnnxNetwork(tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed\. Run: pip install 'kegnet_pl\[onnx\]'"):
        quantize(MLP(6, 3, 8, 1), tmp_path / "y.onnx", (6,))


def test_samples_are_whole_rounds_of_all_generators() -> None:
    samples, held_out = draw_samples(NormalNoise((6,)), 10, seed=0)
    assert samples.shape == held_out.shape == (10, 6) and not torch.equal(samples, held_out)
    generators = [DenseGenerator(noise_dim=2, classes=3, features=6) for _ in range(4)]
    assert len(draw_samples(GeneratorSource(generators), 10, seed=0)[0]) == 12
