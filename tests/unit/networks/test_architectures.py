"""The networks of the paper and of CIFAR-10, and the decoder: sizes and layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import MLP, CifarResNet, Decoder, LeNet5, ResNet14
from kegnet_pl.networks.resnet import BasicBlock


def test_lenet_size() -> None:
    assert sum(parameter.numel() for parameter in LeNet5().parameters()) == 61_706


def test_lenet_other_channels_and_classes() -> None:
    network = LeNet5(channels=3, classes=7)

    assert network(torch.randn(4, 3, 32, 32)).shape == (4, 7)
    # Two more input channels and three fewer classes.
    assert sum(p.numel() for p in network.parameters()) == 61_706 + 2 * 6 * 25 - 3 * (84 + 1)


def test_lenet_is_the_network_of_the_paper() -> None:
    network = LeNet5()
    by_hand = nn.Sequential(
        network.conv1, nn.ReLU(), nn.MaxPool2d(2),
        network.conv2, nn.ReLU(), nn.MaxPool2d(2),
        network.conv3, nn.ReLU(), nn.Flatten(),
        network.fc1, nn.ReLU(), network.fc2,
    )  # fmt: skip
    x = torch.randn(3, 1, 32, 32)

    torch.testing.assert_close(network(x), by_hand(x), rtol=0, atol=0)


def test_lenet_returns_logits_not_probabilities() -> None:
    logits = LeNet5()(torch.randn(8, 1, 32, 32))

    assert (logits < 0).any()
    assert not torch.allclose(functional.softmax(logits, 1), logits)


def test_mlp_size() -> None:
    # 9 features, 7 classes: the parameter count of golden.json.
    assert sum(parameter.numel() for parameter in MLP(9, 7).parameters()) == 102_707


def test_mlp_blocks() -> None:
    layers = list(MLP(16, 26).layers)

    assert [type(layer) for layer in layers] == [nn.Linear, nn.ELU, nn.Dropout] * 11 + [nn.Linear]
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.15}
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [100] * 11 + [26]


def test_mlp_arguments() -> None:
    network = MLP(5, 3, width=8, blocks=2, dropout=0.5)

    assert network(torch.randn(4, 5)).shape == (4, 3)
    assert sum(p.numel() for p in network.parameters()) == (5 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 3
    assert network.layers[2].p == 0.5


def test_mlp_dropout_in_training_alone() -> None:
    network, x = MLP(9, 7), torch.randn(16, 9)

    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(("channels", "parameters"), [(3, 172_970), (1, 172_682)])
def test_resnet_size(channels: int, parameters: int) -> None:
    network = ResNet14(channels)

    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 10)


def test_resnet_other_classes() -> None:
    assert ResNet14(3, classes=4)(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def _without_residual(block: BasicBlock) -> BasicBlock:
    """Silence the convolutions of a block: what is left is relu(shortcut)."""
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    return block


@pytest.mark.parametrize(("before", "after", "stride"), [(16, 32, 2), (4, 6, 1), (5, 5, 2), (3, 3, 1)])
def test_resnet_shortcut_subsamples_and_appends_zero_channels(before: int, after: int, stride: int) -> None:
    block = _without_residual(BasicBlock(before, after, stride))
    x = torch.rand(2, before, 8, 8) + 0.1
    out = block(x)

    assert out.shape == (2, after, 8 // stride, 8 // stride)
    for row in range(8 // stride):
        for column in range(8 // stride):
            assert torch.equal(out[:, :before, row, column], x[:, :, stride * row, stride * column])
    assert (out[:, before:] == 0).all()


def test_resnet_shortcut_has_no_parameters() -> None:
    names = {name.split(".")[0] for name, _ in BasicBlock(16, 32, 2).named_parameters()}

    assert names == {"conv1", "bn1", "conv2", "bn2"}


def test_resnet_shortcut_is_added_before_the_last_relu() -> None:
    block = BasicBlock(3, 3, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    nn.init.constant_(block.conv2.bias, -0.5)  # the residual, up to the epsilon of batch norm
    x = torch.randn(2, 3, 4, 4)

    torch.testing.assert_close(block(x), (x - 0.5 / (1 + block.bn2.eps) ** 0.5).relu())


def test_resnet_stages() -> None:
    network = ResNet14()
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))

    for stage in (network.norm1, network.layers1, network.layers2, network.layers3):
        stage.register_forward_hook(note)
    network(torch.randn(1, 3, 32, 32))

    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert all(conv.bias is not None for conv in network.modules() if isinstance(conv, nn.Conv2d))


def test_resnet_pools_the_mean_of_the_last_stage() -> None:
    network = ResNet14().eval()
    seen: list[Tensor] = []
    network.layers3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = network(torch.randn(2, 3, 32, 32))

    torch.testing.assert_close(logits, network.linear(seen[0].mean(dim=(2, 3))))


@pytest.mark.parametrize(("depth", "parameters"), [(8, 75_290), (20, 269_722), (56, 853_018)])
def test_resnet_depth_of_a_cifar_resnet(depth: int, parameters: int) -> None:
    network = CifarResNet(depth)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(layers) == depth
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [2, 14 + 1, 18, 0, -4])
def test_resnet_a_depth_that_does_not_exist_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"`depth` to be 6n \+ 2 .*but got {depth}\."):
        CifarResNet(depth)


def test_resnet_names_of_a_cifar_resnet_are_those_of_published_weights() -> None:
    block = [f"{name}.{kind}" for name in ("conv1", "bn1", "conv2", "bn2") for kind in ("weight", "bias")]
    block = [name for name in block if name not in ("conv1.bias", "conv2.bias")]
    stages = [f"layer{stage}.{index}.{name}" for stage in (1, 2, 3) for index in (0, 1, 2) for name in block]

    assert [name for name, _ in CifarResNet(20).named_parameters()] == [
        "conv1.weight", "bn1.weight", "bn1.bias", *stages, "linear.weight", "linear.bias",
    ]  # fmt: skip


def test_resnet_centered_shortcut_adds_zero_channels_on_both_sides() -> None:
    for network, first in ((CifarResNet(8), 8), (ResNet14(), 0)):
        stage = network.layer2 if isinstance(network, CifarResNet) else network.layers2
        block = _without_residual(stage[0])
        x = torch.rand(2, 16, 8, 8) + 0.1
        out = block(x)

        assert torch.equal(out[:, first : first + 16], x[:, :, ::2, ::2])
        assert int((out != 0).any(dim=(0, 2, 3)).sum()) == 16


def test_resnet_a_cifar_resnet_takes_the_mean_of_the_last_stage_at_any_size() -> None:
    network = CifarResNet(8, channels=1, classes=4).eval()
    seen: list[Tensor] = []
    network.layer3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = network(torch.randn(2, 1, 20, 24))

    assert seen[0].shape == (2, 64, 5, 6)
    torch.testing.assert_close(logits, network.linear(seen[0].mean(dim=(2, 3))))


def test_resnet_a_cifar_resnet_is_compressed_to_half_of_its_parameters() -> None:
    """Blocks with shortcuts keep their shapes, and a plan without savings keeps the function."""
    network = CifarResNet(20).eval()
    half = CompressionPlan([Rule("*", "target")], 2.0).apply(network, (3, 32, 32))
    whole = CompressionPlan([Rule("*", "full")], when_larger="compress").apply(network, (3, 32, 32)).network
    x = torch.randn(2, 3, 32, 32)

    assert half.report.compression_ratio == pytest.approx(2, abs=0.02) and half.report.compression_ratio >= 2
    assert half.network(x).shape == (2, 10)
    torch.testing.assert_close(whole(x), network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (9,)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_decoder_shape(shape: tuple[int, ...], blocks: int) -> None:
    decoder = Decoder(shape, noise_dim=6, blocks=blocks)

    assert decoder(torch.randn(4, *shape)).shape == (4, 6)


def test_decoder_layers() -> None:
    layers = list(Decoder((2, 4, 4), blocks=2).layers)

    assert [type(layer) for layer in layers] == [nn.Linear, nn.ELU, nn.BatchNorm1d] * 3 + [nn.Linear]
    sides = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sides == [(32, 120), (120, 120), (120, 120), (120, 10)]


def test_decoder_flattens_in_memory_order() -> None:
    decoder, x = Decoder((2, 4, 4)).eval(), torch.randn(5, 2, 4, 4)

    torch.testing.assert_close(decoder(x), decoder.layers(x.reshape(5, 32)), rtol=0, atol=0)


def test_decoder_gradient_reaches_the_sample() -> None:
    x = torch.randn(4, 2, 4, 4, requires_grad=True)
    Decoder((2, 4, 4))(x).square().sum().backward()

    assert x.grad is not None
    assert (x.grad != 0).all()
