"""Several processes do what one would."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from kegnet_pl.api.engine import fit_generators
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.losses import ClassifierLoss, DistillationLoss, DiversityLoss, GeneratorObjective
from kegnet_pl.networks import Decoder, DenseGenerator
from kegnet_pl.pipeline.store import Store
from kegnet_pl.runtime import distributed
from kegnet_pl.runtime.errors import StoreError
from kegnet_pl.runtime.progress import listen_to_progress
from kegnet_pl.settings import GeneratorTrainingSettings, Parallel
from kegnet_pl.sources import (
    GeneratorSource,
    MatchedSource,
    MixtureSource,
    NoiseSource,
    SelectedSource,
    SyntheticSource,
    match_statistics,
)
from kegnet_pl.sources.images import Leaves
from kegnet_pl.training import GeneratorModule, StudentModule, TeacherModule
from kegnet_pl.training.fit import QuietFit
from kegnet_pl.training.progress import StageProgress, make_console
from tests.unit.training.tiny import CLASSES, FEATURES, NOISE, make_classifier, make_task


class Keep(Callback):
    """Writes the gradients of the first step, and what the generator was fed with, a file a rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            grads = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
            torch.save(grads, self.folder / f"grads_{trainer.global_rank}.pt")


def trainer(folder: Path, devices: int) -> Trainer:
    folder.mkdir()
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[Keep(folder)],
    )


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.ddp
def test_student_gradients_equal_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    for devices in (1, 2):
        data = SyntheticDataModule(
            NoiseSource("normal", (6,)), network(), samples=64, batch_size=64, shuffle=False, seed=3
        )
        student = network()
        with torch.no_grad():
            student[0].weight.mul_(0.5)  # type: ignore[index, union-attr, operator]
        module = StudentModule(student, DistillationLoss(), partial(torch.optim.SGD, lr=0.1))
        trainer(tmp_path / str(devices), devices).fit(module, datamodule=data)
    one = torch.load(tmp_path / "1" / "grads_0.pt", weights_only=True)
    for rank in (0, 1):
        both = torch.load(tmp_path / "2" / f"grads_{rank}.pt", weights_only=True)
        assert both.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(both[name], value)


class Watched(GeneratorModule):
    """Writes the noise of the first step."""

    folder: Path

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        path = self.folder / f"z_{self.global_rank}.pt"
        if not path.exists():
            torch.save(batch[0].clone(), path)
        return super().step(batch)


@pytest.mark.ddp
def test_ranks_draw_different_noise_and_share_the_batch(tmp_path: Path) -> None:
    objective = GeneratorObjective(
        {"classifier": ClassifierLoss(), "diversity": DiversityLoss()}, {"classifier": 1.0, "diversity": 1.0}
    )
    module = Watched(
        DenseGenerator(6, 3),
        Decoder((6,)),
        network(),
        objective,
        partial(torch.optim.Adam, lr=0.01),
        batch_size=32,
        steps_per_epoch=3,
    )
    module.folder = tmp_path / "run"
    trainer(module.folder, 2).fit(module)
    first, second = (torch.load(module.folder / f"z_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.shape == second.shape == (16, 10)
    assert not torch.equal(first, second)
    grads = [torch.load(module.folder / f"grads_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][name])


class Figures(Callback):
    """Writes what validation logs, on rank 0."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 0:
            torch.save(dict(trainer.callback_metrics), self.file)


class Rows(LightningDataModule):
    """Validation batches of 16 rows."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.tensors = tensors

    def val_dataloader(self) -> TensorLoader:
        return TensorLoader(*self.tensors, batch_size=16, trainer=self.trainer)


@pytest.mark.ddp
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_validation_is_of_every_row_once(tmp_path: Path, who: str) -> None:
    count = {"student": 65, "teacher": 1}[who]  # uneven shares of 33 and 32 rows; fewer rows than processes
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(count, dtype=torch.long)  # the first row is the one that would come twice
    labels[0] = 1
    make = {
        "student": lambda: StudentModule(network(), DistillationLoss(), partial(torch.optim.SGD, lr=0.1)),
        "teacher": lambda: TeacherModule(network(), partial(torch.optim.SGD, lr=0.1)),
    }[who]
    for devices in (1, 2):
        mine = trainer(tmp_path / str(devices), devices)
        mine.callbacks.append(Figures(tmp_path / str(devices) / "figures.pt"))  # type: ignore[attr-defined]
        mine.validate(make(), datamodule=Rows(rows, labels), verbose=False)
    one, two = (torch.load(tmp_path / str(devices) / "figures.pt", weights_only=True) for devices in (1, 2))
    assert one.keys() == two.keys() and one
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


COUNT = 5


class Counting(nn.Module):
    """A classifier that counts the samples of its forward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.network(x)
        return logits


def train_share(share: Sequence[int] | None, count: int = COUNT, parallel: Parallel = "sequential") -> list[Any]:
    """Return the weights and metrics of generators and decoders, of which this process trains a share."""
    settings = GeneratorTrainingSettings(
        count=count, noise_dim=NOISE, epochs=2, steps_per_epoch=2, batch_size=8, parallel=parallel, seed=3
    )
    task = make_task(settings.model_copy(update={"teacher_dropout": parallel == "sequential"}))
    progress = StageProgress("generators", make_console(quiet=True))
    fitted = fit_generators(task, QuietFit(torch.device("cpu")), progress, lambda *_: [], share)
    states = [network.state_dict() for network in (*fitted.networks, *fitted.decoders)]
    return [states, list(fitted.metrics)]


def draw(share: bool) -> tuple[dict[str, Any], int]:
    """Return samples with labels of several sources, and the samples that the teacher has labelled here."""
    torch.manual_seed(0)
    generators = [DenseGenerator(FEATURES, CLASSES, NOISE, blocks=1, width=8) for _ in range(3)]
    source = GeneratorSource(generators, chunk=16, noise_std=0.1)
    teacher = make_classifier()
    sources: dict[str, SyntheticSource] = {
        "generators": source,
        "selected": SelectedSource(source, make_classifier(), oversampling=2),
        "matched": MatchedSource(source, nn.Sequential(nn.BatchNorm1d(FEATURES), make_classifier()), 0.5),
        "mixture": MixtureSource({"a": (source, 0.5), "b": (NoiseSource("normal", (FEATURES,)), 0.5)}),
    }
    drawn: dict[str, Any] = {}
    for name, one in sources.items():
        data = SyntheticDataModule(one, teacher, samples=192, validation_samples=48, seed=1, share=share)
        data.setup()
        drawn[name] = data.splits
    images = SyntheticDataModule(Leaves((3, 16, 16)), nn.Flatten(), samples=4200, seed=1, share=share)
    images.teacher.network = counting = Counting(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()).eval())
    torch.manual_seed(1)
    nn.init.normal_(counting.network[0].weight)  # type: ignore[index, arg-type]
    images.setup()
    drawn["images"] = images.splits
    return drawn, counting.seen


def use_store(folder: Path, rank: int) -> None:
    """Rank 0 builds a stage for all, and all refuse what may not be built."""

    def build(place: Path, _: object) -> dict[str, int]:
        (place / "file").touch()
        return {"rank": rank}

    stage = Store(folder, notify=lambda _: None).get("built", {}, [], build)
    assert stage.metrics == {"rank": 0}
    reading = Store(folder, resume="require", notify=lambda _: None)
    for name in ("missing", "missing too"):
        with pytest.raises(StoreError):
            reading.get(name, {}, [], build)
    assert reading.get("built", {}, [], build) == stage


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed._PATIENCE = timedelta(minutes=1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    distributed.rank_zero_only.rank = rank  # as Lightning does
    distributed.meet()
    with distributed.apart():
        trained = train_share(distributed.shares(COUNT, world)[rank])
        lonely = train_share(distributed.shares(1, world)[rank], 1)
        stacked = train_share(distributed.shares(4, world)[rank], 4, "vmap")
    with distributed.in_turn():
        visited = sorted(path.name for path in folder.glob(f"{world}-*"))
        (folder / f"{world}-{rank}").touch()
    assert visited == [f"{world}-{before}" for before in range(rank)]
    assert distributed.rank() == rank
    use_store(folder / f"store-{world}", rank)
    shares: list[float] = []
    with distributed.work_shared(True), listen_to_progress(shares.append):
        match_statistics(torch.zeros(1000, FEATURES), nn.Sequential(nn.BatchNorm1d(FEATURES), make_classifier()))
    assert len(shares) == len(distributed.shares(5, world)[rank]) and shares[-1] == 1
    torch.save([[trained, lonely], stacked, *draw(share=True)], folder / f"{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


def equal(one: Any, two: Any) -> bool:
    """Return True if two structures have the same values, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, two) and one.stride() == two.stride()
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


@pytest.mark.ddp
def test_shares_of_generators_and_of_samples_are_those_of_one_process(tmp_path: Path) -> None:
    trained, (drawn, seen) = [train_share(None), train_share(None, 1)], draw(share=False)
    stacked = train_share(None, 4, "vmap")
    for world in (2, 3):
        start_processes(work, (world, tmp_path), world, start_method="fork")
        found = [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        assert all(equal(theirs, trained) for theirs, *_ in found)
        for _, theirs, *_ in found:  # sums have another order in batches of other numbers of networks
            torch.testing.assert_close(theirs[1], stacked[1], rtol=1e-3, atol=1e-4)
        for name, splits in drawn.items():
            assert all(equal(theirs[name], splits) for *_, theirs, _ in found), name
        labelled = [theirs for *_, theirs in found]
        assert sum(labelled) == seen == 4200 and max(labelled) < seen, "each sample is labelled in one process"


def test_shares_are_even() -> None:
    assert [len(share) for share in distributed.shares(5, 4)] == [2, 1, 1, 1]
    assert [list(share) for share in distributed.shares(2, 3)] == [[0], [1], []]
