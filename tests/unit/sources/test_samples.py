"""Mixtures of sources, random fields and real data: shares, seeds, statistics of samples."""

import pytest
import torch
from torch import Tensor

from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.sources import (
    MixtureSource,
    NormalNoise,
    RandomFields,
    RealSource,
    SyntheticSource,
    UniformNoise,
    describe_source,
)
from kegnet_pl.sources.mixture import divide


class _Constant(SyntheticSource):
    """Returns its number and the seed it was called with; notes how many samples were asked for."""

    def __init__(self, number: float, multiple: int = 1) -> None:
        super().__init__()
        self.number, self.multiple = number, multiple
        self.asked: list[tuple[int, int]] = []

    def sample(self, n: int, seed: int) -> Tensor:
        self.asked.append((n, seed))
        return torch.full((n, 1), self.number)


@pytest.mark.parametrize(
    ("n", "shares", "multiples", "counts"),
    [
        (10, [0.5, 0.5], [1, 1], [5, 5]),
        (10, [0.29, 0.71], [1, 1], [3, 7]),
        (100, [0.29, 0.71], [1, 1], [29, 71]),  # 100 * 0.29 is 28.999...
        (10, [1 / 3, 1 / 3, 1 / 3], [1, 1, 1], [4, 3, 3]),
        (100, [0.5, 0.5], [5, 1], [50, 50]),
        (64, [0.5, 0.5], [5, 1], [30, 34]),
        (16, [0.9, 0.1], [5, 1], [15, 1]),
        (30, [0.5, 0.5], [5, 5], [15, 15]),
    ],
)
def test_counts_follow_shares_in_steps_of_each_source(
    n: int, shares: list[float], multiples: list[int], counts: list[int]
) -> None:
    assert divide(n, shares, multiples) == counts


@pytest.mark.parametrize(
    ("n", "shares", "multiples"), [(12, [0.5, 0.5], [5, 5]), (1, [0.5, 0.5], [1, 1]), (8, [0.5, 0.5], [10, 1])]
)
def test_a_number_that_cannot_be_divided_is_an_error(n: int, shares: list[float], multiples: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"each a positive multiple of .*, but got {n}\. Use more samples"):
        divide(n, shares, multiples)


def test_samples_are_shared_out_and_every_batch_is_a_mixture() -> None:
    a, b = _Constant(0.0, multiple=5), _Constant(1.0)
    mixture = MixtureSource({"a": (a, 0.25), "b": (b, 0.75)})
    x = mixture.sample(400, seed=7)
    assert x.shape == (400, 1) and float(x.sum()) == 300
    batches = x.view(8, 50).mean(dim=1)
    assert float(batches.min()) > 0.5 and float(batches.max()) < 1
    assert a.asked == [(100, derive_seed(7, "mixture", 0))] and b.asked == [(300, derive_seed(7, "mixture", 1))]
    assert mixture.multiple == 1
    assert MixtureSource({"a": (a, 1), "b": (_Constant(1.0, multiple=10), 1)}).multiple == 5


def test_the_seed_decides_and_the_order_of_the_components_does_not() -> None:
    normal, uniform = (NormalNoise(3), 3.0), (UniformNoise(3), 1.0)
    x = MixtureSource({"normal": normal, "uniform": uniform}).sample(40, seed=1)
    assert torch.equal(x, MixtureSource({"uniform": uniform, "normal": normal}).sample(40, seed=1))
    assert not torch.equal(x, MixtureSource({"normal": normal, "uniform": uniform}).sample(40, seed=2))
    # The samples are those of the components.
    drawn = torch.cat(
        [normal[0].sample(30, derive_seed(1, "mixture", 0)), uniform[0].sample(10, derive_seed(1, "mixture", 1))]
    )
    assert sorted(x.tolist()) == sorted(drawn.tolist()) and x.tolist() != drawn.tolist()


def test_a_mixture_of_one_source_is_that_source() -> None:
    source = NormalNoise((1, 4, 4))
    assert torch.equal(MixtureSource({"normal": (source, 0.3)}).sample(20, seed=5), source.sample(20, seed=5))


@pytest.mark.parametrize("share", [0, -0.5, float("nan"), float("inf"), "half", True])
def test_shares_are_positive_numbers(share: object) -> None:
    with pytest.raises(ValueError, match="Expected the share of a to be a positive number, but got"):
        MixtureSource({"a": (_Constant(0.0), share)})  # type: ignore[dict-item]


def test_a_mixture_needs_a_source() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        MixtureSource({})


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


@pytest.mark.parametrize(("n", "least", "most"), [(4, 0, 1), (7, 1, 1), (10, 1, 2), (21, 3, 3)])
def test_real_samples_are_drawn_without_replacement(n: int, least: int, most: int) -> None:
    inputs = torch.arange(7.0)[:, None]
    source = RealSource(inputs)
    x = source.sample(n, 0)
    counts = x.flatten().long().bincount(minlength=7)
    assert x.shape == (n, 1) and (int(counts.min()), int(counts.max())) == (least, most)
    assert torch.equal(x, source.sample(n, 0)) and not torch.equal(x, source.sample(n, 1))


def test_real_samples_of_one_pass_are_a_new_order_in_the_next() -> None:
    first, second = RealSource(torch.arange(100.0)[:, None]).sample(200, 3).split(100)
    assert not torch.equal(first, second) and torch.equal(first.sort(dim=0)[0], second.sort(dim=0)[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([1.0], "a tensor, but got list"),
        (torch.zeros(0, 3), r"samples \(N, \*input_shape\) in floating point, but got torch.float32 \(0, 3\)"),
        (torch.zeros(3), r"but got torch.float32 \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.uint8), "but got torch.uint8"),
    ],
)
def test_what_is_no_real_data_is_an_error(inputs: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected `inputs` to be .*{message}"):
        RealSource(inputs)  # type: ignore[arg-type]


def test_real_data_is_refused_in_a_mixture() -> None:
    real = RealSource(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="mixture without real data"):
        MixtureSource({"real": (real, 1), "normal": (NormalNoise(2), 1)})
    assert MixtureSource({"real": (real, 1)}).sample(2, 0).shape == (2, 2)
