"""Training a student on the teacher's answers."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.api.evaluation import measure_accuracy
from kegnet_pl.data import Split, SyntheticDataModule
from kegnet_pl.data.loading import TensorLoader
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.runtime.errors import DivergedError
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import FeatureDistillation, StudentModule
from tests.unit.training.tiny import (
    CLASSES,
    FEATURES,
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


def _student(init: int = 0, seed: int = 0, temperature: float = 1.0, optimizer: Any = adam) -> StudentModule:
    return StudentModule(make_classifier(seed=100 + init), DistillationLoss(temperature), optimizer, seed=seed)


def _data(teacher: nn.Module | None = None, **options: Any) -> SyntheticDataModule:
    source = NoiseSource("normal", (FEATURES,))
    return SyntheticDataModule(
        source, teacher or make_classifier(), **({"samples": 40, "validation_samples": 20, "batch_size": 8} | options)
    )


def test_metrics_of_a_fit_with_synthetic_validation(tmp_path: Path) -> None:
    _, trainer = fit_at_once(_student, _data, tmp_path, epochs=1)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(metrics) == {"train/loss", "train/agreement", "train/grad_norm", "val/loss", "val/accuracy"}
    assert 0 <= metrics["train/agreement"] <= 1
    assert 0 <= metrics["val/accuracy"] <= 1


def test_metrics_of_a_fit_without_validation(tmp_path: Path) -> None:
    make = functools.partial(_data, validation_samples=0)
    _, trainer = fit_at_once(_student, make, tmp_path, epochs=1)
    assert set(trainer.callback_metrics) == {"train/loss", "train/agreement", "train/grad_norm"}


def test_validation_measures_agreement_with_the_teacher(tmp_path: Path) -> None:
    module, data = _student(), _data(batch_size=8)  # 20 samples: the last batch is smaller
    metrics = make_trainer(1, tmp_path).validate(module, data, verbose=False)[0]
    x, logits = data.splits["val"]
    answer = copy.deepcopy(module.network).eval()(x)
    assert set(metrics) == {"val/loss", "val/accuracy"}
    assert metrics["val/accuracy"] == pytest.approx(float((answer.argmax(1) == logits.argmax(1)).float().mean()))
    expected = functional.kl_div(
        answer.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True
    )  # fmt: skip
    assert metrics["val/loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_real_validation_measures_true_classes(tmp_path: Path) -> None:
    real = Split(torch.randn(20, FEATURES), torch.arange(20) % CLASSES)
    module, data = _student(), _data(real_validation=real)
    metrics = make_trainer(1, tmp_path).validate(module, data, verbose=False)[0]
    assert metrics == {"val/accuracy": pytest.approx(measure_accuracy(module.network, real))}


def test_student_changes_and_teacher_does_not(tmp_path: Path) -> None:
    given = make_classifier()
    original, data, module = snapshot(given), _data(given), _student()
    teacher, student = snapshot(data.teacher), snapshot(module.network)
    trainer = make_trainer(2, tmp_path, [make_checkpoint(tmp_path)])
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    module.train()
    data.teacher.train()
    assert changed(student, module.network) == set(student)
    assert changed(teacher, data.teacher) == set()
    resumed = _student(init=1)
    make_trainer(3, tmp_path).fit(resumed, data, ckpt_path=str(tmp_path / "resume.ckpt"), weights_only=True)
    assert changed(teacher, data.teacher) == set()
    assert changed(original, given) == set()


def test_checkpoint_holds_the_student_alone(tmp_path: Path) -> None:
    module, _ = fit_at_once(_student, _data, tmp_path, epochs=1, callbacks=[make_checkpoint(tmp_path)])
    content = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert set(content["state_dict"]) == {f"network.{key}" for key in module.network.state_dict()}
    assert content["hyper_parameters"] == {"seed": 0, "norm": "batch", "dropout": True}


def test_validation_changes_nothing_in_the_student(tmp_path: Path) -> None:
    module, data = _student(), _data()
    before = snapshot(module)
    make_trainer(1, tmp_path).validate(module, data, verbose=False)
    assert changed(before, module) == set()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_step_equals_one_written_by_hand(tmp_path: Path, temperature: float) -> None:
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    module = _student(temperature=temperature, optimizer=sgd)
    module.network[2] = nn.Identity()  # dropout has a test of its own
    network = copy.deepcopy(module.network).double().train()
    data = _data(samples=8, batch_size=8, shuffle=False, validation_samples=0)
    make_trainer(1, tmp_path).fit(module, data)
    x, logits = data.splits["train"]
    p = (logits.double() / temperature).softmax(dim=1)
    q = (network(x.double()) / temperature).softmax(dim=1)
    loss = temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        stepped = (parameter - 0.1 * parameter.grad).detach()
        found = dict(module.network.named_parameters())[name].detach().double()
        torch.testing.assert_close(found, stepped, rtol=1e-4, atol=1e-6)


def test_student_trains_in_training_mode(tmp_path: Path) -> None:
    module = _student()
    modes: list[bool] = []
    module.network.register_forward_hook(lambda layer, inputs, output: modes.append(layer.training))
    make_trainer(1, tmp_path).fit(module, _data())
    assert modes == [True] * 5 + [False] * 3


def test_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, _ = fit_at_once(_student, _data, tmp_path, epochs=2)
    again, _ = fit_at_once(_student, _data, tmp_path, epochs=2)
    assert changed(snapshot(first), again) == set()


def test_seed_decides_what_is_dropped(tmp_path: Path) -> None:
    first, _ = fit_at_once(_student, _data, tmp_path, epochs=1)
    other, _ = fit_at_once(functools.partial(_student, seed=1), _data, tmp_path, epochs=1)
    assert changed(snapshot(first), other)


def test_every_epoch_drops_other_units(tmp_path: Path) -> None:
    module, masks = _student(), []
    module.network[2].register_forward_hook(lambda layer, inputs, output: masks.append(output == 0))
    data = _data(samples=8, batch_size=8, shuffle=False, validation_samples=0)
    make_trainer(2, tmp_path).fit(module, data)
    assert len(masks) == 2
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(("shuffle", "validation"), [(True, 20), (False, 0)])
def test_resumed_equals_unbroken(tmp_path: Path, shuffle: bool, validation: int) -> None:
    data = functools.partial(_data, shuffle=shuffle, validation_samples=validation)
    whole, unbroken = fit_at_once(_student, data, tmp_path / "whole")
    parts, resumed = fit_in_two_sittings(_student, data, tmp_path / "parts")
    assert resumed.current_epoch == unbroken.current_epoch == 4
    assert changed(snapshot(whole), parts) == set()
    for name, value in unbroken.callback_metrics.items():
        assert torch.equal(value, resumed.callback_metrics[name]), name


def test_losses_see_float32_under_autocast(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Watch(DistillationLoss):
        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            loss = super().forward(student_logits, teacher_logits)
            seen.append((student_logits.detach(), teacher_logits, loss.detach()))
            return loss

    module = StudentModule(make_classifier(100), Watch(temperature=3.0), adam)
    make_trainer(1, tmp_path, precision="bf16-mixed").fit(module, _data(validation_samples=0))
    assert len(seen) == 5
    for student, teacher, loss in seen:
        assert student.dtype == torch.bfloat16, "autocast was not on"
        assert loss.dtype == torch.float32
        p, q = (teacher.double() / 3).softmax(dim=1), (student.double() / 3).softmax(dim=1)
        exact = 9 * (p * (p.log() - q.log())).sum(dim=1).mean()
        # bfloat16 would be off by a hundredth.
        assert float(loss) == pytest.approx(float(exact), rel=1e-4)


def test_trainer_and_evaluation_agree(tmp_path: Path) -> None:
    module, _ = fit_at_once(_student, _data, tmp_path, epochs=1)
    test = Split(torch.randn(30, FEATURES), torch.arange(30) % CLASSES)
    loader = TensorLoader(test.x, test.y, batch_size=7)
    found = make_trainer(1, tmp_path).test(module, loader, verbose=False)[0]
    assert set(found) == {"test/accuracy"}
    accuracy = measure_accuracy(module.network, test, batch_size=4)
    assert found["test/accuracy"] == pytest.approx(accuracy)
    assert 0 < accuracy < 1


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_statistics_of_batch_norm(norm: Any, tmp_path: Path) -> None:
    def make(init: int) -> StudentModule:
        return StudentModule(make_classifier(seed=100 + init), DistillationLoss(), adam, norm=norm)

    before = snapshot(make(0))
    module, _ = fit_at_once(make, _data, tmp_path, epochs=2)
    moved = changed(before, module)
    assert ("network.1.running_mean" in moved) is (norm == "batch")
    assert {"network.0.weight", "network.1.weight", "network.1.bias"} <= moved, "scale and shift are trained"
    module.train()
    assert module.network[2].training, "dropout is not batch norm"
    assert module.network[1].training is (norm == "batch")


def test_frozen_statistics_are_what_a_batch_is_normalised_by() -> None:
    module = StudentModule(make_classifier(dropout=0.0), DistillationLoss(), adam, norm="frozen").train().double()
    x = torch.randn(8, FEATURES, dtype=torch.float64) * 5
    # To the bit on some processors only: how a product is summed up may depend on the number of rows.
    torch.testing.assert_close(module(x)[:3], module(x[:3]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_of_the_student(dropout: bool) -> None:
    module = StudentModule(make_classifier(dropout=0.5), DistillationLoss(), adam, dropout=dropout).train()
    assert module.network[1].training, "batch norm is not dropout"
    x = torch.randn(8, FEATURES)
    assert torch.equal(module(x), module(x)) is not dropout
    module.eval()
    assert torch.equal(module(x), module(x))


def test_layers_learn_from_the_layers_of_the_teacher(tmp_path: Path) -> None:
    teacher = make_classifier().eval()
    before = snapshot(teacher)

    def make(init: int, weight: float = 100.0) -> StudentModule:
        feature_distillation = FeatureDistillation(teacher, ["1"], weight)
        return StudentModule(
            make_classifier(seed=100 + init, dropout=0.0),
            DistillationLoss(),
            adam,
            feature_distillation=feature_distillation,
        )

    module, trainer = fit_at_once(make, functools.partial(_data, teacher), tmp_path / "long", epochs=30)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["train/loss"] > 100 * metrics["train/loss_features"] > 0
    without, first = fit_at_once(
        functools.partial(make, weight=1e-9), functools.partial(_data, teacher), tmp_path / "w", 30
    )
    assert metrics["train/loss_features"] < 0.3 * float(first.callback_metrics["train/loss_features"])
    assert changed(before, teacher) == set()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert set(module.state_dict()) == set(_student().state_dict()), "the teacher is not stored"
    assert module.teacher_forwards == without.teacher_forwards == 30 * 40


def test_hints_of_a_resumed_student(tmp_path: Path) -> None:
    def make(init: int) -> StudentModule:
        feature_distillation = FeatureDistillation(make_classifier().eval(), ["1"], 1.0)
        return StudentModule(
            make_classifier(seed=100 + init), DistillationLoss(), adam, feature_distillation=feature_distillation
        )

    whole, _ = fit_at_once(make, _data, tmp_path / "whole")
    parts, _ = fit_in_two_sittings(make, _data, tmp_path / "parts")
    assert changed(snapshot(whole), parts) == set()


def test_hints_of_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="a network with layers conv1"):
        StudentModule(
            make_classifier(),
            DistillationLoss(),
            adam,
            feature_distillation=FeatureDistillation(make_classifier(), ["conv1"], 1.0),
        )


def test_unknown_statistics() -> None:
    with pytest.raises(ValueError, match="Expected `norm` to be one of"):
        StudentModule(make_classifier(), DistillationLoss(), adam, norm="mine")  # type: ignore[arg-type]


def _cosine(init: int) -> StudentModule:
    return StudentModule(make_classifier(seed=100 + init), DistillationLoss(), adam, lr_scheduler="cosine")


def test_learning_rate_falls_like_a_cosine(tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit_at_once(_cosine, _data, tmp_path, epochs=4, callbacks=[Watch()])
    assert rates == pytest.approx([1e-2 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)])


def test_resumed_learning_rate_goes_on(tmp_path: Path) -> None:
    whole, _ = fit_at_once(_cosine, _data, tmp_path / "whole")
    parts, _ = fit_in_two_sittings(_cosine, _data, tmp_path / "parts")
    assert changed(snapshot(whole), parts) == set()


def test_resumed_fresh_samples_go_on(tmp_path: Path) -> None:
    data = functools.partial(_data, resample_each_epoch=True, shuffle=False)
    whole, _ = fit_at_once(_student, data, tmp_path / "whole")
    parts, _ = fit_in_two_sittings(_student, data, tmp_path / "parts")
    assert changed(snapshot(whole), parts) == set()
    same, _ = fit_at_once(_student, functools.partial(_data, shuffle=False), tmp_path / "same")
    assert changed(snapshot(whole), same) != set()


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="Expected `lr_scheduler` to be one of"):
        StudentModule(make_classifier(), DistillationLoss(), adam, lr_scheduler="steep")  # type: ignore[arg-type]


def test_a_student_that_diverges_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"loss is NaN or infinite: training diverged in step \d of epoch 1"):
        make_trainer(2, tmp_path).fit(
            _student(optimizer=functools.partial(torch.optim.SGD, lr=1e30)), datamodule=_data()
        )


def test_nothing_watches_a_student_that_is_trained(tmp_path: Path) -> None:
    teacher, student = make_classifier(), make_classifier(seed=5)
    for _ in range(2):
        feature_distillation = FeatureDistillation(teacher.eval(), ["1"], 1.0)
        module = StudentModule(student, DistillationLoss(), adam, feature_distillation=feature_distillation)
        make_trainer(1, tmp_path).fit(module, datamodule=_data(teacher))
    for network in (teacher, student):
        assert not any(layer._forward_hooks for layer in network.modules())


def test_layers_that_were_replaced_when_the_fit_began_are_watched(tmp_path: Path) -> None:
    """As ``sync_batchnorm`` does."""

    class Replace(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.network[1] = copy.deepcopy(pl_module.network[1])
            pl_module.network[1]._forward_hooks.clear()

    module = StudentModule(
        make_classifier(5),
        DistillationLoss(),
        adam,
        feature_distillation=FeatureDistillation(make_classifier(), ["1"], 1.0),
    )
    trainer = make_trainer(1, tmp_path, [Replace()])
    trainer.fit(module, datamodule=_data())
    assert trainer.callback_metrics["train/loss_features"] > 0


def test_statistics_that_overflow_stop_the_fit(tmp_path: Path) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm1d(FEATURES), make_classifier()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: Tensor = self.inner(self.norm(x * 1e30))
            return logits

    module = StudentModule(Normed(), DistillationLoss(), adam)
    with pytest.raises(DivergedError, match=r"batch-norm statistics are NaN or infinite|is NaN or infinite"):
        make_trainer(1, tmp_path).fit(module, datamodule=_data())
