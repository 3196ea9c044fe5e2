from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from kegnet_pl.losses import GeneratedBatch, NormStatistics, StatisticsLoss
from tests.unit.losses.samples import random_batch

WIDTHS = (3, 5)


def _layers(seed: int = 0) -> list[NormStatistics]:
    chance = torch.Generator().manual_seed(seed)

    def normal(width: int) -> Tensor:
        return torch.randn(width, generator=chance, dtype=torch.float64)

    return [NormStatistics(normal(w), normal(w).exp(), normal(w), normal(w).exp()) for w in WIDTHS]


def _batch(layers: list[NormStatistics]) -> GeneratedBatch:
    return replace(random_batch(), statistics=layers)


def test_is_the_mean_divergence_of_normal_distributions() -> None:
    layers = _layers()
    of_layers = []
    for mean, variance, stored_mean, stored_variance in layers:
        channels = [
            kl_divergence(Normal(m, v.sqrt()), Normal(mu, s.sqrt())).item()
            for m, v, mu, s in zip(mean, variance, stored_mean, stored_variance, strict=True)
        ]
        of_layers.append(sum(channels) / len(channels))
    assert StatisticsLoss()(_batch(layers)).item() == pytest.approx(sum(of_layers) / len(WIDTHS), rel=1e-12)


def test_is_zero_where_statistics_are_the_stored_ones_and_positive_elsewhere() -> None:
    same = [NormStatistics(mu, s, mu, s) for _, _, mu, s in _layers()]
    assert StatisticsLoss()(_batch(same)).item() == 0
    for change in ({"mean": same[0].mean + 0.1}, {"variance": same[0].variance * 1.1}):
        assert StatisticsLoss()(_batch([same[0]._replace(**change), same[1]])).item() > 1e-5


def test_has_no_unit() -> None:
    """A teacher whose layer counts in thousandths is worth as much as one that counts in units."""
    scaled = [NormStatistics(1e3 * m, 1e6 * v, 1e3 * mu, 1e6 * s) for m, v, mu, s in _layers()]
    torch.testing.assert_close(StatisticsLoss()(_batch(scaled)), StatisticsLoss()(_batch(_layers())))


def test_gradcheck() -> None:
    layers = _layers()

    def loss(*moments: Tensor) -> Tensor:
        pairs = zip(moments[::2], moments[1::2], layers, strict=True)
        return StatisticsLoss()(_batch([layer._replace(mean=m, variance=v) for m, v, layer in pairs]))

    moments = [tensor.requires_grad_() for layer in layers for tensor in layer[:2]]
    assert torch.autograd.gradcheck(loss, moments)


def test_needs_statistics() -> None:
    assert StatisticsLoss.uses_statistics
    with pytest.raises(ValueError, match=r"`statistics` of batch-norm layers.*set the weight of the term to 0"):
        StatisticsLoss()(random_batch())
