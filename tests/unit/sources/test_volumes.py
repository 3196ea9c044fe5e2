"""Procedural volumes."""

import pytest
import torch

from kegnet_pl.sources import Procedural
from kegnet_pl.sources.images import Volumes


def test_volumes_are_about_standard_normal_and_reproducible() -> None:
    source = Procedural((2, 6, 8, 10))
    x = source.sample(600, 3)
    assert x.shape == (600, 2, 6, 8, 10) and bool(x.isfinite().all())
    assert abs(float(x.mean())) < 0.3 and 0.7 < float(x.std()) < 1.5
    assert torch.equal(x, source.sample(600, 3)) and not torch.equal(x, source.sample(600, 4))
    assert source.sample(1, 0).shape == (1, 2, 6, 8, 10)


def test_volumes_have_the_range_of_the_normalisation() -> None:
    x = Procedural((1, 6, 8, 8), mean=0.3, std=0.2).sample(300, 0) * 0.2 + 0.3
    assert float(x.min()) >= -1e-5 and float(x.max()) <= 1 + 1e-5


def test_neighbours_are_alike() -> None:
    x = Volumes((1, 8, 8, 8)).sample(300, 0)
    assert float((x[..., 1:] - x[..., :-1]).square().mean()) < float(x.var()), "less than for independent values"


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a volume \(C, D, H, W\), but got \(1, 8, 8\)"):
        Volumes((1, 8, 8))
