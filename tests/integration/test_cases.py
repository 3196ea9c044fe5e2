"""Kinds of trouble that users report of tools of this field, each as a small case with the right outcome."""

import copy
import re
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.pipeline.store import Store
from kegnet_pl.runtime import distributed, environment
from kegnet_pl.runtime.environment import choose_ranks
from kegnet_pl.runtime.errors import ConfigError, explain_memory
from tests.integration.conftest import FAST, Command, Refused, Start

SHAPE = (3, 8, 8)
TINY: dict[str, Any] = {
    "count": 1, "epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "progress": False, "device": "cpu",
}  # fmt: skip


def _layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]


class Silent(nn.Sequential):
    """Its own methods return nothing; its batch norm stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(*_layers())

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self[1].eval()

    def to(self, *place: Any, **options: Any) -> None:  # type: ignore[override]
        super().to(*place, **options)

    def requires_grad_(self, requires_grad: bool = True) -> None:  # type: ignore[override]
        super().requires_grad_(requires_grad)


def _data(teacher: nn.Module | None = None, samples: int = 16) -> kegnet_pl.SyntheticDataset:
    source = kegnet_pl.NoiseSource("normal", SHAPE)
    return kegnet_pl.SyntheticDataset(source, teacher or nn.Sequential(*_layers()), samples, device="cpu")


def _distill(student: nn.Module, data: kegnet_pl.SyntheticDataset, **options: Any) -> nn.Module:
    return kegnet_pl.distill(student, data, epochs=1, batch_size=8, progress=False, device="cpu", **options)


def test_methods_that_return_nothing(tmp_path: Path) -> None:
    teacher = Silent()
    generators = kegnet_pl.train_generators(teacher, SHAPE, **TINY)
    student = _distill(
        kegnet_pl.compress(teacher, SHAPE, fit="weights", progress=False).network, generators.dataset(16)
    )
    save_network(teacher, tmp_path, "network", {"_target_": f"{__name__}.Silent"})
    loaded = kegnet_pl.load_network(tmp_path)
    assert type(student) is type(loaded) is Silent and not loaded.training
    assert loaded(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_frozen_and_whole_number_weights_stay() -> None:
    network = nn.Sequential(*_layers())
    network.steps = nn.Parameter(torch.tensor(3), requires_grad=False)
    network[0].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    student = _distill(network, _data(samples=32), lr=0.1)
    assert torch.equal(student[0].weight, before["0.weight"]) and student.steps == 3
    assert not torch.equal(student[4].weight, before["4.weight"])
    small = kegnet_pl.compress(network, SHAPE, rules={"0": 2}, fit="weights", when_larger="compress", progress=False)
    assert not any(value.requires_grad for value in small.network[0].parameters())
    with pytest.warns(UserWarning, match="All weights of the student are frozen"):
        _distill(network.requires_grad_(False), _data())


def test_a_teacher_without_gradients_is_refused_before_anything_is_trained() -> None:
    teacher = nn.Sequential(*_layers())
    forward = teacher.forward
    for context in (torch.no_grad(), torch.inference_mode()):
        teacher.forward = context(forward)  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=r"pass gradients .* runs under torch.no_grad"):
            kegnet_pl.train_generators(teacher, SHAPE, **TINY)
    with pytest.raises(ValueError, match="logits do not depend on the input"):
        nn.init.zeros_(teacher[4].weight)
        teacher.forward = forward  # type: ignore[method-assign]
        kegnet_pl.train_generators(teacher, SHAPE, **TINY)
    with pytest.warns(UserWarning, match="the same logits for all 16 samples"):
        _data(teacher)


def test_training_inside_inference_mode() -> None:
    with torch.inference_mode():
        teacher = nn.Sequential(*_layers())
        generators = kegnet_pl.train_generators(teacher, SHAPE, **TINY)
        data = generators.dataset(16)
        small = kegnet_pl.compress(teacher, SHAPE, rules={"0": 2}, samples=16, oversampling=1, progress=False)
        inside = _distill(small.network, data)
    outside = _distill(small.network, data)
    assert inside(torch.randn(2, *SHAPE)).shape == outside(torch.randn(2, *SHAPE)).shape == (2, 10)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 6, 3, dtype=torch.cfloat), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x.to(torch.cfloat)).abs().mean((2, 3)))
        return logits


def test_complex_weights_are_kept_and_trained() -> None:
    network, x = Complex().eval(), torch.randn(4, *SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = kegnet_pl.compress(network, SHAPE, rules={"*": "full"}, samples=16, oversampling=1, progress=False)
        torch.testing.assert_close(small.network(x), network(x), rtol=1e-3, atol=1e-4)
        student = _distill(network, _data(network, 32))
    assert not torch.equal(student.conv.weight, network.conv.weight)


def test_signals_and_volumes_have_a_picture() -> None:
    for shape in ((2, 50), (1, 8, 8, 8)):
        assert kegnet_pl.to_image([[torch.randn(shape)] * 3]).size > (1, 1)


def test_a_network_that_shows_probabilities_in_one_mode_is_no_student() -> None:
    class Shows(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return logits if self.training else logits.softmax(1)

    with pytest.raises(ValueError, match="logits in training and probabilities in evaluation"):
        _distill(Shows(*_layers()), _data())


def test_lazy_layers_on_the_command_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))\n"
    )
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    torch.save({f"net._orig_mod.{key}": value for key, value in network.state_dict().items()}, tmp_path / "w.pt")
    done = command(
        "data=none", f"data.input_shape=[{','.join(map(str, SHAPE))}]", "data.classes=10", "teacher=file",
        "teacher.path=net.py", "teacher.factory=make", "teacher.weights=w.pt", "compression=ratio",
        "compression.target=1.5", "compression.fit=weights", "sources=[]", "latency.batch_sizes=[]",
        "agreement.sources=[]", "preset=none", FAST,
    )  # fmt: skip
    (folder,) = (tmp_path / "outputs/debug_store").glob("compression-*")
    assert "teacher: read from w.pt" in done.stdout
    small = kegnet_pl.load_network(folder, trust=[str(tmp_path / "net.py")])
    assert type(small[3]).__name__ == "TuckerLinear" and small(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_a_process_of_a_job_step_runs_alone_in_the_users_folder(
    start: Start, tmp_path: Path, environment: dict[str, str]
) -> None:
    ranks = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    plain = ["sources=[]", "compression.fit=weights", "latency.batch_sizes=[]", "agreement.sources=[]", FAST]
    done = start(*plain, "hydra.job.chdir=true", environment=environment | ranks).finish()
    assert list((tmp_path / "outputs/debug_store").glob("teacher-*/manifest.json"))
    assert len(list((tmp_path / "outputs/runs").glob("*/results.json"))) == 1
    assert "results" in done.stdout


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1", "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
}  # fmt: skip
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job"}
"""Of the script of a job, which srun has not started."""


@pytest.mark.parametrize(
    ("given", "devices", "machines", "started"),
    [
        (TORCHRUN, 2, 2, 4),
        (SRUN, 2, 2, 4),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, 2, 2, 4),
        (BATCH, 2, 1, 1),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, 2, 1, 1),  # Lightning has started this process
        (TORCHRUN, 1, 1, 1),  # independent runs
    ],
)
def test_processes_that_a_launcher_starts_are_those_of_the_run(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], devices: int, machines: int, started: int
) -> None:
    rank = distributed.rank()
    monkeypatch.setattr(environment.os, "environ", dict(given))
    try:
        choose_ranks(devices, machines)
        assert environment.launched() == started
        assert distributed.rank() == (2 if started > 1 else rank)
        if given is BATCH:
            assert environment.os.environ["SLURM_JOB_NAME"] == "bash", "Lightning starts the processes"
    finally:
        vars(distributed.rank_zero_only)["rank"] = rank


@pytest.mark.parametrize(
    ("given", "devices", "machines", "said"),
    [
        (TORCHRUN, 4, 1, "trainer.devices=4 processes on each of trainer.num_nodes=1 machines, but it has started 4"),
        (SRUN, 2, 1, "it has started 4 processes, 2 on a machine"),
        ({}, 2, 2, "neither has started this one. Use torchrun --nnodes=2 --nproc-per-node=2, or srun --nodes=2"),
        (BATCH, 2, 2, "neither has started this one"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 2, 1, "got RANK=1 from another launcher"),
    ],
)
def test_other_numbers_of_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], devices: int, machines: int, said: str
) -> None:
    monkeypatch.setattr(environment.os, "environ", dict(given))
    with pytest.raises(ConfigError, match=re.escape(said)):
        choose_ranks(devices, machines)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("student.optimizer._target_=torch.optim.LBFGS", r"`student\.optimizer` .* without a closure, but LBFGS"),
        ("generator.optimizer._target_=torch.optim.LBFGS", r"`generator\.optimizer` .* without a closure, but LBFGS"),
        ("teacher.optimizer._target_=torch.optim.LBFGS", r"`teacher\.optimizer` .* without a closure, but LBFGS"),
        ("teacher.optimizer._target_=torch.optim.SparseAdam", "does not support dense gradients"),
        ("teacher.weights=größe.pt", "Quote it twice.*\"teacher.weights='größe.pt'\""),
        ("+trainer.fast_dev_run=true", r"`trainer\.fast_dev_run`.*Use debug=fast"),
        ("student.temperature=1e-30", r"`student\.temperature` between 0\.01 and 1000, .* but got 1e-30"),
    ],
)
def test_what_cannot_work_is_refused_first(refused: Refused, tmp_path: Path, argument: str, said: str) -> None:
    text = refused(FAST, argument, "data=digits", "sources=[kegnet]")
    assert re.search(said, text, re.DOTALL), text
    assert not list(tmp_path.glob("outputs/debug_store/*-*"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_too_little_memory_is_a_sentence(error: Exception, tmp_path: Path) -> None:
    wrapped = ValueError("Expected a network that takes samples")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert "Expected enough memory" in str(explain_memory(one))
    build = mock.Mock(side_effect=error)
    with pytest.raises(type(error)) as caught:
        Store(tmp_path).get("generators", {}, [], build)
    assert "memory for the stage generators, but" in str(explain_memory(caught.value))
    assert "lower generator.batch_size, or set generator.parallel=sequential" in str(explain_memory(caught.value))
    assert explain_memory(RuntimeError("view size is not compatible")) is None


def test_every_row_of_the_complaints_names_a_test_that_exists() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (root / "docs/complaints.md").read_text())
    sources: dict[str, str] = {}
    for path in (root / "tests").rglob("test_*.py"):
        sources[path.name] = sources.get(path.name, "") + path.read_text()
    assert len(named) > 20
    assert [test for file, test in named if f"def {test}(" not in sources[file]] == []
