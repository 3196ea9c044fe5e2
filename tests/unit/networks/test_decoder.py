import pytest
import torch
from torch import nn

from kegnet_pl.networks import Decoder


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (9,)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_shape(shape: tuple[int, ...], blocks: int) -> None:
    decoder = Decoder(shape, noise_dim=6, blocks=blocks)

    assert decoder(torch.randn(4, *shape)).shape == (4, 6)


def test_layers() -> None:
    layers = list(Decoder((2, 4, 4), blocks=2).layers)

    assert [type(layer) for layer in layers] == [nn.Linear, nn.ELU, nn.BatchNorm1d] * 3 + [nn.Linear]
    sides = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sides == [(32, 120), (120, 120), (120, 120), (120, 10)]


def test_flattens_in_memory_order() -> None:
    decoder, x = Decoder((2, 4, 4)).eval(), torch.randn(5, 2, 4, 4)

    torch.testing.assert_close(decoder(x), decoder.layers(x.reshape(5, 32)), rtol=0, atol=0)


def test_gradient_reaches_the_sample() -> None:
    x = torch.randn(4, 2, 4, 4, requires_grad=True)
    Decoder((2, 4, 4))(x).square().sum().backward()

    assert x.grad is not None
    assert (x.grad != 0).all()
