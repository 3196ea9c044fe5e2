"""Training a generator against a frozen teacher."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.losses import ClassifierLoss, GeneratedBatch, GeneratorLoss, GeneratorObjective, StatisticsLoss
from kegnet_pl.networks import StackedModule
from kegnet_pl.runtime.errors import DivergedError
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources import sample_labels_and_noise
from kegnet_pl.training import GeneratorModule
from kegnet_pl.training.base import TrainingModule
from tests.unit.training.tiny import (
    CLASSES,
    FEATURES,
    NOISE,
    QUIET,
    changed,
    fit_at_once,
    fit_in_two_sittings,
    make_checkpoint,
    make_classifier,
    make_generator_module,
    make_objective,
    make_trainer,
    snapshot,
)

pytestmark = QUIET


def _no_data() -> None:
    return None


def test_metrics_are_those_of_the_house(tmp_path: Path) -> None:
    _, trainer = fit_at_once(make_generator_module, _no_data, tmp_path, epochs=1)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(metrics) == {
        "train/loss", "train/loss_classifier", "train/loss_decoder", "train/loss_diversity", "train/accuracy",
        "train/grad_norm",
    }  # fmt: skip
    total = metrics["train/loss_classifier"] + 0.5 * metrics["train/loss_decoder"] + 2 * metrics["train/loss_diversity"]
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)
    assert 0 <= metrics["train/accuracy"] <= 1


def test_terms_of_weight_zero_are_not_logged(tmp_path: Path) -> None:
    make = functools.partial(make_generator_module, objective=make_objective(decoder=0, diversity=0))
    _, trainer = fit_at_once(make, _no_data, tmp_path, epochs=1)
    assert set(trainer.callback_metrics) == {"train/loss", "train/loss_classifier", "train/accuracy", "train/grad_norm"}


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_teacher_never_changes_and_the_others_do(tmp_path: Path, norm: Any) -> None:
    given = make_classifier()
    original = snapshot(given)
    module = make_generator_module(teacher=given, teacher_norm=norm)
    teacher, generator, decoder = snapshot(module.teacher), snapshot(module.generator), snapshot(module.decoder)
    module.train()
    make_trainer(2, tmp_path, [make_checkpoint(tmp_path)]).fit(module)
    module.train()
    assert changed(teacher, module.teacher) == set()
    assert changed(generator, module.generator) == set(generator)
    assert changed(decoder, module.decoder) == set(decoder)
    resumed = make_generator_module(init=1, teacher=given, teacher_norm=norm)
    make_trainer(3, tmp_path).fit(resumed, ckpt_path=str(tmp_path / "resume.ckpt"), weights_only=True)
    assert changed(teacher, resumed.teacher) == set()
    assert changed(original, given) == set(), "the caller's teacher was touched"
    assert given.training
    assert all(parameter.requires_grad for parameter in given.parameters())


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_teacher_keeps_evaluation_mode(norm: Any) -> None:
    module = make_generator_module(teacher_norm=norm).train()
    modes = {type(layer): layer.training for layer in module.teacher.network.modules()}
    assert modes[nn.Dropout] is modes[nn.Linear] is False
    assert modes[nn.BatchNorm1d] is (norm == "batch")
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    assert module.generator.training


def test_teacher_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    fit_at_once(make_generator_module, _no_data, tmp_path, epochs=1, callbacks=[make_checkpoint(tmp_path)])
    content = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    module = make_generator_module()
    owned = {f"generator.{key}" for key in module.generator.state_dict()}
    owned |= {f"decoder.{key}" for key in module.decoder.state_dict()}
    assert set(content["state_dict"]) == owned
    trained = [*module.generator.parameters(), *module.decoder.parameters()]
    assert len(content["optimizer_states"][0]["state"]) == len(trained)
    assert content["hyper_parameters"].keys() == {
        "batch_size",
        "steps_per_epoch",
        "teacher_norm",
        "teacher_dropout",
        "seed",
        "index",
    }


def test_a_state_of_another_teacher_is_not_taken_over() -> None:
    source, target = make_generator_module(init=1), make_generator_module(teacher=make_classifier(seed=5))
    teacher = snapshot(target.teacher)
    target.load_state_dict(source.state_dict())
    assert changed(teacher, target.teacher) == set()
    assert changed(snapshot(source.generator), target.generator) == set()


@pytest.mark.parametrize("part", ["generator", "decoder"])
@pytest.mark.parametrize("damage", ["missing", "unknown", "misspelt"])
def test_other_keys_are_checked(part: str, damage: str) -> None:
    module = make_generator_module()
    state = dict(module.state_dict())
    key = next(key for key in state if key.startswith(part))
    value = state[key]
    if damage != "unknown":
        del state[key]
    if damage != "missing":
        state[key.replace("layers", "layer")] = value
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        module.load_state_dict(state)


class _Traced(GeneratorModule):
    """Keeps the gradients of its only step."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_one_step_equals_one_written_by_hand(tmp_path: Path, norm: Any) -> None:
    teacher = make_classifier(dropout=0.0)
    module = make_generator_module(
        teacher=teacher, teacher_norm=norm, steps_per_epoch=1, seed=9, index=2,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip
    module.__class__ = _Traced
    generator, decoder = copy.deepcopy(module.generator).double(), copy.deepcopy(module.decoder).double()
    make_trainer(1, tmp_path).fit(module)

    z, y = sample_labels_and_noise(12, CLASSES, NOISE, stream(9, "noise", 2, 0, 0))
    z, y = z.double(), y.double()
    x = generator.train()(z, y)
    network = copy.deepcopy(teacher).double().train(norm == "batch")
    logits = network(x)
    classifier = -(y * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
    decoding = (decoder.train()(x) - z).square().mean()
    pairs = [(z[i] - z[j]).square().mean() * (x[i] - x[j]).abs().mean() for i in range(12) for j in range(12)]
    loss = classifier + 0.5 * decoding + 2 * torch.exp(-torch.stack(pairs).sum() / 144)
    loss.backward()

    expected = {f"generator.{name}": p for name, p in generator.named_parameters()}
    expected |= {f"decoder.{name}": p for name, p in decoder.named_parameters()}
    assert set(module.gradients) == set(expected)
    for name, parameter in expected.items():
        assert parameter.grad is not None
        torch.testing.assert_close(module.gradients[name].double(), parameter.grad, rtol=1e-3, atol=1e-5)
        stepped = (parameter - 0.1 * parameter.grad).detach()
        torch.testing.assert_close(dict(module.named_parameters())[name].double(), stepped, rtol=1e-3, atol=1e-5)


def test_unused_decoder_is_left_alone(tmp_path: Path) -> None:
    module = make_generator_module(objective=make_objective(decoder=0))
    before = snapshot(module.decoder)
    trainer = make_trainer(2, tmp_path)
    trainer.fit(module)
    assert changed(before, module.decoder) == set()
    assert not any(parameter.requires_grad for parameter in module.decoder.parameters())
    optimised = trainer.optimizers[0].param_groups[0]["params"]
    assert len(optimised) == len(list(module.generator.parameters()))


def test_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, _ = fit_at_once(make_generator_module, _no_data, tmp_path, epochs=2)
    torch.rand(17)
    again, _ = fit_at_once(make_generator_module, _no_data, tmp_path, epochs=2)
    assert changed(snapshot(first), again) == set()


@pytest.mark.parametrize("other", [{"seed": 1}, {"index": 1}])
def test_seed_and_index_matter(tmp_path: Path, other: dict[str, int]) -> None:
    first, _ = fit_at_once(make_generator_module, _no_data, tmp_path, epochs=1)
    second, _ = fit_at_once(functools.partial(make_generator_module, **other), _no_data, tmp_path, epochs=1)
    assert changed(snapshot(first), second)


def test_every_step_and_epoch_draws_anew(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(GeneratorLoss):
        def forward(self, batch: GeneratedBatch) -> Tensor:
            seen.append(batch.z)
            return batch.x.mean()

    module = make_generator_module(objective=GeneratorObjective({"watch": Watch()}, {"watch": 1.0}))
    make_trainer(3, tmp_path).fit(module)
    assert len(seen) == 6
    assert all(z.shape == (12, NOISE) for z in seen)
    assert len(torch.cat(seen).unique(dim=0)) == 72


def test_resumed_equals_unbroken(tmp_path: Path) -> None:
    whole, unbroken = fit_at_once(make_generator_module, _no_data, tmp_path / "whole")
    parts, resumed = fit_in_two_sittings(make_generator_module, _no_data, tmp_path / "parts")
    assert resumed.current_epoch == unbroken.current_epoch == 4
    assert resumed.global_step == unbroken.global_step == 8
    assert changed(snapshot(whole), parts) == set()
    for name, value in unbroken.callback_metrics.items():
        assert torch.equal(value, resumed.callback_metrics[name]), name


def test_losses_see_float32_under_autocast(tmp_path: Path) -> None:
    seen: list[tuple[set[torch.dtype], bool]] = []

    class Watch(GeneratorLoss):
        uses_decoder = True

        def forward(self, batch: GeneratedBatch) -> Tensor:
            assert batch.z_decoded is not None
            tensors = (batch.z, batch.y, batch.x, batch.logits, batch.z_decoded)
            seen.append(({tensor.dtype for tensor in tensors}, torch.is_autocast_enabled("cpu")))
            return batch.logits.square().mean() + (batch.z - batch.z_decoded).square().mean()

    module = make_generator_module(objective=GeneratorObjective({"watch": Watch()}, {"watch": 1.0}))
    halves: list[torch.dtype] = []
    module.teacher.register_forward_hook(lambda layer, inputs, output: halves.append(output.dtype))
    make_trainer(1, tmp_path, precision="bf16-mixed").fit(module)
    assert set(halves) == {torch.bfloat16}, "autocast was not on"
    assert seen == [({torch.float32}, False)] * 2


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_of_the_teacher(dropout: bool, tmp_path: Path) -> None:
    make = functools.partial(make_generator_module, teacher_dropout=dropout)
    whole, _ = fit_at_once(make, _no_data, tmp_path / "whole")
    parts, _ = fit_in_two_sittings(make, _no_data, tmp_path / "parts")
    assert changed(snapshot(whole), parts) == set(), "what is dropped depends on the epoch, not on what ran before"
    without, _ = fit_at_once(make_generator_module, _no_data, tmp_path / "without")
    assert bool(changed(snapshot(whole.generator), without.generator)) is dropout


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_statistics_are_those_that_enter_the_teachers_batch_norm(norm: Any, tmp_path: Path) -> None:
    seen: list[GeneratedBatch] = []

    class Watch(GeneratorLoss):
        uses_statistics = True

        def forward(self, batch: GeneratedBatch) -> Tensor:
            seen.append(batch)
            return StatisticsLoss()(batch)

    teacher = make_classifier()
    objective = GeneratorObjective({"watch": Watch()}, {"watch": 1.0})
    module = make_generator_module(teacher=teacher, teacher_norm=norm, objective=objective)
    make_trainer(1, tmp_path).fit(module)
    linear, layer = teacher[0], teacher[1]  # type: ignore[index]
    for batch in seen:
        (statistics,) = batch.statistics
        entering = linear(batch.x)
        torch.testing.assert_close(statistics.mean, entering.mean(dim=0))
        torch.testing.assert_close(statistics.variance, entering.var(dim=0, correction=0) + layer.eps)
        torch.testing.assert_close(statistics.stored_mean, layer.running_mean)
        torch.testing.assert_close(statistics.stored_variance, layer.running_var + layer.eps)


def test_the_term_of_statistics_brings_them_to_the_stored_ones(tmp_path: Path) -> None:
    teacher = make_classifier()
    data = torch.randn(256, 1) + 0.3 * torch.randn(
        256, FEATURES
    )  # columns that go together, as those of a new generator do not
    teacher[1].momentum = 1.0  # type: ignore[index, union-attr]
    teacher((data - data.mean(dim=0)) / data.std(dim=0))

    def last(weight: float) -> float:
        seen: list[float] = []

        class Watch(StatisticsLoss):
            def forward(self, batch: GeneratedBatch) -> Tensor:
                loss = super().forward(batch)
                seen.append(loss.item())
                return loss

        terms = {"classifier": ClassifierLoss(), "statistics": Watch()}
        objective = GeneratorObjective(terms, {"classifier": 1.0, "statistics": weight})
        make_trainer(60, tmp_path).fit(make_generator_module(teacher=teacher, objective=objective))
        return seen[-1]

    assert last(1.0) < last(1e-9) / 3


def test_the_term_of_statistics_needs_batch_norm() -> None:
    teacher = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(ValueError, match=r"stored statistics.*generator\.objective\.statistics\.weight=0"):
        make_generator_module(teacher=teacher, objective=make_objective(statistics=1.0))
    make_generator_module(teacher=teacher, objective=make_objective(statistics=0.0))


@pytest.mark.parametrize("together", [False, True])
def test_a_fit_that_diverges_is_stopped(tmp_path: Path, together: bool) -> None:
    module = make_generator_module(optimizer=functools.partial(torch.optim.SGD, lr=1e30))
    if together:
        pair = [copy.deepcopy(module) for _ in range(2)]
        module = GeneratorModule(
            StackedModule([one.generator for one in pair]), StackedModule([one.decoder for one in pair]),
            make_classifier(), make_objective(), functools.partial(torch.optim.SGD, lr=1e30), batch_size=12,
            steps_per_epoch=2,
        )  # fmt: skip
    with pytest.raises(DivergedError, match=r"diverged in step 2 of epoch 1\. Lower the learning rate .*generator"):
        make_trainer(3, tmp_path).fit(module)


class _Poisoned(GeneratorLoss):
    """A term that is infinite at its third call, but whose gradient is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, batch: GeneratedBatch) -> torch.Tensor:
        self.calls += 1
        value = batch.x.mean()
        return value + (math.inf if self.calls == 3 else 0.0)


def test_the_term_and_the_step_of_an_infinite_loss_are_named(tmp_path: Path) -> None:
    objective = GeneratorObjective(
        {"classifier": ClassifierLoss(), "mine": _Poisoned()}, {"classifier": 1.0, "mine": 1.0}
    )
    module = make_generator_module(objective=objective, optimizer=functools.partial(torch.optim.SGD, lr=0.01))
    module.steps_per_epoch = 4
    with pytest.raises(DivergedError, match=r"but loss_mine, loss are NaN or infinite: .* in step 3 of epoch 1\."):
        make_trainer(1, tmp_path).fit(module)
    assert all(bool(value.isfinite().all()) for value in module.trained_parameters())


def test_generators_that_train_one_by_one_drop_other_units() -> None:
    """Of one seed and epoch, but each with an index of its own."""
    masks = []
    for index in range(2):
        module = make_generator_module(index=index, teacher_dropout=True)
        module.trainer = make_trainer(1, Path())
        TrainingModule.on_train_epoch_start(module)
        masks.append(torch.rand(8))
    assert not torch.equal(*masks)
