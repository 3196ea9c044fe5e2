"""Mixtures, procedural sources, real data, selected and mixed samples: shares, seeds, statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.sources import (
    Blobs,
    CorrelatedNoise,
    Leaves,
    MixedSource,
    MixtureSource,
    NormalNoise,
    Procedural,
    ProceduralImages,
    RandomFields,
    RandomRows,
    RealSource,
    SelectedSource,
    Strokes,
    SyntheticSource,
    UniformNoise,
    Waves,
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


IMAGES = [Leaves, Strokes, Blobs, Waves]


@pytest.mark.parametrize("kind", [*IMAGES, Procedural])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24), (2, 50), (1, 1, 1)], ids=str)
def test_images_and_signals_have_their_shape_and_depend_on_the_seed(kind: type, shape: tuple[int, ...]) -> None:
    source = kind(shape)
    x = source.sample(10, 3)
    assert x.shape == (10, *shape) and x.dtype == torch.float32 and x.isfinite().all()
    assert torch.equal(x, source.sample(10, 3))
    assert not torch.equal(x, source.sample(10, 4))


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(("mean", "std"), [(0.13, 0.31), (0.45, 0.25)])
def test_images_are_normalised_pixels_with_about_the_given_mean(
    kind: type[ProceduralImages], mean: float, std: float
) -> None:
    x = kind((1, 32, 32), mean=mean, std=std).sample(600, 0)
    pixels = x * std + mean
    assert pixels.min() >= -1e-5 and pixels.max() <= 1 + 1e-5
    assert abs(float(pixels.mean()) - mean) < 0.2
    assert 0.5 * std < float(pixels.std()) < 1.4 * std


def test_the_colours_of_channels_follow_their_own_mean() -> None:
    x = Blobs((2, 16, 16), mean=[0.2, 0.7], std=[0.2, 0.2]).sample(400, 0)
    red, green = x.mean(dim=(0, 2, 3)) * 0.2 + torch.tensor([0.2, 0.7])
    assert red < 0.3 and green > 0.6


def test_kinds_of_images_differ_as_their_names_say() -> None:
    def roughness(source: SyntheticSource) -> Tensor:
        x = source.sample(300, 0)
        return (x[:, :, 1:] - x[:, :, :-1]).abs().median()

    shape = (1, 32, 32)
    assert roughness(Leaves(shape)) < 0.5 * roughness(Blobs(shape))  # areas of one colour
    strokes = Strokes(shape, mean=0.13, std=0.31).sample(300, 0) * 0.31 + 0.13
    assert 0.02 < (strokes > 0.5).float().mean() < 0.25  # thin lines on black


@pytest.mark.parametrize(
    "arguments", [{"mean": 0.5}, {"std": 0.5}, {"mean": 0.0, "std": 0.1}, {"mean": 0.5, "std": 0.5}]
)
def test_what_cannot_be_the_mean_of_pixels_is_named(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"of pixels in .0, 1., but got mean=.*Set both\. If inputs are not"):
        Leaves((1, 8, 8), **arguments)


def test_the_mean_of_bytes_is_named() -> None:
    with pytest.raises(ValueError, match=r"If these are of pixels in \[0, 255\], divide both by 255\."):
        Leaves((1, 8, 8), mean=72.9, std=90.0)


@pytest.mark.parametrize("mean", [[0.5, 0.5], "a"])
def test_the_mean_is_a_number_or_one_for_each_channel(mean: Any) -> None:
    with pytest.raises(ValueError, match="one number, or one for each of 1 channels, but got mean="):
        Leaves((1, 8, 8), mean=mean, std=0.2)


def test_images_need_a_shape_of_images() -> None:
    with pytest.raises(ValueError, match="Expected `input_shape` of an image"):
        Leaves((8,))


def test_rows_have_several_kinds_of_distributions() -> None:
    x = RandomRows(8).sample(20_000, 0)
    assert torch.equal(x, Procedural(8).sample(20_000, 0))
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(8), atol=0.35, rtol=0)
    assert (x.var(dim=0) > 0.6).all() and (x.var(dim=0) < 2.5).all()
    assert x.abs().max() > 8  # heavy tails
    bounds = (x.abs() <= 3**0.5 + 1e-5).all(dim=1)
    levels = torch.stack([row.unique().numel() < 8 * torch.ones(()) for row in x[bounds][:2000]])
    assert 0.02 < levels.float().mean() < 0.5  # steps


class _Norms(nn.Module):
    """Its class is the sign of the mean; batch norm has seen inputs of mean 1 and variance 1."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.fill_(1.0)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean(dim=1, keepdim=True)
        return torch.cat([mean, -mean], dim=1)


def test_selected_samples_are_balanced_and_nearest_to_batch_norm() -> None:
    teacher, plain = _Norms(), NormalNoise(4)
    x = SelectedSource(plain, teacher, 8).sample(200, 0)
    assert x.shape == (200, 4)
    candidates = plain.sample(1600, 0)
    share = teacher.eval()(candidates).argmax(dim=1).bincount() / 1600
    assert share.max() > 0.9  # of one class
    counts = teacher(x).argmax(dim=1).bincount()
    assert counts.tolist() == [min(100, int(1600 * share[0])), 200 - min(100, int(1600 * share[0]))]
    assert (x.mean() - 1).abs() < 0.6 * (candidates.mean() - 1).abs()
    assert {tuple(row) for row in x.tolist()} <= {tuple(row) for row in candidates.tolist()}
    assert torch.equal(x, SelectedSource(plain, teacher, 8).sample(200, 0))


def test_selection_without_batch_norm_balances_classes() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    x = SelectedSource(RandomFields((1, 32, 32)), teacher, 2).sample(100, 0)
    before = teacher(RandomFields((1, 32, 32)).sample(200, 0)).argmax(dim=1).bincount(minlength=10)
    after = teacher(x).argmax(dim=1).bincount(minlength=10)
    assert (after >= before.clamp_max(10)).all()
    assert after.max() / 100 < before.max() / 200
    with pytest.raises(ValueError, match="`oversampling` to be a whole number of at least 1"):
        SelectedSource(RandomFields((1, 32, 32)), teacher, 0)


@pytest.mark.parametrize("shape", [(6,), (1, 12, 12), (2, 20)], ids=str)
def test_a_share_of_the_samples_is_mixed(shape: tuple[int, ...]) -> None:
    plain = NormalNoise(shape)
    x, mixed = plain.sample(200, 0), MixedSource(plain, 0.25).sample(200, 0)
    changed = (x != mixed).flatten(1).any(dim=1)
    assert changed.sum() == 50
    assert mixed[changed].var() < 0.8 * x.var()  # averages
    assert torch.equal(MixedSource(plain, 0.0).sample(200, 0), x)
    with pytest.raises(ValueError, match="`share` to be a number from 0 to 1"):
        MixedSource(plain, 1.5)


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


class _Rows(nn.Module):
    """A teacher of three features. Its layer has large weights for the difference of two, small for the sum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3) if kind == "batch norm" else nn.Identity()
        self.embed = nn.Conv1d(3, 3, 1) if kind == "without a dense layer" else nn.Linear(3, 4)
        self.out = nn.Identity() if kind == "without a dense layer" else nn.Linear(4, 2)
        self.kind = kind
        if kind != "without a dense layer":
            self.embed.weight.data.copy_(torch.tensor([[3.0, -3.0, 0.0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]))
        if kind == "narrow":
            self.embed.weight.data[1:] = 0
        if kind == "constant":
            self.embed.weight.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        if self.kind == "without a dense layer":
            return self.embed(x[:, :, None])[:, :2, 0]
        return self.out(self.embed(x))


@pytest.mark.parametrize(("power", "expected"), [(0.0, 0.0), (0.75, 0.677), (1.0, 0.8)])
def test_noise_is_correlated_where_the_first_layer_has_small_weights(power: float, expected: float) -> None:
    x = CorrelatedNoise(_Rows("plain"), 3, power=power).sample(20_000, 0)
    found = torch.corrcoef(x.T)
    # eigenvalues 18 and 2: (2^-p - 18^-p) / (2^-p + 18^-p)
    assert found[0, 1] == pytest.approx(expected, abs=0.02)
    assert found[0, 2] == pytest.approx(0, abs=0.03) and found[1, 2] == pytest.approx(0, abs=0.03)
    torch.testing.assert_close(x.var(dim=0), torch.ones(3), atol=0.05, rtol=0)
    assert torch.equal(x, CorrelatedNoise(_Rows("plain"), (3,), power=power).sample(20_000, 0))


@pytest.mark.parametrize("kind", ["batch norm", "narrow"])
def test_correlated_noise_of_other_teachers(kind: str) -> None:
    teacher = _Rows(kind)
    x = CorrelatedNoise(teacher, 3).sample(5_000, 1)
    assert teacher.training and x.shape == (5_000, 3) and bool(x.isfinite().all())
    torch.testing.assert_close(x.var(dim=0), torch.ones(3), atol=0.1, rtol=0)
    if kind == "batch norm":  # as without, since it scales all features alike
        assert torch.corrcoef(x.T)[0, 1] > 0.6
    else:  # the layer sees one direction; the others are as strong
        assert torch.corrcoef(x.T)[0, 1].abs() < 0.05


@pytest.mark.parametrize(
    ("kind", "shape", "power", "message"),
    [
        ("plain", (3, 2), 0.75, r"samples of shape \(features,\) for the source correlated, but got \(3, 2\)"),
        ("plain", 3, 1.5, "`power` to be a number from 0 to 1, but got 1.5"),
        ("without a dense layer", 3, 0.75, "dense layer that responds to the features, .* but _Rows has none"),
        ("constant", 3, 0.75, "finite, non-zero Jacobian at the input 0"),
    ],
)
def test_correlated_noise_needs_rows_and_a_dense_layer(
    kind: str, shape: int | tuple[int, ...], power: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CorrelatedNoise(_Rows(kind), shape, power=power)
