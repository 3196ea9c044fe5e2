"""Common behaviour of all real data sets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from kegnet_pl.data import Split
from kegnet_pl.data.base import find_file, hold_out, stratified_folds
from tests.unit.data.files import Memory


def test_hold_out_takes_every_row_once() -> None:
    whole = Split(torch.arange(20.0)[:, None], torch.arange(20))
    rest, held = hold_out(whole, 6, seed=3)
    assert (len(rest), len(held)) == (14, 6)
    assert torch.equal(torch.cat([rest.y, held.y]).sort().values, whole.y)
    assert torch.equal(held.x[:, 0], held.y.float())
    assert not torch.equal(held.y, whole.y[-6:]), "the rows were not shuffled"
    assert torch.equal(hold_out(whole, 6, seed=3)[1].y, held.y)
    assert not torch.equal(hold_out(whole, 6, seed=4)[1].y, held.y)


@pytest.mark.parametrize("size", [0, 5, 9])
def test_hold_out_leaves_something_on_both_sides(size: int) -> None:
    with pytest.raises(ValueError, match="1 to 4 of 5"):
        hold_out(Split(torch.zeros(5, 1), torch.zeros(5).long()), size, seed=0)


def test_folds_keep_the_share_of_every_class() -> None:
    y = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    parts = stratified_folds(y, (0.7, 0.1, 0.2), seed=1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert [y[part].bincount().tolist() for part in parts] == [[49, 14, 7], [7, 2, 1], [14, 4, 2]]
    assert all(not torch.equal(part, part.sort().values) for part in parts), "a part is in order of its classes"
    assert all(map(torch.equal, parts, stratified_folds(y, (0.7, 0.1, 0.2), seed=1)))
    assert not torch.equal(parts[0], stratified_folds(y, (0.7, 0.1, 0.2), seed=2)[0])


def test_find_file_says_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    assert find_file(tmp_path, ["a/file", "b/file"], "it", "Ask.") == tmp_path / "b" / "file"
    with pytest.raises(FileNotFoundError, match=r"the table.*a/file.*c/file.*Ask\..*data\.root.*KEGNET_DATA_DIR"):
        find_file(tmp_path, ["a/file", "c/file"], "the table", "Ask.")


@pytest.mark.parametrize(
    ("options", "message"), [({"classes": 1}, "`classes` of at least 2"), ({"batch_size": 0}, "`batch_size`")]
)
def test_wrong_arguments(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Memory(**options)


class _Declared(Memory):
    """Returns the splits it is given."""

    def __init__(self, splits: dict[str, Split], **options: Any) -> None:
        super().__init__(**options)
        self.given = splits

    def read(self) -> dict[str, Split]:
        return self.given


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(2).long(), r"shape \(6,\).*\(5,\).*data\.input_shape"),
        (torch.zeros(2, 6), torch.tensor([0, 3]), "classes 0 to 2.*got 0 to 3"),
        (torch.zeros(2, 6), torch.tensor([-1, 0]), "classes 0 to 2.*got -1 to 0"),
        (torch.zeros(0, 6), torch.zeros(0).long(), "samples in the test split"),
    ],
)
def test_files_of_another_kind_are_refused(x: Tensor, y: Tensor, message: str) -> None:
    good = Split(torch.zeros(2, 6), torch.zeros(2).long())
    with pytest.raises(ValueError, match=message):
        _Declared({"train": good, "val": good, "test": Split(x, y)}).setup()


def test_files_are_read_once() -> None:
    data = Memory()
    data.setup("fit")
    first = data.splits
    data.setup("test")
    assert data.splits is first


def test_loaders_serve_their_own_split() -> None:
    data = Memory(batch_size=4)
    data.setup()
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        assert torch.equal(torch.cat([x for x, _ in loader]), data.splits[part].x)
        assert torch.equal(torch.cat([y for _, y in loader]), data.splits[part].y)
    x = torch.cat([x for x, _ in data.train_dataloader()])
    assert not torch.equal(x, data.splits["train"].x), "training rows are not shuffled"
    assert torch.equal(x.sort(dim=0).values, data.splits["train"].x.sort(dim=0).values)


def _images(step: int, rank: int = 0, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = Memory(input_shape=(1, 4, 4), **options)
    data.trainer = SimpleNamespace(training=True, global_rank=rank, global_step=step)  # type: ignore[assignment]
    x, y = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(64)
    return x, y, *data.on_after_batch_transfer((x, y), 0)


def test_half_of_the_images_are_mirrored_in_training() -> None:
    x, y, seen, labels = _images(step=0, flip=True)
    mirrored = (seen == x.flip(-1)).flatten(1).all(dim=1)
    assert bool((mirrored | (seen == x).flatten(1).all(dim=1)).all()), "an image was neither kept nor mirrored"
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(labels, y)


def test_mirroring_differs_by_step_rank_and_seed_alone() -> None:
    seen = _images(step=3, flip=True)[2]
    assert torch.equal(seen, _images(step=3, flip=True)[2])
    for other in ({"step": 4}, {"step": 3, "rank": 1}, {"step": 3, "seed": 1}):
        assert not torch.equal(seen, _images(**other, flip=True)[2]), other


def test_no_mirroring_unless_asked_for() -> None:
    x, _, seen, _ = _images(step=0)
    assert torch.equal(seen, x)


class _Recorder(LightningModule):
    """Keeps the batches that reach its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(16, 3)
        self.seen: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen["train"].append(batch[0])
        return nn.functional.cross_entropy(self.network(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen["val"].append(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen["test"].append(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_mirrors_training_images_only(tmp_path: Path) -> None:
    data, module = Memory(input_shape=(1, 4, 4), flip=True, batch_size=8), _Recorder()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    for part in ("val", "test"):
        rows = {tuple(row.tolist()) for row in torch.cat(module.seen[part]).flatten(1)}
        assert rows == {tuple(row.tolist()) for row in data.splits[part].x.flatten(1)}, part
    kept = {tuple(row.tolist()) for row in data.splits["train"].x.flatten(1)}
    mirror = {tuple(row.tolist()) for row in data.splits["train"].x.flip(-1).flatten(1)}
    seen = [tuple(row.tolist()) for row in torch.cat(module.seen["train"]).flatten(1)]
    assert len(seen) == 80
    assert set(seen) <= kept | mirror
    assert 20 < sum(row in mirror for row in seen) < 60
