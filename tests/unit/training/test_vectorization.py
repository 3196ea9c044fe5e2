"""K generators trained together are K generators trained one after another."""

import csv
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from kegnet_pl.networks import Decoder, DenseGenerator, ImageGenerator, ResNet14, StackedModule
from kegnet_pl.training import GeneratorModule
from kegnet_pl.training.generator_module import should_vectorize, vectorization_error
from tests.unit.training.tiny import (
    CLASSES,
    FEATURES,
    NOISE,
    QUIET,
    Branching,
    adam,
    changed,
    fit_at_once,
    fit_in_two_sittings,
    make_classifier,
    make_objective,
    make_trainer,
    snapshot,
)

# Torch says so where it would loop over the generators.
pytestmark = [*QUIET, pytest.mark.filterwarnings("error:There is a performance drop")]

COUNT = 3


def _networks(kind: str, init: int = 0) -> tuple[list[nn.Module], list[nn.Module], nn.Module]:
    generators: list[nn.Module] = []
    decoders: list[nn.Module] = []
    for index in range(COUNT):
        torch.manual_seed(100 * init + index)
        if kind == "image":
            generators.append(ImageGenerator(3, 4, NOISE))
            decoders.append(Decoder((3, 32, 32), NOISE, width=8))
        else:
            generators.append(DenseGenerator(FEATURES, CLASSES, NOISE, blocks=1, width=8))
            decoders.append(Decoder((FEATURES,), NOISE, blocks=1, width=8))
    torch.manual_seed(7)
    teacher = ResNet14(3, 4) if kind == "image" else make_classifier(dropout=0.0)
    for value in teacher.buffers():  # statistics that are not those of any batch
        if value.is_floating_point():
            value.add_(0.3)
    return generators, decoders, teacher


def _module(kind: str, indices: list[int], init: int = 0, **options: Any) -> GeneratorModule:
    generators, decoders, teacher = _networks(kind, init)
    chosen, readers = [generators[i] for i in indices], [decoders[i] for i in indices]
    return GeneratorModule(
        chosen[0] if len(chosen) == 1 else StackedModule(chosen),
        readers[0] if len(chosen) == 1 else StackedModule(readers),
        teacher,
        options.pop("objective", None) or make_objective(),
        options.pop("optimizer", adam),
        index=indices[0],
        **({"batch_size": 12, "steps_per_epoch": 3} | options),
    )


@pytest.mark.parametrize(
    ("kind", "norm", "decoder", "statistics"),
    [
        *itertools.product(["dense"], ["batch", "running"], [0.0], [0.0]),
        *itertools.product(["dense"], ["batch", "running"], [0.5], [0.0, 1.0]),
        ("image", "running", 0.0, 0.0),  # each pair of factors: images take long
        ("image", "batch", 0.5, 0.0),
        *itertools.product(["image"], ["batch", "running"], [0.5], [1.0]),
    ],
)
def test_same_draws_give_the_same_weights_and_metrics(
    tmp_path: Path, kind: str, norm: Any, decoder: float, statistics: float
) -> None:
    # In float64, where only an error would tell the two apart: Adam turns any rounding of a small gradient into a step.
    options: dict[str, Any] = {
        "teacher_norm": norm,
        "objective": make_objective(decoder=decoder, statistics=statistics),
        "steps_per_epoch": 3 if kind == "dense" else 2,
    }
    epochs = 2 if kind == "dense" else 1
    together = _module(kind, [0, 1, 2], **options)
    make_trainer(epochs, tmp_path, precision="64-true").fit(together)
    generators, decoders, _ = _networks(kind)
    for index in range(COUNT):
        alone = _module(kind, [index], **options)
        trainer = make_trainer(epochs, tmp_path, precision="64-true")
        trainer.fit(alone)
        assert isinstance(together.generator, StackedModule) and isinstance(together.decoder, StackedModule)
        for stack, single, mine in (
            (together.generator, generators[index], alone.generator),
            (together.decoder, decoders[index], alone.decoder),
        ):
            taken = stack.take(index, single.double())
            for name, value in mine.state_dict().items():
                torch.testing.assert_close(taken.state_dict()[name], value, rtol=1e-7, atol=1e-9, msg=name)
        assert together.means[index] == pytest.approx(alone.means[0], rel=1e-7)
    if kind == "dense":
        assert len({round(means["train/loss"], 6) for means in together.means}) == COUNT


def test_batch_statistics_are_each_generators_own(tmp_path: Path) -> None:
    """Normalised by the joined batch, a generator's loss would depend on the others."""
    module, other = _module("dense", [0, 1, 2]), _module("dense", [0, 1, 2])
    with torch.no_grad():
        for value in other.generator.weights.values():  # type: ignore[union-attr, operator]
            value[1:] += 1
    for one in (module, other):
        make_trainer(1, tmp_path).fit(one)
    assert module.means[0] == pytest.approx(other.means[0], rel=1e-4)
    assert module.means[1] != pytest.approx(other.means[1], rel=1e-2)


@pytest.mark.parametrize("statistics", [0.0, 1.0])
def test_bf16_trains_together(tmp_path: Path, statistics: float) -> None:
    module = _module("image", [0, 1, 2], objective=make_objective(statistics=statistics))
    before = snapshot(module.generator)
    halves: list[torch.dtype] = []
    module.teacher.network.linear.register_forward_hook(lambda *given: halves.append(given[-1].dtype))  # type: ignore[union-attr, operator]
    make_trainer(1, tmp_path, precision="bf16-mixed").fit(module)
    assert set(halves) == {torch.bfloat16}
    assert changed(before, module.generator) == set(before)
    assert all(value == value for means in module.means for value in means.values())


def test_every_generator_has_its_own_curve(tmp_path: Path) -> None:
    module = _module("dense", [0, 1, 2])
    module.names = ["a", "b", "c"]
    trainer = make_trainer(2, tmp_path)
    trainer.loggers = [CSVLogger(tmp_path, name=name) for name in ("one", "other")]
    trainer.fit(module)
    for logger in ("one", "other"):
        (path,) = (tmp_path / logger).rglob("metrics.csv")
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["step"], row["epoch"]) for row in rows] == [("2", "0"), ("5", "1")]
        for index, name in enumerate(module.names):
            assert float(rows[-1][f"{name}/train/loss"]) == pytest.approx(module.means[index]["train/loss"])
        assert "train/loss" not in rows[0], "the mean is for callbacks"
    assert not any(name.startswith("a/") for name in trainer.callback_metrics)
    mean = sum(means["train/loss"] for means in module.means) / COUNT
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(mean)


def test_resumed_equals_unbroken(tmp_path: Path) -> None:
    def make(init: int) -> GeneratorModule:
        return _module("dense", [0, 1, 2], init)

    whole, _ = fit_at_once(make, lambda: None, tmp_path / "whole")
    parts, resumed = fit_in_two_sittings(make, lambda: None, tmp_path / "parts")
    assert resumed.current_epoch == 4
    assert changed(snapshot(whole), parts) == set()


def test_teacher_stays_as_it_is(tmp_path: Path) -> None:
    module = _module("dense", [0, 1, 2])
    teacher = snapshot(module.teacher)
    make_trainer(1, tmp_path).fit(module)
    assert changed(teacher, module.teacher) == set()


class _Adam(torch.optim.Adam):
    """Somebody's own: it may do anything."""


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.Adafactor, _Adam])
def test_optimisers_that_look_at_several_weights_are_refused(tmp_path: Path, optimizer: Any) -> None:
    module = _module("dense", [0, 1, 2], optimizer=functools.partial(optimizer, lr=0.1))
    with pytest.raises(ValueError, match=r"independently.*sequential"):
        make_trainer(1, tmp_path).fit(module)


def test_clipping_by_norm_is_refused(tmp_path: Path) -> None:
    module = _module("dense", [0, 1, 2])
    trainer = make_trainer(1, tmp_path, gradient_clip_val=1.0)
    with pytest.raises(ValueError, match="gradient_clip_algorithm=value"):
        trainer.fit(module)


def test_a_stack_needs_a_stack_of_decoders() -> None:
    generators, decoders, teacher = _networks("dense")
    with pytest.raises(ValueError, match="stack both, or neither"):
        GeneratorModule(StackedModule(generators), decoders[0], teacher, make_objective(), adam)


def test_what_cannot_be_stacked_is_found_before() -> None:
    generators, decoders, teacher = _networks("dense")

    def make(teacher: nn.Module, optimizer: Any = adam) -> GeneratorModule:
        stacks = StackedModule(generators[:2]), StackedModule(decoders[:2])
        return GeneratorModule(*stacks, teacher, make_objective(), optimizer, batch_size=8)

    state = torch.random.get_rng_state()
    assert vectorization_error(lambda: make(teacher)) is None
    assert "data-dependent control flow" in (vectorization_error(lambda: make(Branching())) or "")
    assert "_Adam" in (vectorization_error(lambda: make(teacher, functools.partial(_Adam, lr=0.1))) or "")
    assert "got norm" in (vectorization_error(lambda: make(teacher), 1.0, None) or "")
    assert vectorization_error(lambda: make(teacher), 1.0, "value") is None
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("device", "shape", "faster"), [("cpu", (1, 32, 32), 0), ("cpu", (16,), 1), ("cuda", (3, 32, 32), 1)]
)
def test_auto_is_what_was_measured_to_be_faster(device: str, shape: tuple[int, ...], faster: int) -> None:
    place = torch.device(device)
    assert should_vectorize("auto", 2, place, shape) is bool(faster)
    assert should_vectorize("vmap", 2, place, shape)
    assert not should_vectorize("sequential", 2, place, shape)
    assert not should_vectorize("vmap", 1, place, shape)
