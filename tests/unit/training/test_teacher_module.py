"""Training a teacher on real data."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kegnet_pl.api.evaluation import measure_accuracy
from kegnet_pl.training import TeacherModule
from kegnet_pl.training.base import accuracy
from tests.unit.data.files import Memory
from tests.unit.training.tiny import (
    QUIET,
    adam,
    changed,
    fit_at_once,
    fit_in_two_sittings,
    make_checkpoint,
    make_classifier,
    make_trainer,
    snapshot,
)

pytestmark = QUIET


def _teacher(init: int = 0, seed: int = 0, optimizer: Any = adam) -> TeacherModule:
    return TeacherModule(make_classifier(seed=init), optimizer, seed=seed)


def _images_teacher(init: int = 0) -> TeacherModule:
    torch.manual_seed(init)
    return TeacherModule(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(8, 3)), adam
    )


_data = functools.partial(Memory, batch_size=8)
_images = functools.partial(Memory, input_shape=(1, 4, 4), batch_size=8, flip=True)


def test_accuracy_is_a_share() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]])
    assert float(accuracy(logits, torch.tensor([0, 1, 1, 0]))) == 0.75


def test_metrics_of_a_fit(tmp_path: Path) -> None:
    _, trainer = fit_at_once(_teacher, _data, tmp_path, epochs=1)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(metrics) == {"train/loss", "train/accuracy", "train/grad_norm", "val/loss", "val/accuracy"}
    assert all(0 <= metrics[name] <= 1 for name in ("train/accuracy", "val/accuracy"))


def test_validation_and_test_measure_their_own_split(tmp_path: Path) -> None:
    module, data = _teacher(), _data()
    trainer = make_trainer(1, tmp_path)
    val = trainer.validate(module, data, verbose=False)[0]
    test = trainer.test(module, data, verbose=False)[0]
    assert set(val) == {"val/loss", "val/accuracy"}
    assert test == {"test/accuracy": pytest.approx(measure_accuracy(module.network, data.splits["test"]))}
    assert val["val/accuracy"] == pytest.approx(measure_accuracy(module.network, data.splits["val"]))
    split = data.splits["val"]
    loss = functional.cross_entropy(copy.deepcopy(module.network).eval()(split.x), split.y)
    assert val["val/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_one_step_equals_one_written_by_hand(tmp_path: Path) -> None:
    module = _teacher(optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    module.network[2] = nn.Identity()
    network = copy.deepcopy(module.network).double().train()
    data = Memory(batch_size=40)
    make_trainer(1, tmp_path).fit(module, data)
    x, y = data.splits["train"].x.double(), data.splits["train"].y
    loss = -network(x).log_softmax(dim=1)[torch.arange(40), y].mean()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        stepped = (parameter - 0.1 * parameter.grad).detach()
        found = dict(module.network.named_parameters())[name].detach().double()
        torch.testing.assert_close(found, stepped, rtol=1e-4, atol=1e-6)


def test_every_tensor_is_trained(tmp_path: Path) -> None:
    module = _teacher()
    before = snapshot(module.network)
    make_trainer(1, tmp_path).fit(module, _data())
    assert changed(before, module.network) == set(before)


def test_checkpoint_holds_the_network_alone(tmp_path: Path) -> None:
    module, _ = fit_at_once(_teacher, _data, tmp_path, epochs=1, callbacks=[make_checkpoint(tmp_path)])
    content = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert set(content["state_dict"]) == {f"network.{key}" for key in module.network.state_dict()}
    assert content["hyper_parameters"] == {"seed": 0}


def test_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, _ = fit_at_once(_teacher, _data, tmp_path, epochs=2)
    again, _ = fit_at_once(_teacher, _data, tmp_path, epochs=2)
    other, _ = fit_at_once(functools.partial(_teacher, seed=1), _data, tmp_path, epochs=2)
    assert changed(snapshot(first), again) == set()
    assert changed(snapshot(first), other)


@pytest.mark.parametrize(("make", "data"), [(_teacher, _data), (_images_teacher, _images)], ids=["table", "mirrored"])
def test_resumed_equals_unbroken(tmp_path: Path, make: Any, data: Any) -> None:
    whole, unbroken = fit_at_once(make, data, tmp_path / "whole")
    parts, resumed = fit_in_two_sittings(make, data, tmp_path / "parts")
    assert resumed.current_epoch == unbroken.current_epoch == 4
    assert changed(snapshot(whole), parts) == set()
    for name, value in unbroken.callback_metrics.items():
        assert torch.equal(value, resumed.callback_metrics[name]), name


def test_loss_is_float32_under_autocast(tmp_path: Path) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    class Watched(TeacherModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            seen.append((self(batch[0]).dtype, loss.dtype))
            return loss

    make_trainer(1, tmp_path, precision="bf16-mixed").fit(Watched(make_classifier(), adam), _data())
    assert seen == [(torch.bfloat16, torch.float32)] * 5
