"""Common behaviour of all modules: curves, clipping, optimisers, the norm of gradients."""

import csv
import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import StudentModule, TeacherModule, base
from kegnet_pl.training.fit import run_fit
from kegnet_pl.training.optimizers import fused, gradient_norm
from tests.unit.training.tiny import (
    FEATURES,
    QUIET,
    StopAt,
    StoppedError,
    adam,
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


def test_curves_count_optimiser_steps(tmp_path: Path) -> None:
    """As Lightning counts them, from 0."""
    trainer = make_trainer(2, tmp_path)
    trainer.loggers = [CSVLogger(tmp_path, name="curves")]
    trainer.fit(_student(), _data())
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"6", "13"}
    assert {row["epoch"] for row in rows} == {"0", "1"}
    for name in ("train/loss", "train/agreement", "val/loss", "val/accuracy"):
        assert [row["step"] for row in rows if row[name]] == ["6", "13"], name
    last = {name: float(row[name]) for row in rows[-2:] for name in row if name.startswith("train/") and row[name]}
    assert set(last) == {"train/loss", "train/agreement", "train/grad_norm"}
    for name, value in last.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_the_trainer_says(tmp_path: Path, algorithm: str) -> None:
    module = make_generator_module(optimizer=functools.partial(torch.optim.SGD, lr=1.0), steps_per_epoch=1)
    before = snapshot(module.generator)
    trainer = make_trainer(1, tmp_path, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    trainer.fit(module)
    parameters = [*module.generator.named_parameters()]
    moved = torch.cat([(value.detach() - before[name]).flatten() for name, value in parameters])
    if algorithm == "value":
        assert moved.abs().max() == pytest.approx(1e-3, rel=1e-3)
    else:  # over generator and decoder together
        assert 1e-4 < moved.norm() < 1e-3 * 1.001


def test_optimisers_are_fused_where_torch_can_and_the_user_said_nothing() -> None:
    parameters = [nn.Parameter(torch.ones(2))]

    def made(factory: Any, precision: str = "32-true") -> Any:
        return fused(factory, precision, parameters)(parameters).defaults.get("fused")

    assert made(functools.partial(torch.optim.Adam, lr=0.1)) is True
    assert made(functools.partial(torch.optim.SGD, lr=0.1)) is True
    assert made(functools.partial(torch.optim.Adam, lr=0.1, fused=False)) is False
    assert made(functools.partial(torch.optim.Adam, lr=0.1, foreach=True)) is None
    assert made(functools.partial(torch.optim.Adam, lr=0.1), "16-mixed") is None
    assert made(functools.partial(torch.optim.RMSprop, lr=0.1)) is None
    assert made(lambda given: torch.optim.Adam(given)) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["student", "generator"])
def test_compiled_training_is_the_same_training(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced and differentiated, but not translated to C++, which takes half a minute and is torch's own matter.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
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
        trainer.fit(module, _data())
        norms[clip] = float(trainer.callback_metrics["train/grad_norm"])
    assert norms[None] == pytest.approx(norms[1e-3], rel=1e-6), "of the first of seven steps"
    assert norms[None] > 1e-2


def test_gradient_norm_is_of_every_tenth_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    module = make_generator_module(steps_per_epoch=21)

    def watch(gradients: Any, networks: int = 1) -> torch.Tensor:
        taken.append(module.global_step)
        return gradient_norm(gradients, networks)

    monkeypatch.setattr(base, "gradient_norm", watch)
    make_trainer(2, tmp_path).fit(module)
    assert taken == [0, 10, 20, 21, 31, 41]


def test_metrics_are_means_over_samples(tmp_path: Path) -> None:
    """A smaller last batch counts by its size."""
    x, y = torch.randn(11, FEATURES), torch.arange(11) % 3
    sgd = functools.partial(torch.optim.SGD, lr=1e-30)  # the weights stay
    module = TeacherModule(make_classifier(dropout=0.0), sgd)
    module.network[1].eval()  # type: ignore[index]
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    trainer = make_trainer(1, tmp_path)
    trainer.fit(module, loader)
    expected = nn.functional.cross_entropy(module.network.eval()(x), y)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_an_interrupted_epoch_leaves_nothing_in_the_next(tmp_path: Path) -> None:
    module, whole = _student(), _student()
    with pytest.raises(StoppedError):
        make_trainer(1, tmp_path, [StopAt(0)]).fit(module, _data())
    module.load_state_dict(whole.state_dict())
    metrics = []
    for each in (module, whole):
        trainer = make_trainer(1, tmp_path)
        trainer.fit(each, _data())
        metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("gpu", [False, True])
def test_torch_does_not_load_nvml_at_every_step_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    seen: set[str] = set()

    class Watch(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.add(os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"])

    trainer = make_trainer(1, tmp_path, [Watch()])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    run_fit(trainer, make_generator_module())
    assert seen == {"1" if gpu else "0"}
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1", "as Lightning leaves it"
