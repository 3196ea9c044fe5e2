import torch
from torch import nn

from kegnet_pl.networks import MLP


def test_size() -> None:
    # 9 features, 7 classes: the parameter count of golden.json.
    assert sum(parameter.numel() for parameter in MLP(9, 7).parameters()) == 102_707


def test_blocks() -> None:
    layers = list(MLP(16, 26).layers)

    assert [type(layer) for layer in layers] == [nn.Linear, nn.ELU, nn.Dropout] * 11 + [nn.Linear]
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.15}
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [100] * 11 + [26]


def test_arguments() -> None:
    network = MLP(5, 3, width=8, blocks=2, dropout=0.5)

    assert network(torch.randn(4, 5)).shape == (4, 3)
    assert sum(p.numel() for p in network.parameters()) == (5 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 3
    assert network.layers[2].p == 0.5


def test_dropout_in_training_alone() -> None:
    network, x = MLP(9, 7), torch.randn(16, 9)

    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
