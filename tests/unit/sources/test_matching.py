"""Samples that are matched to the statistics of batch norm."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses.base import NormStatistics
from kegnet_pl.losses.statistics import divergence_of_statistics
from kegnet_pl.networks import BatchNormMoments
from kegnet_pl.networks.handling import copy_network, to_float32
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.progress import listen_to_progress
from kegnet_pl.sources import (
    MatchedSource,
    MixedSource,
    NormalNoise,
    Procedural,
    SelectedSource,
    match_statistics,
)
from kegnet_pl.sources import (
    matching as matching_module,
)
from kegnet_pl.sources.matching import find_matched_layers, match_share

SHAPES = [(6,), (2, 24), (3, 12, 12), (2, 6, 6, 6)]


def make_network(shape: Sequence[int], classes: int = 3) -> nn.Module:
    """Return a network with two batch-norm layers that have seen other data than noise."""
    torch.manual_seed(0)
    channels, dims = shape[0], len(shape) - 1
    norm = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims]
    convolution = [None, nn.Conv1d, nn.Conv2d, nn.Conv3d][dims]

    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs) if convolution is None else convolution(inputs, outputs, 3, padding=1)

    network = nn.Sequential(
        layer(channels, 8), norm(8), nn.ReLU(), layer(8, 8), norm(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )
    network.train()
    for _ in range(60):
        network(2 * torch.randn(64, *shape) ** 2 - 1)
    return network.eval()


def divergence(network: nn.Module, x: Tensor) -> float:
    """Return the mean divergence over the layers."""
    moments = BatchNormMoments(copy_network(network).eval().requires_grad_(False))
    found = moments(x)[1]
    layers = [NormStatistics(*own, *other) for own, other in zip(found, moments.stored(), strict=True)]
    return float(torch.stack([divergence_of_statistics(layer) for layer in layers]).mean())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_samples_come_closer_to_the_stored_statistics(shape: tuple[int, ...]) -> None:
    network, x = make_network(shape), NormalNoise(shape).sample(250, 0)
    state = copy_network(network).state_dict()
    start = x.clone()
    matched = match_statistics(x, network)
    assert torch.equal(x, start)
    assert matched.shape == x.shape and not torch.equal(matched, x)
    assert divergence(network, matched) < 0.6 * divergence(network, x)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    assert (matched.amin(dims) >= x.amin(dims)).all() and (matched.amax(dims) <= x.amax(dims)).all()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    assert not network.training and all(value.requires_grad for value in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_seed_decides() -> None:
    network, x = make_network((3, 12, 12)), NormalNoise((3, 12, 12)).sample(64, 0)
    first = match_statistics(x, network, seed=1)
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.equal(match_statistics(x, network, seed=1), first)
    assert not torch.equal(match_statistics(x, network, seed=2), first)


def test_a_share_is_matched_and_the_others_stay() -> None:
    shape = (3, 12, 12)
    network, plain = make_network(shape), Procedural(shape)
    x, source = plain.sample(200, 3), MatchedSource(plain, network, 0.25)
    found = source.sample(200, 3)
    changed = (found != x).flatten(1).any(dim=1)
    assert changed.sum() == 50
    assert not changed[:50].all()  # at random places
    assert torch.equal(found, source.sample(200, 3))
    assert MatchedSource(plain, network, 0.0).sample(200, 3).equal(x)
    assert (source.input_shape, source.candidates, source.multiple) == (shape, 1, plain.multiple)
    assert not list(source.parameters())  # the teacher is not part of it


def test_progress_reaches_its_end() -> None:
    network, shares = make_network((6,)), list[float]()
    with listen_to_progress(shares.append):
        match_share(NormalNoise((6,)).sample(900, 0), network, 1.0)
    assert shares == sorted(shares) and len(shares) > 2 and shares[-1] == 1


def test_without_stored_statistics_samples_stay() -> None:
    shape = (3, 12, 12)
    x = NormalNoise(shape).sample(40, 0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    no_statistics = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(432, 3))
    program = torch.jit.trace(make_network(shape), x)  # type: ignore[no-untyped-call]
    for network in (plain, no_statistics, program):
        assert not find_matched_layers(network, x)
        assert MatchedSource(NormalNoise(shape), network).sample(40, 0).equal(x)


class _Skips(nn.Module):
    """Calls its auxiliary head only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_network((6,))
        self.head = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.head(x) if self.training else x)
        return logits


def test_layers_that_are_not_called_do_not_count() -> None:
    network, x = _Skips().eval(), NormalNoise((6,)).sample(100, 0)
    assert find_matched_layers(network, x) == ["body.1", "body.4"]
    assert torch.equal(match_statistics(x, network), match_statistics(x, network.body))


def test_half_precision_is_matched_in_float32() -> None:
    network, x = make_network((3, 12, 12)), NormalNoise((3, 12, 12)).sample(64, 0)
    found = match_statistics(x.bfloat16(), copy_network(network).bfloat16())
    assert found.dtype == torch.bfloat16
    assert divergence(network, found.float()) < 0.5 * divergence(network, x)


def test_samples_of_another_precision_are_matched_too() -> None:
    network, x = make_network((3, 12, 12)), NormalNoise((3, 12, 12)).sample(64, 0)
    half = copy_network(network).bfloat16()
    assert find_matched_layers(half, x) == ["1", "4"]
    found = match_statistics(x, half)
    assert found.dtype == torch.float32 and divergence(network, found) < 0.5 * divergence(network, x)


class _Complex(nn.Module):
    """Multiplies the spectrum of a signal by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(1j * torch.ones(13, dtype=torch.complex64))
        self.body = make_network((2, 24))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(torch.fft.irfft(torch.fft.rfft(x) * self.spectrum, n=24))
        return logits


def test_complex_weights_keep_their_imaginary_parts() -> None:
    network, x = _Complex().eval(), NormalNoise((2, 24)).sample(64, 0)
    assert divergence(network, match_statistics(x, network)) < 0.6 * divergence(network, x)
    assert to_float32(copy_network(network).double()).spectrum.imag.all()
    double = copy_network(network).double()
    double.spectrum.data = double.spectrum.data.to(torch.complex128)
    assert torch.equal(to_float32(copy_network(double))(x), network(x))
    assert torch.equal(match_statistics(x, double), match_statistics(x, network))


def test_the_batch_depends_on_the_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(matching_module, "_match", lambda x, *_: lengths.append(len(x)) or x)  # type: ignore[func-returns-value]
    for shape in ((6,), (3, 256, 256)):
        network = make_network(shape) if len(shape) == 1 else nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).eval()
        match_statistics(torch.zeros(400, *shape) if len(shape) == 1 else torch.zeros(64, *shape), network)
    assert lengths == [200, 200, 32, 32]


def test_forward_passes_of_the_teacher_are_counted() -> None:
    network, plain = make_network((6,)), NormalNoise((6,))
    selected = SelectedSource(plain, network, 4)
    assert [plain.teacher_passes, selected.teacher_passes] == [0, 4]
    assert MatchedSource(selected, network, 0.5).teacher_passes == 4 + 0.5 * 20
    assert MatchedSource(plain, nn.Linear(6, 2)).teacher_passes == 0
    mixed = MixedSource(MatchedSource(selected, network), 0.5)
    costs = StageCosts()
    SyntheticDataModule(mixed, network, samples=10, costs=costs).setup()
    assert (costs.samples_made, costs.teacher_forwards) == (40, 10 * (20 + 4 + 1))


class _NoGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = make_network((6,))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


def test_a_teacher_without_gradients_changes_nothing() -> None:
    x = NormalNoise((6,)).sample(40, 0)
    assert torch.equal(match_statistics(x, _NoGradients().eval()), x)


def test_a_single_sample_stays() -> None:
    x = NormalNoise((6,)).sample(1, 0)  # it has no variance
    assert torch.equal(match_statistics(x, make_network((6,))), x)


def test_samples_without_finite_gradients_stay() -> None:
    network, x = make_network((6,)), NormalNoise((6,)).sample(40, 0)
    network[0].weight.data[:] = torch.inf  # type: ignore[index, union-attr]
    assert torch.equal(match_statistics(x, network), x)


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "half"])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"`share` to be a number from 0 to 1, but got {share!r}"):
        MatchedSource(NormalNoise((6,)), make_network((6,)), share)


def test_compress_matches_its_samples() -> None:
    shape = (3, 12, 12)
    network = make_network(shape)

    def compress(network: nn.Module, matching: float) -> dict[str, Tensor]:
        options = {"samples": 60, "oversampling": 1, "method": "tucker", "progress": False}
        return kegnet_pl.compress(network, shape, 1.5, matching=matching, **options).network.state_dict()  # type: ignore[arg-type]

    def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
        return all(value.equal(second[name]) for name, value in first.items())

    assert not same(compress(network, 0.0), compress(network, 1.0))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(432, 20), nn.ReLU(), nn.Linear(20, 3))
    assert same(compress(plain, 0.0), compress(plain, 1.0))
    with pytest.raises(ValueError, match="`matching` to be a number from 0 to 1, but got 2"):
        compress(plain, 2)
