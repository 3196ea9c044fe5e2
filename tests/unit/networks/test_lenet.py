import torch
from torch import nn
from torch.nn import functional

from kegnet_pl.networks import LeNet5


def test_size() -> None:
    assert sum(parameter.numel() for parameter in LeNet5().parameters()) == 61_706


def test_other_channels_and_classes() -> None:
    network = LeNet5(channels=3, classes=7)

    assert network(torch.randn(4, 3, 32, 32)).shape == (4, 7)
    # Two more input channels and three fewer classes.
    assert sum(p.numel() for p in network.parameters()) == 61_706 + 2 * 6 * 25 - 3 * (84 + 1)


def test_is_the_network_of_the_paper() -> None:
    network = LeNet5()
    by_hand = nn.Sequential(
        network.conv1, nn.ReLU(), nn.MaxPool2d(2),
        network.conv2, nn.ReLU(), nn.MaxPool2d(2),
        network.conv3, nn.ReLU(), nn.Flatten(),
        network.fc1, nn.ReLU(), network.fc2,
    )  # fmt: skip
    x = torch.randn(3, 1, 32, 32)

    torch.testing.assert_close(network(x), by_hand(x), rtol=0, atol=0)


def test_returns_logits_not_probabilities() -> None:
    logits = LeNet5()(torch.randn(8, 1, 32, 32))

    assert (logits < 0).any()
    assert not torch.allclose(functional.softmax(logits, 1), logits)
