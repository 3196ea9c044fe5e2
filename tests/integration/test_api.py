"""The library without Hydra: what it makes is what the pipeline makes."""

import ast
import copy
import gc
import inspect
import logging
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kegnet_pl
from kegnet_pl import api
from kegnet_pl.networks import MLP, ImageGenerator, LeNet5, ResNet14
from kegnet_pl.runtime.errors import DivergedError
from kegnet_pl.sources import RandomFields, RealSource
from tests.integration.conftest import configure, go
from tests.unit.training.tiny import FEATURES, Branching

SHAPE = (1, 32, 32)
TINY: dict[str, Any] = {"count": 2, "epochs": 2, "steps_per_epoch": 3, "batch_size": 8, "progress": False}


def _lenet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LeNet5()


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture(autouse=True)
def without_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of methods is tested in tests/unit/compression/test_automatic.py; here it would cost seconds."""
    monkeypatch.setattr("kegnet_pl.api.students.has_library", lambda: False)


@pytest.fixture(scope="module")
def generators() -> kegnet_pl.Generators:
    return kegnet_pl.train_generators(_lenet(), SHAPE, **TINY)


def test_the_whole_way(generators: kegnet_pl.Generators) -> None:
    teacher = _lenet()
    before = copy.deepcopy(teacher.state_dict())
    data = generators.dataset(64)
    small = kegnet_pl.compress(teacher, SHAPE, target=4.0, samples=300)
    untrained = copy.deepcopy(small.network)
    student = kegnet_pl.distill(small.network, data, epochs=2, batch_size=16, progress=False)
    assert small.report.compression_ratio >= 4
    assert not _same(student, untrained) and _same(small.network, untrained), "a copy is trained"
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not student.training and student(torch.zeros(3, *SHAPE)).shape == (3, 10)


def test_it_is_what_the_pipeline_makes(tmp_path: Path) -> None:
    go(tmp_path, "sources=[kegnet]", "student.norm=batch", "seed=3", "compression.fit=function")
    config = configure("debug=fast", "seed=3")
    folders = {path.name.split("-")[0]: path for path in (tmp_path / "store").iterdir() if path.is_dir()}
    teacher = kegnet_pl.load_network(folders["teacher"])
    generator, student = config["generator"], config["student"]
    mine = kegnet_pl.train_generators(
        teacher,
        SHAPE,
        **{key: generator[key] for key in ("count", "epochs", "steps_per_epoch", "batch_size", "teacher_norm")},
        lr=generator["optimizer"]["lr"],
        objective={name: term["weight"] for name, term in generator["objective"].items()},
        seed=3,
        device="cpu",
        progress=False,
    )
    theirs = kegnet_pl.load_generators(folders["generators"], folders["teacher"], device="cpu")
    with pytest.raises(
        ValueError, match=r"Expected the teacher of these generators, teacher-\w{16}, but .* holds \w{16}"
    ):
        kegnet_pl.load_generators(folders["generators"], folders["compression"], device="cpu")
    for ours, stored in ((mine.networks, theirs.networks), (mine.decoders, theirs.decoders)):
        assert [_same(a, b) for a, b in zip(ours, stored, strict=True)] == [True] * generator["count"]
    assert mine.metrics[1]["train/loss"] == theirs.metrics[1]["train/loss"]
    assert (mine.input_shape, mine.classes) == (theirs.input_shape, theirs.classes) == (SHAPE, 10)
    plan, data = config["compression"], config["data"]
    compressed = kegnet_pl.compress(
        teacher,
        SHAPE,
        plan["target"],
        **{key: plan[key] for key in ("method", "samples", "oversampling")},
        **{key: data[key] for key in ("mean", "std")},
        seed=3,
        progress=False,
    )
    assert _same(compressed.network, kegnet_pl.load_network(folders["compression"]))
    distilled = kegnet_pl.distill(
        compressed.network,
        mine.dataset(student["samples"], seed=3),
        **{key: student[key] for key in ("epochs", "batch_size", "lr_scheduler", "temperature", "dropout", "shuffle")},
        lr=student["optimizer"]["lr"],
        seed=3,
        device="cpu",
        progress=False,
    )
    assert _same(distilled, kegnet_pl.load_network(folders["student"]))


def test_dropout_of_the_teacher_can_stay_on() -> None:
    torch.manual_seed(0)
    teacher = MLP(6, 3)
    on, off = (kegnet_pl.train_generators(teacher, 6, teacher_dropout=on, **TINY) for on in (True, False))
    assert any(isinstance(module, nn.Dropout) for module in teacher.modules())
    assert not _same(on.networks[0], off.networks[0])


def test_nothing_of_the_callers_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO)
    teacher = _lenet().train()
    state = torch.random.get_rng_state()
    generators = kegnet_pl.train_generators(teacher, SHAPE, **TINY)
    kegnet_pl.distill(teacher, generators.dataset(16), epochs=1, progress=False)
    kegnet_pl.compress(teacher, SHAPE, target=2.0, samples=300)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())
    assert logging.getLogger("pytorch_lightning").level == logging.INFO
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_a_dataset(generators: kegnet_pl.Generators) -> None:
    data = generators.dataset(20, seed=4)
    assert len(data) == 20
    x, logits = data[3]
    assert x.shape == SHAPE and logits.shape == (10,)
    (batch, answers), *_ = DataLoader(data, batch_size=20)
    assert torch.allclose(generators.teacher(batch), answers, atol=1e-5)
    assert torch.equal(generators.dataset(20, seed=4).tensors[0], batch)
    assert not torch.equal(generators.dataset(20, seed=5).tensors[0], batch)
    moved = generators.dataset(20, seed=4, noise_std=0.5).tensors[0] - batch
    assert moved.std() == pytest.approx(0.5, rel=0.05)
    assert 0 < data.label_entropy <= 2.31


def test_noise_is_a_source_too() -> None:
    data = kegnet_pl.SyntheticDataset(kegnet_pl.NoiseSource("uniform", SHAPE), _lenet(), 12)
    assert data.tensors[0].abs().max() <= 1 and data.tensors[1].shape == (12, 10)
    assert kegnet_pl.NoiseSource("normal", 7).sample(3, seed=0).shape == (3, 7)


def test_real_data_is_a_source_too() -> None:
    x = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(0))
    teacher = _lenet()
    data = kegnet_pl.SyntheticDataset(RealSource(x), teacher, 20)
    drawn = {tuple(row) for row in data.tensors[0].flatten(1).tolist()}
    assert drawn == {tuple(row) for row in x.flatten(1).tolist()}
    student = kegnet_pl.distill(teacher, data, epochs=1, batch_size=10, progress=False)
    assert not _same(student, teacher)


def test_looking_inside(generators: kegnet_pl.Generators) -> None:
    x, answers = generators.walk(3, 8, steps=5)
    assert x.shape == (5, *SHAPE) and torch.allclose(answers.sum(dim=1), torch.ones(5))
    assert torch.allclose(x[0], generators.walk(3, 1, steps=2)[0][0], atol=1e-4), "the same start"
    of_class = generators.of_class(2, 100)
    assert of_class.shape == (100, *SHAPE)
    confidence = generators.confidence(100)
    assert confidence.shape == (2, 10)
    assert confidence[0, 2] == pytest.approx(float(generators.teacher(of_class).softmax(dim=1)[:, 2].mean()))
    assert generators.decoders[1](of_class).shape == (100, generators.noise_dim)
    assert generators.sheet(rows=3, scale=1).size == (10 * 34 - 2, 3 * 34 - 2)
    assert len(generators) == 2 and generators.sample(4).shape == (4, *SHAPE)


def test_tables_are_trained_together_without_diversity() -> None:
    torch.manual_seed(0)
    teacher = MLP(7, 3, width=10, blocks=2, dropout=0.1)
    generators = kegnet_pl.train_generators(teacher, (7,), **TINY)
    assert generators.classes == 3 and generators.sample(4).shape == (4, 7)
    assert "train/loss_decoder" in generators.metrics[1] and "train/loss_diversity" not in generators.metrics[1]
    student = kegnet_pl.distill(teacher, generators.dataset(32), epochs=1, dropout=False, progress=False)
    assert student(torch.zeros(2, 7)).shape == (2, 3)


def test_batch_norm_adapts_and_layers_learn() -> None:
    torch.manual_seed(0)
    teacher = ResNet14(channels=1)
    data = kegnet_pl.SyntheticDataset(kegnet_pl.NoiseSource("normal", SHAPE), teacher, 16)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "progress": False}
    with pytest.raises(ValueError, match="ResNet14 has never seen a sample"):
        kegnet_pl.distill(teacher, data, norm="frozen", **options)
    teacher.train()(data.tensors[0])
    plain = kegnet_pl.distill(teacher, data, **options)
    others = [
        kegnet_pl.distill(teacher, data, norm="adapt", feature_distillation=10.0, **options),
        kegnet_pl.distill(teacher, data, norm="frozen", **options),
        kegnet_pl.distill(teacher, data, resample_each_epoch=True, epochs=2, batch_size=8, progress=False),
    ]
    assert not any(_same(plain, other) for other in others)
    frozen = dict(others[1].named_buffers())
    assert all(torch.equal(frozen[name], value) for name, value in teacher.named_buffers())


def test_a_set_above_the_memory_budget_is_in_a_file_and_makes_the_same_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    teacher, source = _lenet(), kegnet_pl.NoiseSource("normal", SHAPE)
    made = []
    for memory in (None, 1e-6):
        data = kegnet_pl.SyntheticDataset(source, teacher, 16, device="cpu", memory=memory)
        options: dict[str, Any] = {"resample_each_epoch": True, "epochs": 2, "batch_size": 8, "progress": False}
        made.append(kegnet_pl.distill(teacher, data, device="cpu", **options))
        assert (str(tmp_path) in Path("/proc/self/maps").read_text()) == (memory is not None)
    assert _same(*made)
    assert f"16 samples is in a temporary file in {tmp_path}: " in caplog.text
    del data
    gc.collect()
    assert not list(tmp_path.iterdir()) and str(tmp_path) not in Path("/proc/self/maps").read_text()
    with pytest.raises(ValueError, match="`memory` of at least 0 GB"):
        kegnet_pl.SyntheticDataset(source, teacher, 16, memory=-1)


def test_a_network_that_agrees_too_little_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(256, 60), nn.ReLU(), nn.Linear(60, 10))
    with pytest.warns(UserWarning, match=r"give the same class to only \d+%.*Lower the target"):
        small = kegnet_pl.compress(teacher, (1, 16, 16), target=20.0, samples=200)
    assert small.agreement is not None and small.agreement < 0.9
    assert "compression: finished" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher[1].weight.data = torch.randn(60, 4) @ torch.randn(4, 256)
        equal = kegnet_pl.compress(teacher, (1, 16, 16), target=2.0, samples=200, progress=False)
    assert equal.agreement is not None and equal.agreement > 0.99
    assert capsys.readouterr().out == ""
    assert kegnet_pl.compress(teacher, (1, 16, 16), target=2.0, fit="weights").agreement is None
    teacher[3].bias.data[4] = 1e4
    with pytest.warns(UserWarning, match="gives the same class to all held-out synthetic samples"):
        assert kegnet_pl.compress(teacher, (1, 16, 16), target=2.0, samples=50).agreement is None
    with pytest.raises(ValueError, match=r"Expected `source` to be a SyntheticSource, such as .* but got str"):
        kegnet_pl.SyntheticDataset("procedural", teacher, 10)  # type: ignore[arg-type]


def test_a_student_is_reconstructed_before_its_training() -> None:
    teacher = _lenet()
    source = RandomFields(SHAPE)
    data = kegnet_pl.SyntheticDataset(source, teacher, 256)
    small = kegnet_pl.compress(teacher, SHAPE, target=3.0, fit="weights").network
    options: dict[str, Any] = {"epochs": 1, "lr": 1e-12, "dropout": False, "progress": False}
    x = source.sample(300, 9)

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(x) - teacher(x)).square().mean())

    plain = kegnet_pl.distill(small, data, **options)
    fitted = kegnet_pl.distill(small, data, reconstruct=True, **options)
    assert error(plain) == pytest.approx(error(small), rel=1e-3)
    assert error(fitted) < 0.5 * error(small)
    other = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    with pytest.raises(ValueError, match=r"Expected the compressed teacher as a student with reconstruct.*for conv1"):
        kegnet_pl.distill(other, data, reconstruct=True, **options)


def test_what_cannot_be_trained_together_is_trained_one_by_one() -> None:
    torch.manual_seed(0)
    teacher = Branching()
    alone = kegnet_pl.train_generators(teacher, FEATURES, parallel="sequential", **TINY)
    assert _same(kegnet_pl.train_generators(teacher, FEATURES, **TINY).networks[1], alone.networks[1])
    with pytest.raises(ValueError, match=r"parallel='vmap', but got: .*Use parallel='sequential'"):
        kegnet_pl.train_generators(teacher, FEATURES, parallel="vmap", **TINY)
    teacher = MLP(7, 3)
    together, auto = (kegnet_pl.train_generators(teacher, 7, parallel=how, **TINY) for how in ("vmap", "auto"))
    assert _same(together.networks[1], auto.networks[1])


def test_checkpoints_of_the_callers(tmp_path: Path) -> None:
    callback = ModelCheckpoint(dirpath=tmp_path, filename="mine")
    kegnet_pl.train_generators(_lenet(), SHAPE, **TINY | {"count": 1}, callbacks=[callback])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.ckpt"]


def test_loggers_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = CSVLogger(tmp_path)
    kegnet_pl.train_generators(_lenet(), SHAPE, **TINY | {"count": 1, "progress": True}, logger=logger)
    assert "train/loss_classifier" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "generators: finished" in capsys.readouterr().out


def test_rules_without_a_target() -> None:
    network = _lenet()
    assert set(kegnet_pl.compress(network, SHAPE, rules={"fc1": 0.2}, samples=100).report.ranks) == {"fc1"}
    assert kegnet_pl.compress(network, SHAPE, samples=100).report.compression_ratio > 1, "by EVBMF"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_compression_in_other_precisions(dtype: torch.dtype) -> None:
    small = kegnet_pl.compress(_lenet().to(dtype), SHAPE, 4.0, samples=100)
    assert {weight.dtype for weight in small.network.parameters()} == {dtype}
    assert small.report.compression_ratio >= 4


def test_compression_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 5), nn.Dropout(), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 28 * 28, 5))
    network[1].eval()
    network[0].requires_grad_(False)
    state = torch.get_rng_state()
    modes, flags = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    with torch.inference_mode():
        small = kegnet_pl.compress(network, SHAPE, 1.5, samples=50)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags and all(
        p.grad is None for p in network.parameters()
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (network, small.network) for m in n.modules())
    assert not any(weight.is_inference() for weight in small.network.parameters())


def test_compression_by_function_and_by_weights() -> None:
    network = _lenet()
    by_weights = kegnet_pl.compress(network, SHAPE, 8.0, fit="weights")
    given: dict[str, Any] = {"method": "tucker", "samples": 300}
    by_function, again = (kegnet_pl.compress(network, SHAPE, 8.0, **given) for _ in range(2))
    assert by_weights.fitted == () and by_function.fitted
    assert by_function.report.compression_ratio == pytest.approx(8, rel=0.05)
    assert _same(by_function.network, again.network)
    other = kegnet_pl.compress(network, SHAPE, 8.0, **given, source=kegnet_pl.NoiseSource("uniform", SHAPE))
    assert not _same(by_function.network, other.network)


class _Wrong(nn.Module):
    """A generator that returns something else."""

    noise_dim, classes = 10, 10

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> Any:
        return self.answer(z)


class _Once:
    """Returns one and the same generator at every call."""

    def __init__(self) -> None:
        self.generator = ImageGenerator(1, 10, 10)

    def __call__(self) -> nn.Module:
        return self.generator


def _broken(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    return network


def _split(count: int, value: float = 0.0) -> kegnet_pl.Split:
    return kegnet_pl.Split(torch.full((count, *SHAPE), value), torch.zeros(count).long())


def _dataset(teacher: nn.Module) -> kegnet_pl.SyntheticDataset:
    return kegnet_pl.SyntheticDataset(kegnet_pl.NoiseSource("normal", SHAPE), teacher, 8)


def _with_generator(make: Any) -> None:
    kegnet_pl.train_generators(_lenet(), SHAPE, make_generator=make, **TINY)


@pytest.mark.parametrize("shape", [(2, 50), (1, 6, 8, 9)], ids=["signals", "volumes"])
def test_signals_and_volumes_go_the_whole_way(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d if len(shape) == 2 else nn.Conv3d
    pool = nn.AdaptiveAvgPool1d(1) if len(shape) == 2 else nn.AdaptiveAvgPool3d(1)
    layers = [conv(shape[0], 16, 3), nn.ReLU(), conv(16, 24, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(24, 4)]
    teacher = nn.Sequential(*layers)
    generators = kegnet_pl.train_generators(teacher, shape, **TINY)
    data = generators.dataset(32)
    assert data.tensors[0].shape == (32, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an untrained network
        small = kegnet_pl.compress(teacher, shape, target=1.5, samples=200, progress=False)
    assert small.report.compression_ratio >= 1.5 and small.fitted
    student = kegnet_pl.distill(small, data, epochs=1, batch_size=16, progress=False)
    assert student(data.tensors[0]).shape == (32, 4)
    assert min(generators.sheet(2).size) > 8 and min(kegnet_pl.to_image([[data.tensors[0][0]] * 3]).size) > 8


@pytest.mark.parametrize("answer", [nn.Softmax(dim=1), nn.Sequential(nn.Linear(10, 1), nn.Sigmoid())])
def test_a_student_answers_as_its_teacher_does(answer: nn.Module) -> None:
    teacher = nn.Sequential(_lenet(), answer)
    classes = 10 if isinstance(answer, nn.Softmax) else 2
    generators = kegnet_pl.train_generators(teacher, SHAPE, **TINY)
    assert generators.classes == classes
    data = generators.dataset(32)
    assert data.tensors[1].shape == (32, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an untrained network
        small = kegnet_pl.compress(teacher, SHAPE, target=3.0, samples=100, progress=False)
    student = kegnet_pl.distill(small, data, epochs=1, batch_size=16, progress=False)
    x = data.tensors[0]
    for network in (teacher, small.network, student):
        values = network(x)
        assert values.shape[1] == (10 if classes == 10 else 1) and bool(((values >= 0) & (values <= 1)).all())
    assert kegnet_pl.measure_accuracy(teacher, kegnet_pl.Split(x, data.tensors[1].argmax(1))) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kegnet_pl.train_generators(_lenet(), (3, 32, 32), **TINY), r"accept samples of shape \(3, 32, 32\)"),
        (lambda: kegnet_pl.train_generators(nn.Flatten(0), SHAPE, **TINY), "one row of logits for each of 16 samples"),
        (lambda: kegnet_pl.train_generators(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (1, 2, 2, 4, 4), **TINY),
         r"`make_generator` for samples of shape \(1, 2, 2, 4, 4\)"),
        (lambda: kegnet_pl.train_generators(torch.jit.script(_lenet()), SHAPE, **TINY), "Build it from its class"),
        (lambda: kegnet_pl.train_generators(_broken(_lenet()), SHAPE, **TINY), "finite logits, but got NaN"),
        (lambda: _with_generator(_Once()), "a new module at every call, but got the same twice"),
        (lambda: _with_generator(lambda: ImageGenerator(1, 7, 10)), "generator of 10 classes, but got one of 7"),
        (lambda: _with_generator(lambda: ImageGenerator(1, 10, 12)),
         r"generator's 12 noise dimensions, but got one of \(10,\)\. Give .* `noise_dim` as your"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, objective={"beauty": 1}, **TINY), "got 'beauty'"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, make_decoder=lambda: nn.Flatten(), **TINY),
         r"decoder of the generator's 10 noise dimensions, but got one of \(1024,\)"),
        (lambda: _with_generator(lambda: nn.Flatten()), "attributes `noise_dim` and `classes`, but got Flatten"),
        (lambda: _with_generator(ImageGenerator(1, 10, 10)), "`make_generator` to be a function"),
        (lambda: _with_generator(lambda: _Wrong(lambda z: torch.zeros(len(z), 1, 28, 28))),
         r"generator of samples \(1, 32, 32\), but got one of \(1, 28, 28\)"),
        (lambda: _with_generator(lambda: _Wrong(lambda z: (z, z))), "to return a tensor, but got a tuple"),
        (lambda: _with_generator(lambda: _Wrong(lambda z: z @ z)), r"accept \(2, 10\) and \(2, 10\), but it failed"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, lr=-1, **TINY), "`lr` to be a number above 0"),
        (lambda: kegnet_pl.train_generators(_lenet(), "1,32,32", **TINY), "`input_shape` as .* but got '1,32,32'"),
        (lambda: kegnet_pl.compress(_lenet(), (1, -32, 32)), r"`input_shape` as .* but got \(1, -32, 32\)"),
        (lambda: kegnet_pl.compress(_lenet(), SHAPE, 2.0, fit="logits"), "`fit` to be 'function' or 'weights'"),
        (lambda: kegnet_pl.compress(_lenet(), SHAPE, 2.0, samples=1), "`samples` to be a whole number of at least 10"),
        (lambda: kegnet_pl.compress(_lenet(), SHAPE, 2.0, samples=10.5), "`samples` to be a whole number"),  # type: ignore[arg-type]
        (lambda: kegnet_pl.compress(_lenet(), SHAPE, 2.0, source="fields"), "`source` to be a SyntheticSource"),  # type: ignore[arg-type]
        (
            lambda: kegnet_pl.compress(_lenet(), SHAPE, 2.0, source=kegnet_pl.NoiseSource("normal", (1, 28, 28))),
            r"`source` to return samples of shape \(8000, 1, 32, 32\), but got \(8000, 1, 28, 28\)",
        ),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, device="cuda:99", **TINY),
         "`device` to exist, but got 'cuda:99'"),
        (lambda: kegnet_pl.Split(torch.zeros(8, 2), torch.zeros(3).long()), "many samples as labels, but got 8 and 3"),
        (lambda: kegnet_pl.Split(torch.zeros(8, 2), torch.zeros(8)), r"classes \(N,\), .* got torch.float32 \(8,\)"),
        (lambda: kegnet_pl.Split(torch.zeros(8, 2), torch.eye(8).long()), r"classes \(N,\), .* torch.int64 \(8, 8\)"),
        (lambda: kegnet_pl.Split(torch.zeros(8, 2), [1] * 8), "`y` to be a tensor, but got list"),
        (lambda: kegnet_pl.measure_accuracy(_lenet(), _split(0)), "at least one sample, but got none"),
        (lambda: kegnet_pl.measure_accuracy(_lenet(), _split(4, math.nan)), "finite logits, but got NaN"),
        (lambda: kegnet_pl.measure_accuracy(_lenet(), kegnet_pl.Split(_split(4).x.byte(), _split(4).y)),
         "floating-point samples, .* but got torch.uint8"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, **(TINY | {"count": 0})), "`count` to be a whole number"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, **(TINY | {"batch_size": 1})),
         "`batch_size` to be a whole number of at least 2"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, precision="bf16", **TINY), "16-mixed, but got 'bf16'"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, precision="16-mixed", device="cpu", **TINY), "on a CPU"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, device="gpu", **TINY), "'cuda:1', but got 'gpu'"),
        (lambda: kegnet_pl.train_generators("model.pt", SHAPE, **TINY), r"a torch\.nn\.Module, but got 'model\.pt'"),
        (lambda: kegnet_pl.compress(_lenet(), (3, 32, 32), 2.0), r"samples of shape \(3, 32, 32\), but it failed"),
        (lambda: kegnet_pl.distill(_lenet(), TensorDataset(torch.zeros(4, *SHAPE))), "SyntheticDataset"),
        (lambda: kegnet_pl.compress(nn.Embedding(9, 4), (5,), 2.0), "it accepts integer token ids"),
        (lambda: _dataset(LeNet5(3)), r"teacher LeNet5 to accept samples of shape \(1, 32, 32\), but it failed"),
        (lambda: kegnet_pl.train_generators(_lenet(), SHAPE, parallel="both", **TINY), "sequential.*got 'both'"),
        (lambda: kegnet_pl.load_generators("nowhere", _lenet()), r"got nowhere without manifest\.json"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "`epochs` to be a whole number of at least 1"),
        ({"epochs": 1.5}, "`epochs` to be a whole number of at least 1"),
        ({"feature_distillation": -1.0}, "`feature_distillation` to be a number of at least 0"),
        ({"norm": "addapt"}, "batch, frozen, adapt, but got 'addapt'"),
    ],
)
def test_settings_of_a_student_are_checked(
    generators: kegnet_pl.Generators, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kegnet_pl.distill(_lenet(), generators.dataset(4), progress=False, **settings)


def test_classes_and_generators_are_counted_from_zero(generators: kegnet_pl.Generators) -> None:
    with pytest.raises(IndexError, match="a class from 0 to 9, but got -1"):
        generators.of_class(-1, 2)
    with pytest.raises(IndexError, match="a class from 0 to 9, but got 10"):
        generators.walk(0, 10)
    with pytest.raises(IndexError, match="`index` of a generator, from 0 to 1, but got 2"):
        generators.of_class(0, 2, index=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.of_class(1, -3), "`n` to be a whole number of at least 1, but got -3"),
        (lambda g: g.confidence(0), "`n` to be a whole number of at least 1, but got 0"),
        (lambda g: g.walk(0, 1, steps=1), "`steps` to be a whole number of at least 2, but got 1"),
        (lambda g: g.sheet(0), "`rows` to be a whole number of at least 1, but got 0"),
        (lambda g: g.sheet(scale=0), "`scale` to be"),
        (lambda g: g.dataset(8.0), "`samples` to be a whole number of at least 1, but got 8.0"),
    ],
)
def test_counts_are_checked(generators: kegnet_pl.Generators, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(generators)


def test_a_student_of_other_classes_is_refused(generators: kegnet_pl.Generators) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="the teacher's 10 classes, but got 4"):
        kegnet_pl.distill(LeNet5(classes=4), generators.dataset(4), progress=False)


def test_public_names() -> None:
    assert set(kegnet_pl.__all__) == set(kegnet_pl._MODULES) <= set(dir(kegnet_pl))
    for name in kegnet_pl.__all__:
        assert inspect.getdoc(getattr(kegnet_pl, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kegnet_pl.nothing
    told = {
        target.name for target in ast.walk(ast.parse(inspect.getsource(kegnet_pl))) if isinstance(target, ast.alias)
    }
    assert set(kegnet_pl.__all__) <= told, "type checkers see them"
    assert api.Generators is kegnet_pl.Generators


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, kegnet_pl; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 40), (1, 32, 48), (3, 64, 64), (2, 7, 100)])
def test_images_of_any_size(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip
    tiny = TINY | {"epochs": 1, "steps_per_epoch": 1}
    generators = kegnet_pl.train_generators(teacher, shape, objective={"classifier": 1, "statistics": 1}, **tiny)
    student = kegnet_pl.distill(teacher, generators.dataset(16), epochs=1, progress=False)
    assert generators.dataset(4).tensors[0].shape == (4, *shape)
    assert student(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("shape", [SHAPE, (6,)], ids=["one by one", "vmap"])
def test_a_logger_is_told_of_every_generator(tmp_path: Path, shape: tuple[int, ...]) -> None:
    class Recorder(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
            self.names |= set(metrics)

    teacher = _lenet() if shape == SHAPE else MLP(6, 3)
    recorder = Recorder()
    kegnet_pl.train_generators(teacher, shape, logger=[recorder], **TINY)
    assert {name for name in recorder.names if name.endswith("train/loss")} == {
        "generator_0/train/loss", "generator_1/train/loss",
    }  # fmt: skip


def test_callbacks_may_begin_anew_with_every_generator() -> None:
    made: list[EarlyStopping] = []

    def make() -> list[EarlyStopping]:
        made.append(EarlyStopping("train/accuracy", mode="max", patience=1))
        return [made[-1]]

    kegnet_pl.train_generators(_lenet(), SHAPE, callbacks=make, **TINY)
    assert len(made) == 2
    assert made[0] is not made[1]


def test_a_fit_that_diverges_is_an_error(generators: kegnet_pl.Generators) -> None:
    with pytest.raises(DivergedError, match=r"diverged in step \d of epoch \d\. Lower the learning rate"):
        kegnet_pl.distill(_lenet(), generators.dataset(64), lr=1e30, epochs=2, progress=False)
