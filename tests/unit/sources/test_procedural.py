"""Random fields: shapes, seeds, statistics."""

import pytest
import torch

from kegnet_pl.sources import RandomFields, describe_source


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 28, 20), (2, 100), (1, 8, 8, 8), (16,), 16], ids=str)
def test_samples_have_the_shape_and_depend_on_the_seed_alone(shape: int | tuple[int, ...]) -> None:
    source = RandomFields(shape)
    x = source.sample(20, 0)
    assert x.shape == (20, *((shape,) if isinstance(shape, int) else shape))
    assert x.dtype == torch.float32 and bool(x.isfinite().all())
    assert torch.equal(x, source.sample(20, 0)) and not torch.equal(x, source.sample(20, 1))


def test_each_channel_of_an_image_has_mean_0_and_variance_1() -> None:
    x = RandomFields((3, 24, 24)).sample(50, 0)
    torch.testing.assert_close(x.mean(dim=(2, 3)), torch.zeros(50, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(dim=(2, 3)), torch.ones(50, 3), rtol=0, atol=1e-5)


def test_fields_are_smooth_and_their_smoothness_and_colour_differ() -> None:
    x = RandomFields((3, 32, 32)).sample(300, 0)
    neighbours = (x[:, 0, :, 1:] * x[:, 0, :, :-1]).mean(dim=(1, 2))
    assert 0.5 < float(neighbours.mean()) < 0.95 and float(neighbours.std()) > 0.1
    channels = (x[:, 0] * x[:, 1]).mean(dim=(1, 2))
    assert 0.3 < float(channels.mean()) < 0.7 and float(channels.std()) > 0.2


def test_features_of_rows_are_correlated_and_have_mean_0_and_variance_1() -> None:
    x = RandomFields(12).sample(20_000, 0)
    assert float(x.mean()) == pytest.approx(0, abs=0.1)
    assert float(x.var()) == pytest.approx(1, abs=0.15)
    correlation = torch.corrcoef(x.T) - torch.eye(12)
    assert float(correlation.abs().max()) > 0.15


def test_the_prior_is_procedural() -> None:
    info = describe_source("fields")
    assert (info.title, info.prior, info.needs_generators) == ("Fields", "procedural", False)
