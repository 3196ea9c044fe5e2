"""Steps that are recorded once and replayed: on a GPU, and on a CPU with a graph that is made of Python."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.sources import NoiseSource
from kegnet_pl.training import FeatureDistillation, StudentModule
from kegnet_pl.training import cuda_graphs as graphs
from kegnet_pl.training.base import TrainingModule
from kegnet_pl.training.cuda_graphs import WARM_UP, GraphedStep
from tests.unit.training.tiny import (
    FEATURES,
    QUIET,
    adam,
    make_classifier,
    make_generator_module,
    make_objective,
    make_trainer,
)

pytestmark = QUIET


class _Graph:
    """Does on a CPU what a CUDA graph does: plays operations again, from and to the memory they were recorded on."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for operation, args, kwargs, recorded in self.operations:
            result = operation(*args, **kwargs)
            for mine, new in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                if isinstance(mine, Tensor) and mine.data_ptr() != new.data_ptr():
                    mine.copy_(new)


class _Recorder(TorchDispatchMode):
    """Records operations; what was there before is as it was when it is left, as if nothing had been computed."""

    def __init__(self, graph: _Graph) -> None:
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor) and value.data_ptr() not in self.made:
                self.before.setdefault(id(value), (value, value.clone()))
        result = func(*args, **(kwargs or {}))
        self.made |= {value.data_ptr() for value in tree_leaves(result) if isinstance(value, Tensor)}
        self.graph.operations.append((func, args, kwargs or {}, result))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for value, copied in self.before.values():
            if not torch.equal(value, copied):
                value.detach().copy_(copied)


class _Chance:
    """Stands for a GPU's stream of random numbers; remembers the states that it is set to."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def clone_state(self) -> str:
        return "as it was"

    def graphsafe_set_state(self, state: str) -> None:
        self.states.append(state)


@pytest.fixture
def made_of_python(monkeypatch: pytest.MonkeyPatch) -> list[_Graph]:
    """Let CPUs record graphs; return those that were recorded."""
    made: list[_Graph] = []

    class Remembered(_Graph):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Remembered)
    monkeypatch.setattr(torch.cuda, "graph", _Recorder)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (_Chance(),))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return made


def _data() -> SyntheticDataModule:
    return SyntheticDataModule(
        NoiseSource("normal", (FEATURES,)), make_classifier(), samples=160, validation_samples=16, batch_size=8
    )


def _student(feature_distillation: bool = False, dropout: float = 0.0, **options: Any) -> StudentModule:
    network = make_classifier(seed=100, dropout=dropout)
    given = FeatureDistillation(copy.deepcopy(network).eval(), ("1",), 0.5) if feature_distillation else None
    return StudentModule(network, DistillationLoss(), adam, feature_distillation=given, **options)


CASES = {
    "student": lambda graphed: _student(cuda_graphs=graphed),
    "student with dropout": lambda graphed: _student(dropout=0.3, cuda_graphs=graphed),
    "student with feature_distillation": lambda graphed: _student(feature_distillation=True, cuda_graphs=graphed),
    "one generator": lambda graphed: make_generator_module(steps_per_epoch=20, cuda_graphs=graphed),
    "generators together": lambda graphed: make_generator_module(count=3, steps_per_epoch=20, cuda_graphs=graphed),
    "generators, statistics": lambda graphed: make_generator_module(
        count=3,
        steps_per_epoch=20,
        objective=make_objective(statistics=1.0),
        teacher_norm="running",
        cuda_graphs=graphed,
    ),
}


def _fit(module: TrainingModule, folder: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train two epochs; return all weights and statistics, and what was logged."""
    trainer = make_trainer(2, folder, **options)
    if isinstance(module, StudentModule) and module.feature_distillation is not None:
        module.feature_distillation.teacher.to(trainer.strategy.root_device)
    trainer.fit(module, _data() if isinstance(module, StudentModule) else None)
    module.to("cpu")
    assert module._graphed is None, "memory is given back"
    assert trainer.global_step == 40
    return module.state_dict(), {name: float(value) for name, value in trainer.callback_metrics.items()}


# The stand-in draws when it is recorded, which a graph does not: no dropout.
@pytest.mark.parametrize("case", [case for case in CASES if "dropout" not in case])
@pytest.mark.parametrize("clip", [None, 1e-2])
def test_a_graph_on_a_cpu_is_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_of_python: list[_Graph], case: str, clip: float | None
) -> None:
    """Recorded: batch norm, optimiser, clipping, metrics, the count of what the teacher was shown."""
    options = {} if clip is None else {"gradient_clip_val": clip, "gradient_clip_algorithm": "value"}
    plain = CASES[case](False)
    expected = _fit(plain, tmp_path, **options)
    assert not made_of_python
    module = CASES[case](True)
    monkeypatch.setattr(module, "can_record", lambda: True)
    weights, metrics = _fit(module, tmp_path, **options)
    (graph,) = made_of_python
    assert graph.replays == 40 - WARM_UP
    assert {name for name, value in expected[0].items() if not torch.allclose(weights[name], value, atol=1e-6)} == set()
    assert metrics == pytest.approx(expected[1], rel=1e-4, abs=1e-6)
    assert getattr(module, "teacher_forwards", 0) == getattr(plain, "teacher_forwards", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_on_a_gpu_is_the_same_training(tmp_path: Path, case: str, precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    options = {"accelerator": "gpu", "precision": precision}
    expected, _ = _fit(CASES[case](False), tmp_path, **options)
    weights, _ = _fit(CASES[case](True), tmp_path, **options)
    assert {name for name, value in expected.items() if not torch.equal(weights[name], value)} == set()


@pytest.mark.gpu
def test_what_waits_for_the_gpu_is_trained_without_a_graph(tmp_path: Path) -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_classifier(seed=100)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x)
            return logits if float(logits.detach().sum()) < 1e9 else -logits

    results = []
    for graphed in (False, True):
        module = StudentModule(Waits(), DistillationLoss(), adam, cuda_graphs=graphed)
        results.append(_fit(module, tmp_path, accelerator="gpu"))
    assert all(torch.equal(results[1][0][name], value) for name, value in results[0][0].items())


def _step() -> tuple[GraphedStep, nn.Linear, list[Tensor]]:
    network, seen = nn.Linear(2, 1), []

    def differentiate(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(batch[0])
        network.zero_grad()
        loss = network(batch[0]).square().mean()
        loss.backward()
        return loss.detach(), {"size": batch[0].abs().sum()}

    return GraphedStep(differentiate, list(network.parameters())), network, seen


def test_other_shapes_are_computed_as_usual(made_of_python: list[_Graph]) -> None:
    step, network, seen = _step()
    for size in (4, 4, 4, 4, 3, 4):
        batch = (torch.randn(size, 2),)
        loss, metrics = step(batch)
        gradient, loss = network.weight.grad, loss.clone()
        assert torch.equal(metrics["size"], batch[0].abs().sum())
        assert gradient is not None
        expected = torch.autograd.grad(network(batch[0]).square().mean(), network.weight)[0]
        assert torch.allclose(gradient, expected), size
        assert torch.allclose(loss, network(batch[0]).square().mean())
    assert [len(x) for x in seen] == [4, 4, 4, 4, 3], "three to warm up, one recorded, one of another shape"
    assert made_of_python[0].replays == 2


def test_what_cannot_be_recorded_is_computed_as_usual(
    made_of_python: list[_Graph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def refuse(graph: _Graph) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    step, _, seen = _step()
    with caplog.at_level("INFO", graphs.__name__):
        for _ in range(6):
            step((torch.randn(4, 2),))
    assert len(seen) == 7, "six, and one that was to be recorded"
    assert "not permitted" in caplog.text and len(caplog.records) == 1
    assert torch.cuda.default_generators[0].states == ["as it was"]  # type: ignore[attr-defined]


def test_a_cpu_records_nothing(tmp_path: Path, made_of_python: list[_Graph]) -> None:
    _fit(_student(cuda_graphs=True), tmp_path)
    assert not made_of_python


@pytest.mark.parametrize(
    ("device", "world", "accumulate", "precision", "recorded"),
    [
        ("cuda", 1, 1, "32-true", True),
        ("cuda", 1, 1, "bf16-mixed", True),
        ("cpu", 1, 1, "32-true", False),
        ("cuda", 2, 1, "32-true", False),
        ("cuda", 1, 4, "32-true", False),
        ("cuda", 1, 1, "16-mixed", False),
    ],
)
def test_where_steps_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
    made_of_python: list[_Graph],
    device: str,
    world: int,
    accumulate: int,
    precision: str,
    recorded: bool,
) -> None:
    trainer = SimpleNamespace(world_size=world, accumulate_grad_batches=accumulate, precision=precision)
    for wanted in (True, False):
        module = _student(cuda_graphs=wanted)
        monkeypatch.setattr(type(module), "trainer", trainer)
        monkeypatch.setattr(type(module), "device", torch.device(device))
        module.on_fit_start()
        assert (module._graphed is not None) is (wanted and recorded)


def test_steps_are_recorded_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_of_python: list[_Graph]
) -> None:
    """The default of every module is off: nobody's own Python code in a step is skipped by surprise."""
    for module in (_student(), make_generator_module(steps_per_epoch=20)):
        monkeypatch.setattr(module, "can_record", lambda: True)
        _fit(module, tmp_path)
    assert not made_of_python
