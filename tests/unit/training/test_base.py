"""Several optimiser steps of one Lightning batch."""

import csv
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from kegnet_pl.data import SyntheticDataModule, synthetic
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import StudentModule
from kegnet_pl.training.optimizers import fused, gradient_norm
from tests.unit.training.tiny import (
    FEATURES,
    QUIET,
    adam,
    changed,
    make_classifier,
    make_generator_module,
    make_trainer,
    snapshot,
)

pytestmark = QUIET


def _student() -> StudentModule:
    return StudentModule(make_classifier(seed=100), DistillationLoss(), adam)


def _data() -> SyntheticDataModule:
    return SyntheticDataModule(
        NoiseSource("normal", (FEATURES,)), make_classifier(), samples=56, validation_samples=16, batch_size=8
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_of_a_batch_are_the_steps_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    """Autocast keeps copies of weights; they must not outlive a step."""
    modules = []
    for steps in (1, 3, 10):
        monkeypatch.setattr(synthetic, "STEPS_PER_BATCH", steps)
        modules.append(_student())
        trainer = make_trainer(2, tmp_path, precision=precision)
        trainer.fit(modules[-1], _data())
        assert trainer.global_step == 14
    for other in modules[1:]:
        assert changed(snapshot(modules[0]), other) == set()


def test_curves_count_optimiser_steps(tmp_path: Path) -> None:
    trainer = make_trainer(2, tmp_path)
    trainer.loggers = [CSVLogger(tmp_path, name="curves")]
    trainer.fit(_student(), _data())
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"7", "14"}
    assert {row["epoch"] for row in rows} == {"0", "1"}
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert [row["step"] for row in rows if row[name]] == ["7", "14"], name
    last = {name: float(row[name]) for row in rows[-2:] for name in row if name.startswith("train/") and row[name]}
    for name, value in last.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_the_trainer_says(tmp_path: Path, algorithm: str) -> None:
    module = make_generator_module(optimizer=functools.partial(torch.optim.SGD, lr=1.0), steps_per_epoch=1)
    before = snapshot(module.generator)
    trainer = make_trainer(1, tmp_path, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    module.take_clipping(trainer)
    trainer.fit(module)
    parameters = [*module.generator.named_parameters()]
    moved = torch.cat([(value.detach() - before[name]).flatten() for name, value in parameters])
    if algorithm == "value":
        assert moved.abs().max() == pytest.approx(1e-3, rel=1e-3)
    else:  # over generator and decoder together
        assert 1e-4 < moved.norm() < 1e-3 * 1.001


def test_clipping_scaled_gradients_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(1, tmp_path, gradient_clip_val=1.0)
    trainer.strategy.precision_plugin.precision = "16-mixed"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="got 16-mixed"):
        _student().take_clipping(trainer)


def test_optimisers_are_fused_where_torch_can_and_the_user_said_nothing() -> None:
    parameters = [nn.Parameter(torch.ones(2))]

    def made(factory: Any, precision: str = "32-true") -> Any:
        return fused(factory, precision)(parameters).defaults.get("fused")

    assert made(functools.partial(torch.optim.Adam, lr=0.1)) is True
    assert made(functools.partial(torch.optim.SGD, lr=0.1)) is True
    assert made(functools.partial(torch.optim.Adam, lr=0.1, fused=False)) is False
    assert made(functools.partial(torch.optim.Adam, lr=0.1, foreach=True)) is None
    assert made(functools.partial(torch.optim.Adam, lr=0.1), "16-mixed") is None
    assert made(functools.partial(torch.optim.RMSprop, lr=0.1)) is None
    assert made(lambda given: torch.optim.Adam(given)) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["student", "generator"])
def test_compiled_training_is_the_same_training(tmp_path: Path, kind: str) -> None:
    weights, sgd = [], functools.partial(torch.optim.SGD, lr=0.1)  # Adam makes steps of the rounding of a zero
    for compile_it in (False, True):
        if kind == "student":
            network = make_classifier(seed=100, dropout=0.0)
            module: Any = StudentModule(network, DistillationLoss(), sgd, compile=compile_it)
            make_trainer(1, tmp_path).fit(module, _data())
        else:
            module = make_generator_module(teacher=make_classifier(dropout=0.0), optimizer=sgd, compile=compile_it)
            make_trainer(1, tmp_path).fit(module)
        assert not any("_orig_mod" in name for name in module.state_dict())
        weights.append(module.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_gradient_norm_is_that_of_one_long_vector_for_each_network() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, 5), torch.randn(3, 7), torch.randn(3, 1)]
    rows = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
    assert torch.allclose(gradient_norm(gradients), rows.norm())
    assert torch.allclose(gradient_norm(gradients, networks=3), rows.norm(dim=1))
    halves = [gradient.bfloat16() * 300 for gradient in gradients]
    assert gradient_norm(halves).dtype == torch.float32
    assert gradient_norm([gradient.double() for gradient in gradients]).dtype == torch.float64


def test_gradient_norm_is_logged_as_it_is_before_clipping(tmp_path: Path) -> None:
    norms = {}
    for clip in (None, 1e-3):
        trainer = make_trainer(1, tmp_path, gradient_clip_val=clip)
        module = _student()
        module.take_clipping(trainer)
        trainer.fit(module, _data())
        norms[clip] = float(trainer.callback_metrics["train/grad_norm"])
    assert norms[None] == pytest.approx(norms[1e-3], rel=1e-6), "one batch of seven steps: the norm is of the first"
    assert norms[None] > 1e-2
