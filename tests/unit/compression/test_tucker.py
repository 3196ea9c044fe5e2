import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.compression import factorise, tucker
from kegnet_pl.compression.rules import Candidate
from tests.unit.compression.networks import count, equal, storages, tensors

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 3},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": 4, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 5, "padding": 2, "padding_mode": "replicate", "stride": 3},
    "circular": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    "1x1": {"kernel_size": 1},
    "1x1, stride": {"kernel_size": 1, "stride": 2},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
}
each_convolution = pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())


def _conv(options: dict[str, Any], channels: int = 6, out: int = 8) -> nn.Conv2d:
    return nn.Conv2d(channels, out, dtype=torch.float64, **options)


def _weight(factorised: nn.Sequential) -> Tensor:
    """Weight of the one layer that three factors stand for."""
    first, core, last = (part.weight for part in factorised)
    if core.dim() == 2:
        return last @ core @ first
    return torch.einsum("op,pqhw,qi->oihw", last[:, :, 0, 0], core, first[:, :, 0, 0])


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.weight.data.copy_(weight)
    return layer


@each_convolution
def test_equals_the_convolution_with_the_reconstructed_weight(options: dict[str, Any]) -> None:
    conv, x = _conv(options), torch.randn(2, 6, 11, 9, dtype=torch.float64)
    small = factorise(conv, (3, 4))
    expected = _with_weight(conv, _weight(small))(x)

    torch.testing.assert_close(small(x), expected, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(small(x), conv(x))  # the ranks did cut something away


@each_convolution
def test_full_rank_is_the_original(options: dict[str, Any]) -> None:
    conv, x = _conv(options), torch.randn(2, 6, 11, 9, dtype=torch.float64)
    small = factorise(conv, (6, 8))

    torch.testing.assert_close(small(x), conv(x), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(_weight(small), conv.weight, rtol=1e-9, atol=1e-11)


@each_convolution
def test_parts_of_a_convolution(options: dict[str, Any]) -> None:
    conv = _conv(options)
    small = factorise(conv, (3, 4))
    kernel = int(np.prod(conv.kernel_size))

    assert count(small) == 6 * 3 + 3 * 4 * kernel + 4 * 8 + (8 if conv.bias is not None else 0)
    assert [part.bias is not None for part in small] == [False, False, conv.bias is not None]
    if conv.bias is not None:
        assert torch.equal(small[2].bias, conv.bias)
    for part, other in zip(small, tensors(small), strict=False):
        assert part.weight.requires_grad, other
        assert part.weight.dtype == torch.float64


def test_factors_are_orthonormal() -> None:
    first, _, last = (part.weight.detach().flatten(1) for part in factorise(_conv({"kernel_size": 3}), (3, 4)))

    torch.testing.assert_close(first @ first.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(last.T @ last, torch.eye(4, dtype=torch.float64))


def test_a_weight_of_those_ranks_is_kept_exactly() -> None:
    conv = _conv({"kernel_size": 3}, 10, 12)
    core, left, right = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 3, 3), (12, 2), (10, 3)))
    conv.weight.data.copy_(torch.einsum("op,pqhw,iq->oihw", left, core, right))

    torch.testing.assert_close(_weight(factorise(conv, (3, 2))), conv.weight, rtol=1e-8, atol=1e-10)


def test_is_at_least_as_near_as_the_truncated_singular_vectors() -> None:
    conv = _conv({"kernel_size": 3}, 10, 12)
    weight = conv.weight.detach()
    left = torch.linalg.svd(weight.flatten(1))[0][:, :4]
    right = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0][:, :3]
    truncated = torch.einsum("oihw,op,ap,iq,bq->abhw", weight, left, left, right, right)
    error = (_weight(factorise(conv, (3, 4))) - weight).norm()

    assert error <= (truncated - weight).norm() * (1 + 1e-9)


def test_a_large_convolution_is_nearly_as_near_as_by_many_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = _conv({"kernel_size": 3}, 20, 30)
    far = (_weight(factorise(conv, (5, 6))) - conv.weight).norm()
    assert (_weight(factorise(conv, (20, 30))) - conv.weight).norm() < 1e-9
    monkeypatch.setattr(tucker, "LARGE", 100)
    small = factorise(conv, (5, 6))
    first, _, last = (part.weight.detach().flatten(1) for part in small)

    assert far <= (_weight(small) - conv.weight).norm() * (1 + 1e-9)
    assert (_weight(small) - conv.weight).norm() < 1.02 * far
    torch.testing.assert_close(first @ first.T, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(last.T @ last, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(_weight(factorise(conv, (20, 30))), conv.weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ranks", [(2, 2), (3, 2), (1, 5), (7, 9)])
def test_linear_equals_the_layer_with_the_reconstructed_weight(bias: bool, ranks: tuple[int, int]) -> None:
    linear = nn.Linear(7, 9, bias=bias, dtype=torch.float64)
    x = torch.randn(4, 7, dtype=torch.float64)
    small = factorise(linear, ranks)

    torch.testing.assert_close(small(x), _with_weight(linear, _weight(small))(x), rtol=1e-9, atol=1e-11)
    assert count(small) == 7 * ranks[0] + ranks[0] * ranks[1] + ranks[1] * 9 + 9 * bias
    assert [part.bias is not None for part in small] == [False, False, bias]
    if ranks == (7, 9):
        torch.testing.assert_close(small(x), linear(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("large", [7, 1_024])
@pytest.mark.parametrize("shape", [(8, 10), (10, 8)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_linear_is_the_best_of_its_rank(
    rank: int, shape: tuple[int, int], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tucker, "LARGE", large)
    linear = nn.Linear(*shape, dtype=torch.float64)
    values = torch.linalg.svdvals(linear.weight.detach())
    error = (_weight(factorise(linear, (rank, rank))) - linear.weight).norm()

    torch.testing.assert_close(error, values[rank:].norm(), rtol=1e-8, atol=0)


def test_linear_on_more_dimensions() -> None:
    linear = nn.Linear(7, 9)
    assert factorise(linear, (2, 3))(torch.randn(4, 5, 7)).shape == (4, 5, 9)


BEYOND: list[tuple[nn.Conv2d | nn.Linear, tuple[int, int], tuple[int, int]]] = [
    # layer, ranks, the most that one side leaves to the other
    (nn.Conv2d(3, 20, 1, dtype=torch.float64), (2, 15), (2, 2)),
    (nn.Conv2d(20, 3, 1, dtype=torch.float64), (15, 2), (2, 2)),
    (nn.Conv2d(2, 30, 3, dtype=torch.float64), (1, 20), (1, 9)),
    (nn.Linear(4, 12, dtype=torch.float64), (3, 10), (3, 3)),
    (nn.Linear(12, 4, dtype=torch.float64), (12, 1), (1, 1)),
]


@pytest.mark.parametrize("large", [0, 1_024])
@pytest.mark.parametrize(("layer", "ranks", "real"), BEYOND, ids=str)
def test_ranks_beyond_what_the_other_side_supports(
    layer: nn.Conv2d | nn.Linear,
    ranks: tuple[int, int],
    real: tuple[int, int],
    large: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tucker, "LARGE", large)
    small = factorise(layer, ranks)
    first, core, last = (part.weight for part in small)

    assert (first.shape[0], last.shape[1], tuple(core.shape[:2])) == (ranks[0], ranks[1], (ranks[1], ranks[0]))
    assert all(part.weight.isfinite().all() for part in small)
    torch.testing.assert_close(_weight(small), _weight(factorise(layer, real)), rtol=1e-8, atol=1e-10)
    assert equal(tensors(factorise(layer, ranks)), tensors(small))  # nothing random fills the space


@pytest.mark.parametrize(("layer", "ranks", "real"), BEYOND, ids=str)
def test_components_beyond_can_learn(
    layer: nn.Conv2d | nn.Linear, ranks: tuple[int, int], real: tuple[int, int]
) -> None:
    small = factorise(layer, ranks)
    first, core, last = (part.weight for part in small)
    torch.testing.assert_close(first.flatten(1) @ first.flatten(1).T, torch.eye(ranks[0], dtype=torch.float64))
    torch.testing.assert_close(last.flatten(1).T @ last.flatten(1), torch.eye(ranks[1], dtype=torch.float64))
    is_conv = isinstance(layer, nn.Conv2d)
    x = torch.randn(16, first.shape[1], *([5, 5] if is_conv else []), dtype=torch.float64)
    out = small(x)
    (out * torch.randn_like(out)).sum().backward()

    assert core.grad is not None
    assert (core.grad.flatten(2).norm(dim=2) if is_conv else core.grad.abs()).min() > 1e-6


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3), nn.Linear(6, 8)], ids=["conv", "linear"])
@pytest.mark.parametrize("ranks", [(2, 3), (6, 8)])
def test_shares_nothing_with_the_original(layer: nn.Conv2d | nn.Linear, ranks: tuple[int, int]) -> None:
    before = tensors(layer)
    small = factorise(layer, ranks)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()

    assert equal(tensors(layer), before)
    assert not storages(layer) & storages(small)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3), nn.Linear(6, 8)], ids=["conv", "linear"])
@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((0, 3), r"in rank between 1 and 6 .* but got 0"),
        ((7, 3), r"in rank between 1 and 6 .* but got 7"),
        ((3, 0), r"out rank between 1 and 8 .* but got 0"),
        ((3, 9), r"out rank between 1 and 8 .* but got 9"),
        ((-1, 3), r"in rank between 1 and 6 .* but got -1"),
    ],
)
def test_ranks_out_of_range_are_refused(layer: nn.Conv2d | nn.Linear, ranks: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factorise(layer, ranks)


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups=1, but got Conv2d\(.*groups=2.*Leave it out of the rules"):
        factorise(nn.Conv2d(6, 8, 3, groups=2), (2, 2))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # tensorly's relative error of nothing
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3), nn.Linear(6, 8)], ids=["conv", "linear"])
def test_a_weight_of_zeros_gives_finite_factors(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    small = factorise(layer, (2, 3))

    assert all(parameter.isfinite().all() for parameter in small.parameters())
    assert (_weight(small) == 0).all()


@pytest.mark.parametrize("layer", [nn.Linear(60, 90), nn.Conv2d(90, 60, 1)])
def test_huge_matrices_are_projected_with_nearly_the_least_error(
    layer: nn.Linear | nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    n_out, n_in = layer.weight.shape[:2]
    left, right = (torch.linalg.qr(torch.randn(size, 60))[0] for size in (n_out, n_in))
    values = torch.arange(1, 61) ** -0.6
    layer.weight.data = (left * values @ right.T).reshape(layer.weight.shape)
    monkeypatch.setattr(tucker, "HUGE", 1000)
    assert tucker.is_huge(layer.weight) and not tucker.is_huge(torch.zeros(90, 60, 3))
    found = tucker.factorise(layer, (12, 12), fold=True)
    error = float((found.weight - layer.weight).detach().square().sum())
    least = float(values[12:].square().sum())
    assert least * 0.999 < error < 1.03 * least
    expected = values.square().cumsum(0) / values.square().sum()
    energies = tucker.matrix_energies(layer.weight)
    torch.testing.assert_close(torch.from_numpy(energies).float(), expected, rtol=1e-4, atol=1e-5)
    candidate = Candidate("layer", layer, ("target", "target"))
    assert candidate.energy(0) is candidate.energy(1)
    again = tucker.factorise(layer, (40, 40), fold=True)
    assert float((again.weight - layer.weight).detach().square().sum()) < 1.001 * float(values[40:].square().sum())
