"""Teachers, generators and decoders give the answers of the authors' release."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.networks import MLP, Decoder, DenseGenerator, FrozenModule, ImageGenerator
from kegnet_pl.networks.generator import OutputNorm
from tests.parity.conftest import Teachers, below, relative_error

pytestmark = pytest.mark.data

each_teacher = pytest.mark.parametrize("name", ["mnist", "svhn", "fashion"])
each_channels = pytest.mark.parametrize("channels", [1, 3])


def _check(actual: Tensor, expected: Tensor) -> None:
    assert relative_error(actual, expected) < 1e-5


@each_teacher
def test_parameters(name: str, teacher: Teachers, golden: dict[str, dict[str, int]]) -> None:
    assert sum(p.numel() for p in teacher(name).parameters()) == golden[name]["parameters"]


@each_teacher
def test_logits_by_running_statistics(name: str, teacher: Teachers, tensors: dict[str, Tensor]) -> None:
    x, expected = tensors[f"{name}/x"], tensors[f"{name}/logits_eval"]
    network = teacher(name)

    _check(network.eval()(x), expected)
    _check(FrozenModule(network.train(), "running").train()(x), expected)


@each_teacher
def test_logits_by_the_batchs_own_statistics(name: str, teacher: Teachers, tensors: dict[str, Tensor]) -> None:
    x, expected = tensors[f"{name}/x"], tensors[f"{name}/logits_train_bn"]
    frozen = FrozenModule(teacher(name), "batch")

    _check(frozen(x), expected)
    _check(frozen.train()(x), expected)  # no statistic has moved since
    if name != "mnist":  # without batch norm both are the same
        assert relative_error(expected, tensors[f"{name}/logits_eval"]) > 1e-3


def _image_generator(tensors: dict[str, Tensor], channels: int, output_norm: OutputNorm = "image") -> ImageGenerator:
    generator = ImageGenerator(channels, classes=10, output_norm=output_norm)
    generator.load_state_dict(below(tensors, f"image_generator{channels}/state/"))
    return generator.train()


@each_channels
def test_image_generator(channels: int, tensors: dict[str, Tensor]) -> None:
    mine = below(tensors, f"image_generator{channels}/")
    generator = _image_generator(tensors, channels)

    _check(generator(mine["z"], mine["y"]), mine["out_train"])
    after = below(mine, "state_after_train_forward/")
    assert {key for key in generator.state_dict() if "running" in key or "tracked" in key} == set(after)
    for key, expected in after.items():
        _check(generator.state_dict()[key], expected)
    _check(generator.eval()(mine["z"], mine["y"]), mine["out_eval_after"])


@each_channels
def test_image_generator_without_standardisation(channels: int, tensors: dict[str, Tensor]) -> None:
    mine = below(tensors, f"image_generator{channels}/")
    generator = _image_generator(tensors, channels, output_norm="none")
    generator(mine["z"], mine["y"])

    _check(generator.eval()(mine["z"], mine["y"]), mine["out_eval_after_unadjusted"])


@pytest.mark.parametrize(("channels", "blocks"), [(1, 1), (3, 3)])
def test_decoder(channels: int, blocks: int, tensors: dict[str, Tensor]) -> None:
    decoder = Decoder((channels, 32, 32), blocks=blocks)
    decoder.load_state_dict(below(tensors, f"decoder{channels}/state/"))
    x = tensors[f"image_generator{channels}/out_train"]

    _check(decoder.train()(x), tensors[f"decoder{channels}/out_train"])


def test_dense_generator(tensors: dict[str, Tensor]) -> None:
    mine = below(tensors, "dense_generator/")
    generator = DenseGenerator(features=9, classes=7)
    # The reference calls the last batch norm `adjust`.
    state = {key.replace("adjust.", "output_norm."): value for key, value in below(mine, "state/").items()}
    generator.load_state_dict(state)

    _check(generator.train()(mine["z"], mine["y"]), mine["out_train"])


def test_mlp(tensors: dict[str, Tensor], golden: dict[str, dict[str, int]]) -> None:
    network = MLP(features=9, classes=7)
    network.load_state_dict(below(tensors, "mlp/state/"))

    assert sum(p.numel() for p in network.parameters()) == golden["mlp_9_features_7_classes"]["parameters"]
    _check(network.eval()(tensors["mlp/x"]), tensors["mlp/logits_eval"])


@each_teacher
def test_all_weights_of_a_release_are_loaded(name: str, teacher: Teachers, reference_dir: Path) -> None:
    content = torch.load(reference_dir / "teachers" / f"{name}.pth.tar", map_location="cpu", weights_only=True)
    network: nn.Module = teacher(name)

    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, content["model_state"][key]), key
