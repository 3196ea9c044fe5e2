"""Batches of tensors in memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kegnet_pl.data.loading import NoiseLoader, TensorLoader, local_batch_size
from kegnet_pl.networks.execution import chunk_size
from kegnet_pl.runtime.seeds import stream


def _rows(loader: TensorLoader) -> list[int]:
    return torch.cat([batch[0] for batch in loader]).tolist()


def _loader(count: int = 10, world: int = 1, rank: int = 0, **options: Any) -> TensorLoader:
    trainer: Any = SimpleNamespace(world_size=world, global_rank=rank) if world > 1 else None
    options.setdefault("batch_size", 4)
    return TensorLoader(torch.arange(count), trainer=trainer, **options)


def test_all_rows_once_in_order() -> None:
    loader = _loader()
    assert _rows(loader) == list(range(10))
    assert [len(batch[0]) for batch in loader] == [4, 4, 2]
    assert len(loader) == 3


def test_rows_of_all_tensors_stay_together() -> None:
    x, y = torch.arange(12.0).view(6, 2), torch.arange(6)
    for a, b in TensorLoader(x, y, batch_size=4, shuffle=True, seed=2):
        assert torch.equal(a, x[b])


def test_shuffling_takes_all_rows_once() -> None:
    rows = _rows(_loader(100, shuffle=True))
    assert sorted(rows) == list(range(100))
    assert rows != list(range(100))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = _loader(50, shuffle=True, seed=seed)
        loader.sampler.set_epoch(epoch)
        torch.manual_seed(epoch + seed * 10)
        return _rows(loader)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(2**40 + 1, 0) == order(2**40 + 1, 0)


def test_one_loader_changes_its_order_with_the_epoch() -> None:
    loader = _loader(50, shuffle=True)
    first = _rows(loader)
    loader.sampler.set_epoch(1)
    second = _rows(loader)
    loader.sampler.set_epoch(0)
    assert first != second
    assert first == _rows(loader)


def test_unshuffled_rows_keep_their_order_in_every_epoch() -> None:
    loader = _loader()
    loader.sampler.set_epoch(5)
    assert _rows(loader) == list(range(10))


@pytest.mark.parametrize(
    ("count", "train", "sizes"),
    [
        (10, True, [4, 4]),
        (10, False, [4, 4, 2]),
        (8, True, [4, 4]),
        (4, True, [4]),
        (3, True, [3]),
        (9, False, [4, 4, 1]),
    ],
)
def test_last_small_batch_is_left_out_in_training_only(count: int, train: bool, sizes: list[int]) -> None:
    loader = _loader(count, train=train)
    assert [len(batch[0]) for batch in loader] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_ranks_share_the_rows_out(shuffle: bool) -> None:
    shares = [_rows(_loader(24, world=2, rank=rank, shuffle=shuffle)) for rank in (0, 1)]
    assert not set(shares[0]) & set(shares[1])
    assert sorted(shares[0] + shares[1]) == list(range(24))


def test_two_ranks_see_half_a_batch_each() -> None:
    loader = _loader(24, world=2, rank=1)
    assert [len(batch[0]) for batch in loader] == [2] * 6


def test_ranks_take_the_same_number_of_training_steps() -> None:
    lengths = [len(list(_loader(13, world=2, rank=rank, train=True))) for rank in (0, 1)]
    assert lengths[0] == lengths[1] == len(_loader(13, world=2, train=True))


@pytest.mark.parametrize("count", [2, 9, 13])
def test_ranks_evaluate_every_row_once(count: int) -> None:
    loaders = [_loader(count, world=2, rank=rank) for rank in (0, 1)]
    assert sorted(_rows(loaders[0]) + _rows(loaders[1])) == list(range(count))
    assert all(len(list(loader)) == len(loader) >= 1 for loader in loaders)


def test_rows_fewer_than_ranks_come_twice_in_evaluation() -> None:
    assert [_rows(_loader(3, world=4, rank=rank)) for rank in range(4)] == [[0], [1], [2], [0]]


def test_batch_that_cannot_be_shared_out() -> None:
    trainer: Any = SimpleNamespace(world_size=4, global_rank=0)
    with pytest.raises(ValueError, match=r"`batch_size`.*multiple of the 4 processes.*got 6.*Set it to 4"):
        TensorLoader(torch.arange(8), batch_size=6, trainer=trainer)
    with pytest.raises(ValueError, match="Set it to 4"):
        local_batch_size(3, trainer)
    assert local_batch_size(8, trainer) == 2
    assert local_batch_size(7, None) == 7


@pytest.mark.parametrize("tensors", [(torch.zeros(2), torch.zeros(3)), (torch.zeros(0),)])
def test_tensors_must_have_one_length(tensors: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="one length above 0"):
        TensorLoader(*tensors, batch_size=1)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_batches_are_those_of_an_ordinary_loader(shuffle: bool, train: bool) -> None:
    """Whole batches are taken from tensors, rows one by one by torch."""
    x, y = torch.arange(22.0).view(11, 2), torch.arange(11)
    loader = TensorLoader(x, y, batch_size=4, seed=3, shuffle=shuffle, train=train)
    assert isinstance(loader, DataLoader)
    loader.sampler.set_epoch(2)
    ordinary = list(DataLoader.__iter__(loader))
    assert len(ordinary) == len(loader) == (2 if train else 3)
    for mine, torchs in zip(loader, ordinary, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine, torchs, strict=True))


def test_tensors_of_an_epoch_take_the_place_of_the_last() -> None:
    loader = _loader(8, train=True, refresh=lambda epoch: (torch.arange(8) + 100 * epoch,))
    assert _rows(loader) == list(range(8))
    loader.sampler.set_epoch(3)
    assert _rows(loader) == list(range(300, 308))
    assert int(loader.dataset[0][0]) == 300


def _noise(steps: int = 23, **options: Any) -> NoiseLoader:
    def streams(epoch: int) -> list[torch.Generator]:
        return [stream(7, "noise", index, epoch) for index in range(options.get("count", 1))]

    return NoiseLoader(steps, 5, 4, 3, streams, stacked=options.get("count", 1) > 1)


def test_every_step_has_noise_and_labels_of_its_own() -> None:
    loader = _noise()
    batches = list(loader)
    assert isinstance(loader, DataLoader)
    assert len(batches) == len(loader) == 23
    assert all(z.shape == (5, 4) and y.shape == (5, 3) for z, y in batches)
    assert len(torch.cat([z for z, _ in batches]).unique(dim=0)) == 23 * 5
    assert all(torch.equal(y.sum(dim=1), torch.ones(5)) for _, y in batches)


def test_noise_depends_on_the_epoch_alone() -> None:
    loader = _noise()
    first = [z for z, _ in loader]
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first[0])
    loader.sampler.set_epoch(0)
    assert all(torch.equal(z, old) for (z, _), old in zip(loader, first, strict=True))


def test_stacked_networks_see_the_noise_that_each_would_see_alone() -> None:
    stacked, alone = list(_noise(count=3)), list(_noise())
    assert all(z.shape == (3, 5, 4) and y.shape == (3, 5, 3) for z, y in stacked)
    for (z, y), (mine, label) in zip(stacked, alone, strict=True):
        assert torch.equal(z[0], mine) and torch.equal(y[0], label)
        assert not torch.equal(z[1], mine)


def test_in_order_nothing_is_copied() -> None:
    x = torch.arange(12)
    batches = [batch[0] for batch in TensorLoader(x, batch_size=4)]
    assert [batch.data_ptr() for batch in batches] == [x[i : i + 1].data_ptr() for i in (0, 4, 8)]


@pytest.mark.parametrize(("sample", "size"), [((3, 32, 32), 341), ((16,), 8192), ((3, 256, 256), 16)])
def test_chunks_fit_a_cache(sample: tuple[int, ...], size: int) -> None:
    assert chunk_size(sample, torch.device("cpu")) == size
    assert chunk_size(sample, torch.device("cuda")) >= size
