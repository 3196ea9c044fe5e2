"""Factorised layers of all dimensions: their function, their parts and the attributes of the layer they replace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.compression import CompressionPlan, Rule, TuckerLayer, describe_structure, factorise, restore_structure
from kegnet_pl.compression.activations import patches
from kegnet_pl.compression.tucker import factorised_parameters, has_one_rank, read_weight, write_weight
from tests.unit.compression.networks import count

LAYERS: dict[str, nn.Module] = {
    "dense": nn.Linear(6, 5),
    "signal": nn.Conv1d(6, 5, 3, stride=2, padding=2, dilation=2),
    "signal, circular": nn.Conv1d(6, 5, 3, padding="same", padding_mode="circular"),
    "image": nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=1, bias=False),
    "volume": nn.Conv3d(6, 5, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 0)),
    "transposed signal": nn.ConvTranspose1d(6, 5, 4, stride=2, padding=1, output_padding=1),
    "transposed image": nn.ConvTranspose2d(6, 5, (3, 4), (2, 3), (1, 0), dilation=(1, 2), output_padding=(0, 1)),
    "transposed volume": nn.ConvTranspose3d(6, 5, 3, stride=2, padding=2),
    "1x1": nn.Conv2d(6, 5, 1, stride=2),
    "1x1, transposed": nn.ConvTranspose2d(6, 5, 1, stride=2),
    "1x1, padded": nn.Conv2d(6, 5, 1, padding=1),
}  # fmt: skip
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
fold_or_not = pytest.mark.parametrize("fold", [False, True], ids=["three parts", "folded"])


def _input(layer: Any) -> Tensor:
    sizes = () if isinstance(layer, nn.Linear) else (7, 8, 6)[: len(layer.kernel_size)]
    return torch.randn(3, 6, *sizes, generator=torch.Generator().manual_seed(0))


@each_layer
def test_patches_times_the_weight_are_the_output(layer: Any) -> None:
    x = _input(layer)
    y = layer(x)
    found = (patches(layer, x) @ read_weight(layer).flatten(1).T).transpose(1, 2).reshape(y.shape)
    bias = 0 if layer.bias is None else layer.bias.reshape(-1, *(1,) * (y.dim() - 2))
    torch.testing.assert_close(found + bias, y, atol=1e-5, rtol=1e-5)


@each_layer
def test_a_weight_that_is_read_can_be_written(layer: Any) -> None:
    before = layer.weight.detach().clone()
    with torch.no_grad():
        write_weight(layer, read_weight(layer).clone())
    assert torch.equal(layer.weight, before)


@each_layer
@fold_or_not
def test_full_ranks_keep_the_function(layer: Any, fold: bool) -> None:
    small, x = factorise(layer, (6, 5), fold), _input(layer)
    torch.testing.assert_close(small(x), layer(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.weight, layer.weight, atol=1e-5, rtol=1e-5)


@each_layer
@fold_or_not
@pytest.mark.parametrize("ranks", [(3, 2), (6, 2), (3, 5)])
def test_the_contracted_weight_has_the_function_of_the_parts(layer: Any, fold: bool, ranks: tuple[int, int]) -> None:
    small, x = factorise(layer, ranks, fold), _input(layer)
    assert count(small) == factorised_parameters(layer, ranks, fold)
    assert len(small) <= 3 - (fold and (has_one_rank(layer) or 6 in ranks or 5 in ranks))
    same = {"state_dict": {"weight": small.weight, **({} if small.bias is None else {"bias": small.bias})}}
    expected = torch.func.functional_call(layer, same["state_dict"], (x,))
    torch.testing.assert_close(small(x), expected, atol=1e-5, rtol=1e-5)
    if not (fold and has_one_rank(layer)):  # which has one rank, the smaller one
        torch.testing.assert_close(small(x), factorise(layer, ranks)(x), atol=1e-4, rtol=1e-4)


@each_layer
def test_a_factorised_layer_has_the_attributes_of_the_layer(layer: Any) -> None:
    small = factorise(layer, (3, 2))
    names = ["in_features", "out_features"] if isinstance(layer, nn.Linear) else [
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
    ]  # fmt: skip
    assert {name: getattr(small, name) for name in names} == {name: getattr(layer, name) for name in names}
    assert small.weight.shape == layer.weight.shape and small.weight.dtype == layer.weight.dtype
    assert (small.bias is None) == (layer.bias is None)
    small.weight.sum().backward()
    assert all(part.weight.grad is not None for part in small), "gradients reach the parts"


def test_the_size_of_the_output_can_be_given() -> None:
    layer, x = nn.ConvTranspose2d(6, 5, 3, stride=2), torch.randn(2, 6, 4, 4)
    small = factorise(layer, (6, 5))
    torch.testing.assert_close(small(x, output_size=[10, 10]), layer(x, output_size=[10, 10]), atol=1e-5, rtol=1e-5)


def test_the_weight_of_a_layer_that_is_factorised_twice() -> None:
    layer = nn.ConvTranspose2d(12, 10, 3, stride=2)
    small = factorise(layer, (12, 10))
    small[1] = factorise(small[1], (12, 10))
    torch.testing.assert_close(small.weight, layer.weight, atol=1e-4, rtol=1e-4)


def test_a_slice_is_a_sequential() -> None:
    small = factorise(nn.Conv2d(8, 8, 3), (4, 4))
    part = small[:2]
    assert type(part) is nn.Sequential and [*part] == [small[0], small[1]]
    assert small[-1] is [*small][2]


class _Signals(nn.Module):
    """A keyword spotter of one-dimensional convolutions."""

    shape = (2, 40)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 24, 5, stride=2), nn.ReLU(),
            nn.ConvTranspose1d(24, 16, 4, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Volumes(_Signals):
    shape = (1, 6, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv3d(12, 24, (2, 3, 3)), nn.ReLU(),
            nn.ConvTranspose3d(24, 16, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip


class _Attention(_Signals):
    shape = (9, 16)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.net = nn.Sequential(
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(144, 4)
        )


@pytest.mark.parametrize("make", [_Signals, _Volumes, _Attention])
@fold_or_not
def test_every_kind_of_layer_is_fitted_to_its_function(make: type[_Signals], fold: bool) -> None:
    from kegnet_pl.compression import Calibration

    torch.manual_seed(0)
    network = make().eval()
    x = torch.randn(400, *make.shape)
    plan = CompressionPlan([Rule("*", "target")], 1.8, fold=fold)
    by_weights = plan.apply(network, make.shape)
    fitted = plan.apply(network, make.shape, Calibration(x[:300], x[300:]))
    assert fitted.report.compression_ratio >= 1.8
    factorised = {name for name, layer in fitted.network.named_modules() if isinstance(layer, TuckerLayer)}
    assert factorised == set(fitted.report.ranks) and len(factorised) >= 2
    assert len(fitted.fitted) >= 2

    def error(small: nn.Module) -> float:
        with torch.no_grad():
            return float((small(x) - network(x)).square().mean())

    assert error(fitted.network) < error(by_weights.network)
    again = restore_structure(make(), **describe_structure(fitted.network))
    again.load_state_dict(fitted.network.state_dict())
    assert torch.equal(again.eval()(x), fitted.network.eval()(x))


def test_folding_spends_what_it_saves_on_ranks() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    plain, folded = (
        CompressionPlan([Rule("*", "target")], 2.0, fold=fold).apply(network, (40,)) for fold in (False, True)
    )
    assert min(folded.report.ranks["0"]) > min(plain.report.ranks["0"])
    assert folded.report.compression_ratio >= 2
    assert [len(layer) for layer in folded.network if isinstance(layer, TuckerLayer)] == [2, 2]
