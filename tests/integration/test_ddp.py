"""Two processes do what one would."""

from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.losses import ClassifierLoss, DistillationLoss, DiversityLoss, GeneratorObjective
from kegnet_pl.networks import Decoder, DenseGenerator
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import GeneratorModule, StudentModule, TeacherModule


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
@pytest.mark.parametrize("count", [65, 1])  # uneven shares of 33 and 32 rows; fewer rows than processes
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_validation_is_of_every_row_once(tmp_path: Path, who: str, count: int) -> None:
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
