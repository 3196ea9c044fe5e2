"""Synthetic data: what is drawn, how it is labelled, what never changes."""

import copy
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.data import Split, SyntheticDataModule, synthetic
from kegnet_pl.data.synthetic import divide_draw
from kegnet_pl.networks import DenseGenerator
from kegnet_pl.runtime.storage import StorageLimits
from kegnet_pl.sources import (
    GeneratorSource,
    MixedSource,
    MixtureSource,
    NoiseSource,
    RealSource,
    SelectedSource,
    sample_labels_and_noise,
)


class _Echo(nn.Module):
    """A generator whose samples are what it was fed with, and its own number."""

    def __init__(self, number: int, noise_dim: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.noise_dim, self.classes = noise_dim, classes
        self.number = nn.Parameter(torch.tensor([[float(number)]]))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.cat([z, y, self.number.expand(len(z), 1)], dim=1)


def _teacher(features: int = 8, classes: int = 3) -> nn.Module:
    """A network that answers otherwise in training mode, left in that mode."""
    network = nn.Sequential(
        nn.Linear(features, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, classes)
    )
    with torch.no_grad():
        network(torch.randn(64, features) * 2 + 1)  # moves the running statistics
    return network.train()


def _generators(count: int = 2) -> list[nn.Module]:
    networks = [DenseGenerator(8, 3, noise_dim=4, blocks=1, width=8) for _ in range(count)]
    for network in networks:
        network(torch.randn(32, 4), torch.eye(3)[torch.arange(32) % 3])
    return networks


def _data(source: Any = None, teacher: nn.Module | None = None, **options: Any) -> SyntheticDataModule:
    data = SyntheticDataModule(
        source or GeneratorSource(_generators()), teacher or _teacher(), **({"samples": 40, "seed": 3} | options)
    )
    data.setup()
    return data


class _Partly(nn.Module):
    """A network whose logits are NaN where the first feature is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, torch.nan, x[:, :3])


def test_samples_and_logits_that_are_not_finite_are_counted() -> None:
    class Broken(NoiseSource):
        def sample(self, n: int, seed: int) -> Tensor:
            x = super().sample(n, seed)
            x[3, 2], x[5, 1] = torch.inf, torch.nan
            return x

    with pytest.raises(ValueError, match=r"2 of 40 of the source Noise have NaN or infinite values\. Check its"):
        _data(Broken("normal", (8,)))
    with pytest.raises(ValueError, match=r"NaN or infinite values for \d+ of 40 samples of the source Noise\. Check"):
        _data(NoiseSource("normal", (8,)), _Partly())


def test_labels_are_one_hot_and_uniform_and_noise_is_normal() -> None:
    z, y = sample_labels_and_noise(30_000, 5, 7, torch.Generator().manual_seed(0))
    assert z.shape == (30_000, 7)
    assert y.shape == (30_000, 5)
    assert torch.equal(y.sum(dim=1), torch.ones(30_000))
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert float((y.mean(dim=0) - 0.2).abs().max()) < 0.01
    assert float(z.mean(dim=0).abs().max()) < 0.03
    assert float((z.std(dim=0) - 1).abs().max()) < 0.03
    assert float((torch.corrcoef(torch.cat([z, y[:, :1]], dim=1).T) - torch.eye(8)).abs().max()) < 0.03


def test_the_same_pairs_pass_through_every_generator_in_turn() -> None:
    x = GeneratorSource([_Echo(number) for number in range(3)]).sample(30, seed=1)
    pieces = x.split(10)
    for number, piece in enumerate(pieces):
        assert torch.equal(piece[:, -1], torch.full((10,), float(number)))
        assert torch.equal(piece[:, :-1], pieces[0][:, :-1])
    assert len(pieces[0].unique(dim=0)) == 10


def test_samples_do_not_depend_on_the_size_of_pieces() -> None:
    networks = [_Echo(0), _Echo(1)]
    whole = GeneratorSource(networks).sample(20, seed=1)
    assert torch.equal(GeneratorSource(networks, chunk=3).sample(20, seed=1), whole)


@pytest.mark.parametrize(
    "source", [GeneratorSource([_Echo(0), _Echo(1)]), NoiseSource("uniform", (6,)), NoiseSource("normal", (6,))]
)
def test_samples_depend_on_the_seed_alone(source: Any) -> None:
    first = source.sample(8, seed=1)
    torch.manual_seed(99)
    assert torch.equal(source.sample(8, seed=1), first)
    assert not torch.equal(source.sample(8, seed=2), first)


@pytest.mark.parametrize(("count", "advice"), [(7, 8), (1, 2), (0, 2)])
def test_samples_must_be_a_multiple_of_the_generators(count: int, advice: int) -> None:
    with pytest.raises(ValueError, match=rf"multiple of the 2 generators, but got {count}\. Try {advice}\."):
        GeneratorSource([_Echo(0), _Echo(1)]).sample(count, seed=0)


def test_no_generator() -> None:
    with pytest.raises(ValueError, match="at least one generator"):
        GeneratorSource([])


def test_jitter_is_noise_of_that_deviation_on_every_sample() -> None:
    networks = [_Echo(0), _Echo(1)]
    plain, source = GeneratorSource(networks), GeneratorSource(networks, noise_std=0.5)
    noise = (source.sample(20_000, seed=1) - plain.sample(20_000, seed=1)) / 0.5
    assert float(noise.mean(dim=0).abs().max()) < 0.03
    assert float((noise.std(dim=0) - 1).abs().max()) < 0.03
    halves = torch.cat(noise.split(10_000), dim=1)
    others = torch.corrcoef(halves.T) - torch.eye(halves.shape[1])
    assert float(others.abs().max()) < 0.05, "features and generators have noise of their own"
    assert torch.equal(source.sample(8, seed=1), source.sample(8, seed=1))
    assert not torch.equal(source.sample(8, seed=1), source.sample(8, seed=2))


@pytest.mark.parametrize("noise_std", [-0.1, float("nan")])
def test_jitter_out_of_range(noise_std: float) -> None:
    with pytest.raises(ValueError, match="`noise_std` of at least 0, but got"):
        GeneratorSource([_Echo(0)], noise_std=noise_std)


def test_generators_compute_in_evaluation_mode_and_never_change() -> None:
    networks = _generators()
    for network in networks:
        network.train()
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    source = GeneratorSource(networks)
    source.train()
    x = source.sample(40, seed=1)
    source.generate([1], torch.randn(5, 4), torch.eye(3)[torch.zeros(5, dtype=torch.long)])
    for network, frozen, state in zip(networks, source.generators, before, strict=True):
        assert network.training, "the caller's generator was touched"
        for key, value in state.items():
            assert torch.equal(network.state_dict()[key], value), key
            assert torch.equal(frozen.state_dict()[f"network.{key}"], value), key
    z_and_y = GeneratorSource([_Echo(0)]).sample(20, seed=1)
    for index, piece in enumerate(x.split(20)):
        expected = networks[index].eval()(z_and_y[:, :4], z_and_y[:, 4:7]).detach()
        assert torch.allclose(piece, expected, atol=1e-6)


def test_uniform_noise() -> None:
    x = NoiseSource("uniform", (3, 8, 8)).sample(500, seed=1)
    assert x.shape == (500, 3, 8, 8)
    assert -1 <= float(x.min()) < -0.99
    assert 0.99 < float(x.max()) < 1
    assert float(x.mean()) == pytest.approx(0, abs=0.01)
    assert float(x.var()) == pytest.approx(1 / 3, abs=0.01)


def test_normal_noise() -> None:
    x = NoiseSource("normal", (3, 8, 8)).sample(500, seed=1)
    assert x.shape == (500, 3, 8, 8)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.var()) == pytest.approx(1, abs=0.02)
    assert float(x.pow(4).mean()) == pytest.approx(3, abs=0.15)


def test_unknown_noise() -> None:
    with pytest.raises(ValueError, match=r"`distribution`.*uniform.*normal.*'laplace'"):
        NoiseSource("laplace", (2,))  # type: ignore[arg-type]


def test_labels_are_what_the_teacher_answers_in_evaluation_mode() -> None:
    teacher = _teacher()
    data = _data(teacher=teacher, samples=3000, validation_samples=40)
    reference = copy.deepcopy(teacher).eval()
    for x, logits in data.splits.values():
        assert torch.allclose(logits, reference(x).detach(), atol=1e-6)
        assert not logits.requires_grad
    assert not torch.allclose(data.splits["val"][1], teacher(data.splits["val"][0]).detach(), atol=1e-3)


def test_teacher_never_changes() -> None:
    teacher = _teacher()
    before = copy.deepcopy(teacher.state_dict())
    data = _data(teacher=teacher)
    data.teacher.train()
    data.label(torch.randn(64, 8))
    assert teacher.training, "the caller's teacher was touched"
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    for key, value in before.items():
        assert torch.equal(teacher.state_dict()[key], value), key
        assert torch.equal(data.teacher.state_dict()[f"network.{key}"], value), key


def test_validation_is_drawn_with_another_seed() -> None:
    data = _data(validation_samples=40)
    train, val = data.splits["train"][0], data.splits["val"][0]
    assert train.shape == val.shape
    assert not {tuple(row) for row in train.tolist()} & {tuple(row) for row in val.tolist()}


def test_samples_do_not_depend_on_whether_there_is_validation() -> None:
    networks, teacher = _generators(), _teacher()
    with_it = _data(GeneratorSource(networks), teacher, validation_samples=20)
    without = _data(GeneratorSource(networks), teacher)
    assert torch.equal(with_it.splits["train"][0], without.splits["train"][0])
    assert without.val_dataloader() == []


def test_draw_depends_on_the_seed_of_the_module() -> None:
    networks, teacher = _generators(), _teacher()
    first, again, other = (_data(GeneratorSource(networks), teacher, seed=seed).splits["train"] for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_drawn_once() -> None:
    data = _data()
    first = data.splits["train"][0]
    data.setup("fit")
    assert data.splits["train"][0] is first
    assert data.costs.seconds["drawing"] > 0 and data.costs.seconds["labelling"] > 0
    assert data.costs.samples_made == data.costs.teacher_forwards == sum(len(x) for x, _ in data.splits.values())


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_visit_all_samples_with_their_labels(shuffle: bool) -> None:
    data = _data(batch_size=8, shuffle=shuffle)
    batches = list(data.train_dataloader())
    x, logits = (torch.cat(part) for part in zip(*batches, strict=True))
    stored = data.splits["train"]
    assert torch.equal(x, stored[0]) is not shuffle
    assert torch.equal(x.sort(dim=0).values, stored[0].sort(dim=0).values)
    assert torch.allclose(data.label(x), logits, atol=1e-6)


def test_real_validation_takes_the_place_of_the_synthetic() -> None:
    real = Split(torch.randn(9, 8), torch.arange(9) % 3)
    data = _data(real_validation=real, batch_size=4)
    batches = list(data.val_dataloader())
    assert [len(y) for _, y in batches] == [4, 4, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), real.x)
    assert torch.equal(torch.cat([y for _, y in batches]), real.y)
    assert len(data.splits["train"][0]) == 40


def test_validation_samples_are_not_shuffled() -> None:
    data = _data(validation_samples=20, batch_size=8)
    x, logits = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    assert torch.equal(x, data.splits["val"][0])
    assert torch.equal(logits, data.splits["val"][1])


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("validation_samples", -1), ("batch_size", 0)])
def test_wrong_counts(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` to be at least {value + 1}, but got {value}"):
        _data(**{name: value})


@pytest.mark.parametrize("name", ["samples", "validation_samples"])
def test_counts_that_generators_cannot_share(name: str) -> None:
    with pytest.raises(ValueError, match="multiple of the 2 generators, but got 41"):
        _data(**{name: 41})


def test_generators_may_look_at_the_batch_while_samples_are_drawn() -> None:
    networks = _generators()
    source = GeneratorSource(networks, chunk=10, norm="batch")
    before = copy.deepcopy(source.state_dict())
    z_and_y = GeneratorSource([_Echo(0)]).sample(20, seed=1)
    x = source.sample(40, seed=1)
    for index, network in enumerate(networks):
        expected = [network.train()(part[:, :4], part[:, 4:7]) for part in z_and_y.split(10)]
        assert torch.allclose(x[20 * index : 20 * (index + 1)], torch.cat(expected), atol=1e-6)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in before.items())
    # Pieces are of about one size, so that none is left with statistics of one sample.
    assert torch.isfinite(GeneratorSource(networks, chunk=10, norm="batch").sample(42, seed=1)).all()


def test_statistics_of_the_batch_need_a_batch() -> None:
    with pytest.raises(ValueError, match="Expected `chunk`, the number of samples per forward pass"):
        GeneratorSource(_generators(), norm="batch")


def test_fresh_samples_are_new_every_epoch_and_depend_on_it_alone() -> None:
    def epoch(data: SyntheticDataModule, number: int) -> Tensor:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([x for x, _ in loader])

    data = _data(resample_each_epoch=True, shuffle=False, batch_size=8)
    first, second = epoch(data, 0), epoch(data, 1)
    assert torch.equal(first, data.splits["train"][0])
    assert not torch.isin(second, first).any()
    seconds = data.costs.seconds
    assert (data.costs.samples_made, len(second)) == (80, 40)
    assert 0 < -seconds["student_training"] < seconds["drawing"] + seconds["labelling"]
    source = data.source
    resumed = SyntheticDataModule(
        source, data.teacher, samples=40, seed=3, resample_each_epoch=True, shuffle=False, batch_size=8
    )
    resumed.setup()
    assert torch.equal(epoch(resumed, 1), second)
    assert torch.equal(epoch(_data(source, shuffle=False, batch_size=8), 1), first), "not asked for"


def test_fresh_samples_have_their_own_labels() -> None:
    data = _data(resample_each_epoch=True, batch_size=8)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    for x, logits in loader:
        assert torch.allclose(data.label(x), logits, atol=1e-6)


def test_entropy_of_labels() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([1000 * x[:, 0].sign(), torch.zeros(len(x))], dim=1)

    class Unsure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(len(x), 3)

    noise = NoiseSource("normal", (8,))
    sure, unsure = (_data(noise, teacher).label_entropies() for teacher in (Sure(), Unsure()))
    assert sure.shape == unsure.shape == (40,), "one a sample"
    assert sure.tolist() == pytest.approx([0] * 40, abs=1e-9)
    assert unsure.tolist() == pytest.approx([math.log(3)] * 40)
    assert _data(noise, Unsure()).label_information() == pytest.approx(0, abs=1e-9)
    balanced = _data(noise, Sure(), samples=4000)
    assert balanced.label_information() == pytest.approx(math.log(2), rel=0.01)


@pytest.mark.parametrize("samples", [1280, 2000, 2500, 3800, 5000])
def test_a_part_of_the_samples_is_of_all_generators(samples: int) -> None:
    data = _data(samples=samples)
    data.splits["train"] = (torch.arange(samples).view(-1, 1).float(), torch.zeros(samples, 3))
    part = data.subset(1280)
    assert len(part) == len(part.unique()) == 1280
    shares = torch.histc(part, bins=5, min=0, max=samples - 1) / 1280
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0.02, atol=0)
    assert len(data.subset(10 * samples)) == samples


@pytest.mark.parametrize("parts", [1, 3])
def test_samples_on_a_disk_are_those_in_memory(parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_PART", -(-4 * 40 * 8 // parts))
    said: list[str] = []
    options = {"samples": 40, "validation_samples": 6, "resample_each_epoch": True, "batch_size": 8}
    source, teacher = GeneratorSource(_generators()), _teacher()
    kept, stored = (
        _data(source, teacher, storage=StorageLimits(memory, tmp_path, notify=said.append), **options)
        for memory in (None, 0)
    )
    row = 4 * (8 + 3)
    assert len(said) == 1 and f"{tmp_path}: {row * (2 * 40 + 6) / 1e9:.3g} GB" in said[0]
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    for name in ("train", "val"):
        for one, other in zip(kept.splits[name], stored.splits[name], strict=True):
            assert torch.equal(one, other) and one.stride() == other.stride()
    loaders = [data.train_dataloader() for data in (kept, stored)]
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for one, other in zip(*loaders, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert torch.equal(kept.subset(10), stored.subset(10))
    del stored, loaders, loader, one, other
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "files of past epochs are kept"


def test_samples_that_are_where_they_are_used_need_no_further_storage(tmp_path: Path) -> None:
    said: list[str] = []
    data = _data(GeneratorSource(_generators()), _teacher(), samples=40)
    x, logits = data.splits["train"]
    again = copy.copy(data)
    again.storage = StorageLimits(0, tmp_path / "missing", notify=said.append)
    again._place = None
    again.use({"train": (x, logits)})
    assert again.splits["train"][0] is x and not said


def test_a_large_set_is_drawn_in_parts_that_suit_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_PART", 4 * 8 * 10)
    assert divide_draw(20, (8,)) == [10, 10]
    assert divide_draw(20, (8,), candidates=2) == [5] * 4
    assert divide_draw(21, (2, 4), multiple=3) == [9, 6, 6]
    assert divide_draw(21, (8,), multiple=2) == [21], "the source says what is wrong"
    assert divide_draw(21, ()) == [21], "the shape is not known"
    assert divide_draw(2, (800,), multiple=2) == [2]
    data = _data(samples=40)
    assert len(data.splits["train"][0].unique(dim=0)) == 40, "two parts have one seed"
    assert data.costs.samples_made == data.costs.teacher_forwards == 40
    x = torch.randn(40, 8)
    assert torch.equal(_data(RealSource(x)).splits["train"][0].sort(dim=0).values, x.sort(dim=0).values)


def test_every_source_tells_its_shape() -> None:
    noise, generators = NoiseSource("normal", (8,)), GeneratorSource(_generators(), chunk=4, norm="batch")
    mixture = MixtureSource({"a": (noise, 0.5), "b": (generators, 0.5)})
    sources = [
        generators,
        mixture,
        SelectedSource(mixture, _teacher()),
        MixedSource(mixture),
        RealSource(torch.ones(2, 8)),
    ]
    assert all(source.input_shape == (8,) for source in sources)
