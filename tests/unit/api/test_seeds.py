"""Students of several seeds, trained as one batch of networks, equal students that are trained alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn

import kegnet_pl
from kegnet_pl.networks import MLP, StackedModule
from kegnet_pl.training import FeatureDistillation, StudentModule
from tests.unit.training.tiny import CLASSES, FEATURES, QUIET, Branching, adam

# Torch says so where it would loop over the students.
pytestmark = [*QUIET, pytest.mark.filterwarnings("error:There is a performance drop")]

SEEDS = [3, 1, 7]


class _Watch(Callback):
    """Keeps how many students each fit trained, and the metrics of each student."""

    def __init__(self) -> None:
        self.fits: list[int] = []
        self.means: list[dict[str, float]] = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StudentModule)
        self.fits.append(pl_module.networks)
        self.means += pl_module.means


class DictLogger(DummyLogger):
    """Keeps the last value of each metric."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.seen |= metrics


def _normed() -> nn.Sequential:
    # Batch norm makes a bias redundant: its gradient is rounding, which Adam turns into steps of full size.
    return nn.Sequential(nn.Linear(FEATURES, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def _image() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(27, CLASSES))


def _dropping() -> MLP:
    return MLP(FEATURES, CLASSES, 8, 2, dropout=0.5)


def _data(teacher: nn.Module, *shape: int) -> kegnet_pl.SyntheticDataset:
    source = kegnet_pl.NoiseSource("normal", shape or (FEATURES,))
    return kegnet_pl.SyntheticDataset(source, teacher, 72, device="cpu")


def _distill(student: nn.Module, data: kegnet_pl.SyntheticDataset, **options: Any) -> tuple[Any, _Watch]:
    watch = _Watch()
    options = {"epochs": 2, "batch_size": 16, "lr": 0.01, "device": "cpu", "progress": False} | options
    return kegnet_pl.distill(student, data, callbacks=[watch], **options), watch


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (_dropping, {"dropout": False, "lr_scheduler": "cosine"}),
        (_normed, {"resample_each_epoch": True}),
        (_normed, {"norm": "frozen", "precision": "bf16-mixed"}),
        (_normed, {"norm": "adapt", "shuffle": False, "resample_each_epoch": True}),
        (_image, {"temperature": 1.0}),
    ],
)
def test_together_equals_alone(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = (1, 8, 8) if make is _image else (FEATURES,)
    teacher, student = make(), make()
    for network in (teacher, student):
        network(torch.randn(64, *shape) + 1)  # statistics of batch norm
    data = _data(teacher.eval(), *shape)
    together, watch = _distill(student, data, seed=SEEDS, parallel="vmap", **options)
    assert watch.fits == [len(SEEDS)]
    x, tolerance = torch.randn(32, *shape), 0.02 if "precision" in options else 1e-4
    alone = [_distill(student, data, seed=seed, **options) for seed in SEEDS]
    for (one, seen), other, means in zip(alone, together, watch.means, strict=True):
        assert not other.training and type(other) is type(student)
        torch.testing.assert_close(other(x), one(x), rtol=tolerance, atol=tolerance)
        assert means == pytest.approx(seen.means[0], rel=5 * tolerance)
    assert (together[0](x) - together[1](x)).abs().max() > tolerance, "seeds have batches of their own"


@pytest.mark.parametrize("parallel", ["vmap", "sequential"])
def test_loggers_get_the_curve_of_each_seed(parallel: str) -> None:
    logger = DictLogger()
    _distill(_normed(), _data(_normed()), seed=[3, 1], parallel=parallel, epochs=1, logger=logger)
    assert {"seed_3/train/loss", "seed_1/train/loss"} <= set(logger.seen)
    assert logger.seen["seed_3/train/loss"] != logger.seen["seed_1/train/loss"]


def test_students_drop_other_units_and_keep_frozen_weights() -> None:
    student, data = _dropping(), _data(_dropping())
    student.layers[0].weight.requires_grad_(False)
    # Without shuffling, seeds differ in dropout alone.
    (first, second), _ = _distill(student, data, seed=[0, 1], parallel="vmap", shuffle=False)
    assert not torch.equal(first.layers[3].weight, second.layers[3].weight)
    assert torch.equal(first.layers[0].weight, student.layers[0].weight)


@pytest.mark.parametrize(
    ("student", "options", "fits"),
    [
        (_normed(), {}, [2]),
        (_normed(), {"parallel": "sequential"}, [1, 1]),
        (_normed(), {"feature_distillation": 1.0}, [1, 1]),
        (_normed(), {"lr": "auto"}, [1, 1]),
        (Branching(), {}, [1, 1]),
        (_image(), {}, [1, 1]),
        (_normed(), {"seed": range(1)}, [1]),
    ],
)
def test_auto_trains_together_where_it_pays(student: nn.Module, options: dict[str, Any], fits: list[int]) -> None:
    data = _data(_image(), 1, 8, 8) if isinstance(next(student.children()), nn.Conv2d) else _data(_normed())
    students, watch = _distill(student, data, **{"seed": (0, 5), "epochs": 1} | options)
    assert watch.fits == fits and len(students) == sum(fits)


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (
            _normed(),
            {"feature_distillation": 1.0},
            "vectorise with parallel='vmap', but got: feature distillation. Use",
        ),
        (_normed(), {"lr": "auto"}, "but got: lr='auto', which differs from student to student. Use"),
        (Branching(), {}, "parallel='vmap', but got: .*control flow.* Use parallel='sequential'"),
        (_normed(), {"parallel": "all"}, "`parallel` to be one of auto, vmap, sequential, but got 'all'"),
        (_normed(), {"seed": [2, 2]}, r"sequence of different ones for a student each, but got \[2, 2\]"),
        (_normed(), {"seed": []}, r"`seed` to be a whole number, or a sequence .* but got \[\]"),
        (_normed(), {"seed": "01"}, "`seed` to be a whole number, or a sequence .* but got '01'"),
    ],
)
def test_what_cannot_be_trained_together_is_named(student: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _distill(student, _data(_normed()), **{"seed": [0, 1], "parallel": "vmap"} | options)


def test_stacked_students_have_no_feature_distillation() -> None:
    stacked = StackedModule([_normed(), _normed()])
    features = FeatureDistillation(_normed(), ["1"], 1.0)
    with pytest.raises(ValueError, match="no feature distillation for stacked students"):
        StudentModule(stacked, nn.Identity(), adam, feature_distillation=features)  # type: ignore[arg-type]
