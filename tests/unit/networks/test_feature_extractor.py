"""A network that also returns what some of its layers return."""

import pytest
import torch
from torch import nn

from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import BatchNormMoments, FeatureExtractor, LeNet5, ResNet14, match_layers, norm_layers
from kegnet_pl.networks.validation import check_trainable


def test_returns_what_layers_return() -> None:
    network = LeNet5(1, 10).eval()
    x = torch.randn(3, 1, 32, 32)
    output, (second, first) = FeatureExtractor(network, ["conv2", "conv1"])(x)
    assert torch.equal(output, network(x))
    assert torch.equal(first, network.conv1(x))
    assert second.shape == (3, 16, 10, 10)


def test_gradients_reach_the_layers() -> None:
    network = LeNet5(1, 10)
    FeatureExtractor(network, ["conv1"])(torch.randn(2, 1, 32, 32))[1][0].sum().backward()
    assert network.conv1.weight.grad is not None
    assert network.conv2.weight.grad is None


def test_nothing_is_kept_between_calls() -> None:
    network = LeNet5(1, 10)
    watched = FeatureExtractor(network, ["conv1"])
    watched(torch.randn(2, 1, 32, 32))
    network(torch.randn(2, 1, 32, 32))
    with pytest.raises(RuntimeError):
        watched(torch.randn(2, 3, 32, 32))
    assert watched._recorder.values is None
    assert watched(torch.zeros(2, 1, 32, 32))[1][0].shape == (2, 6, 28, 28)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    watched = FeatureExtractor(LeNet5(1, 10), ["conv1", "fc1"])
    x = torch.randn(4, 1, 32, 32)
    compiled = torch.compile(watched, fullgraph=True, backend="aot_eager")(x)
    plain = watched(x)
    assert torch.allclose(compiled[0], plain[0], atol=1e-5)
    for mine, expected in zip(compiled[1], plain[1], strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_a_compressed_network_has_the_layers_of_the_teacher() -> None:
    teacher = ResNet14(3, 10)
    names = match_layers(teacher, None)
    assert names == tuple(norm_layers(teacher))
    student = CompressionPlan([Rule("layers3.*", 4)]).apply(teacher, (3, 32, 32)).network
    convolutions = match_layers(teacher, ["layers3.*.conv?"])
    assert len(convolutions) == 4
    x = torch.randn(2, 3, 32, 32)
    for layers in (names, convolutions):
        outputs = FeatureExtractor(teacher, layers)(x)[1], FeatureExtractor(student, layers)(x)[1]
        assert [a.shape for a in outputs[0]] == [b.shape for b in outputs[1]]


def test_unknown_layers() -> None:
    with pytest.raises(ValueError, match="a layer that matches 'conv9', but got conv1, "):
        match_layers(LeNet5(1, 10), ["conv1", "conv9"])
    with pytest.raises(ValueError, match=r"batch-norm layers, but got none\. .*student\.feature_distillation\.layers="):
        match_layers(LeNet5(1, 10), None)
    with pytest.raises(ValueError, match="a network with layers conv7"):
        FeatureExtractor(nn.Sequential(), ["conv7"])


class _Overwriting(nn.Module):
    """As torchvision's ResNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.relu = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.relu(self.norm1(x)))
        out += x
        return self.relu(out)


def test_what_is_overwritten_is_returned_as_the_layer_returned_it() -> None:
    network, x = _Overwriting().eval(), torch.randn(64, 4)
    watched = FeatureExtractor(network, ["norm1", "norm2"])
    expected = [network.norm1(x), network.norm2(network.norm1(x).relu())]
    for _ in range(3):
        output, seen = watched(x)
        torch.testing.assert_close(seen, expected)
        torch.testing.assert_close(output, (expected[1] + x).relu())
    assert watched._overwritten == {"norm1", "norm2"}


def test_what_is_not_overwritten_is_not_copied() -> None:
    network, x = LeNet5(1, 10), torch.randn(2, 1, 32, 32)
    watched = FeatureExtractor(network, ["conv1"])
    watched(x)
    assert watched._overwritten == set()
    assert watched._collect("conv1", x) == (x, None)


def test_gradients_of_an_overwritten_output() -> None:
    network, x = _Overwriting(), torch.randn(64, 4)
    watched = FeatureExtractor(network, ["norm1"])
    for _ in range(2):
        network.zero_grad()
        output, (seen,) = watched(x)
        (output.sum() + seen.square().sum()).backward()
    grad = network.norm1.weight.grad
    assert grad is not None
    mine = grad.clone()
    network.zero_grad()
    first = network.norm1(x)
    ((network.norm2(first.relu()) + x).relu().sum() + first.square().sum()).backward()
    torch.testing.assert_close(network.norm1.weight.grad, mine)


def test_closed_it_leaves_no_hook() -> None:
    network = LeNet5(1, 10)
    watched = FeatureExtractor(network, ["conv1"])
    watched.close()
    assert not network.conv1._forward_hooks
    watched.open()
    watched.open()
    assert len(network.conv1._forward_hooks) == 1


class WithHead(nn.Module):
    """A classifier with a further head in training, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.aux = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(x)
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def test_layers_that_are_not_passed_are_named() -> None:
    network = WithHead().eval()
    with pytest.raises(ValueError, match=r"skips aux\.1 .*student\.feature_distillation\.layers"):
        FeatureExtractor(network, match_layers(network, None))(torch.randn(2, 6))
    with pytest.raises(ValueError, match=r"skips some .*statistics\.weight=0"):
        BatchNormMoments(network)(torch.randn(2, 6))


def test_what_returns_more_in_training_is_no_student() -> None:
    with pytest.raises(ValueError, match=r"a tensor in training, but got a tuple\. It calls aux only in"):
        check_trainable(WithHead().eval(), (6,))
    damaged = WithHead()
    damaged.aux = nn.Sequential(nn.Linear(3, 3))  # as if its inputs were pruned
    with pytest.raises(ValueError, match=r"but it failed: mat1 .* It calls aux only in training mode\. Remove"):
        check_trainable(damaged, (6,))
    with pytest.raises(ValueError, match=r"to accept \(2, 7\) in training, but it failed"):
        check_trainable(WithHead(), (7,))
    network, state = LeNet5(1, 10).eval(), torch.random.get_rng_state()
    check_trainable(network, (1, 32, 32))
    assert not network.training and torch.equal(torch.random.get_rng_state(), state)


def test_every_call_of_a_layer_is_a_feature() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    network = nn.Sequential(nn.Sequential(layer, nn.ReLU(inplace=True), layer), nn.Linear(4, 2))
    output, features = FeatureExtractor(network, ["0.0", "1"])(x)
    hidden = layer(x)
    assert len(features) == 3
    for found, expected in zip(features, [hidden, layer(hidden.relu()), output], strict=True):
        torch.testing.assert_close(found, expected)


def test_a_student_without_gradients_is_refused() -> None:
    network = nn.Sequential(nn.Linear(6, 3))
    network.forward = torch.no_grad()(network.forward)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="gradients for its weights, but got none"):
        check_trainable(network, (6,))
    check_trainable(nn.Sequential(nn.Linear(6, 3)).requires_grad_(False), (6,))
