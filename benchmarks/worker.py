"""A process that measures one task in one way, on request."""

import copy
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, make_case
from benchmarks.direct import DirectGenerator, direct_student_epoch, generate_samples
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.data.synthetic import StackedDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.networks import StackedModule, prefer_channels_last
from kegnet_pl.networks.execution import teacher_for
from kegnet_pl.pipeline.objects import build, build_objective
from kegnet_pl.runtime.memory import keep_freed_memory, peak_memory, reset_peak_memory
from kegnet_pl.sources import GeneratorSource, NoiseSource, sample_labels_and_noise
from kegnet_pl.training import GeneratorModule, StudentModule
from kegnet_pl.training.cuda_graphs import GraphedStep
from kegnet_pl.training.fit import quiet_lightning, run_fit


@dataclass(frozen=True)
class Task:
    """Work of a worker, and how it is done.

    Attributes:
        work: generator_step, student_epoch or draw.
        network: lenet5, resnet14 or mlp.
        device: cpu or cuda.
        precision: The trainer's.
        how: ``direct``; ``ours``, the product; ``bare``, the product's step without Lightning.
        together: True: generators, or students of as many seeds, are trained together.
        compile: True: networks are compiled.
        graphs: True: a GPU records steps and replays them, as the product does by default.
        keep: True: freed memory is kept, as the pipeline does on a CPU.
        steps: Generator steps of one measurement.
        samples: Synthetic samples of an epoch, or to draw.
    """

    work: str
    network: str
    device: str = "cpu"
    precision: str = "32-true"
    how: str = "ours"
    together: bool = False
    compile: bool = False
    graphs: bool = True
    keep: bool = True
    steps: int = 10
    samples: int = 32_000


class _Clock(Callback):
    """Measures the time of an epoch without the start and the end of Lightning's fit."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        _wait()
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        _wait()
        self.seconds = time.perf_counter() - self._start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(run: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _fit(case: Case, task: Task, module: LightningModule, data: LightningDataModule | None) -> float:
    clock = _Clock()
    trainer: Trainer = build(
        case.settings.trainer.model_dump(by_alias=True)
        | {"accelerator": {"cuda": "gpu"}.get(task.device, "cpu"), "precision": task.precision},
        max_epochs=2 if task.device == "cuda" else 1,  # a GPU's first steps are made before one is recorded
        callbacks=[clock], logger=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    run_fit(trainer, module, data)
    return clock.seconds


def _generator_module(case: Case, task: Task) -> GeneratorModule:
    config = case.settings.generator
    indices = range(config.count) if task.together else range(1)
    generators, decoders = [case.generator(i) for i in indices], [case.decoder(i) for i in indices]
    return GeneratorModule(
        StackedModule(generators) if task.together else generators[0],
        StackedModule(decoders) if task.together else decoders[0],
        teacher_for(case.teacher(), case.input_shape, task.precision),
        build_objective(config.objective),
        build(config.optimizer),
        batch_size=config.batch_size,
        steps_per_epoch=task.steps,
        teacher_norm=config.teacher_norm,
        compile=task.compile,
        cuda_graphs=task.graphs,
    )


def _generator_step(case: Case, task: Task) -> Callable[[], float]:
    """Return a function that measures the seconds of one step of one generator."""
    config = case.settings.generator
    if task.how == "direct":
        chance = torch.Generator(task.device).manual_seed(0)
        one = DirectGenerator(
            case.generator().to(task.device), case.decoder().to(task.device), case.teacher().to(task.device),
            config.optimizer.lr, case.weight("decoder"), case.weight("diversity"),
        )  # fmt: skip

        def steps() -> None:
            for _ in range(task.steps):
                one.step(*sample_labels_and_noise(config.batch_size, case.classes, config.noise_dim, chance))

        return lambda: _timed(steps) / task.steps
    each = task.steps * (config.count if task.together else 1)
    if task.how == "ours":
        module = _generator_module(case, task)
        return lambda: _fit(case, task, module, None) / each
    run = bare_steps(case, task)
    return lambda: _timed(run) / each


def bare_steps(case: Case, task: Task) -> Callable[[], None]:
    """Return a loop of the module's steps without Lightning; the difference in time is Lightning's share."""
    graphed = task.device == "cuda" and task.graphs and not task.compile
    module = _generator_module(case, replace(task, graphs=False))  # a module records with a trainer alone
    module.to(task.device).train()
    module.on_fit_start()
    optimizer = build(case.settings.generator.optimizer)(module.trained_parameters(), fused=True)

    def differentiate(batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16-mixed"):
            loss, _ = module.step(batch)
        optimizer.zero_grad()
        loss.backward()
        return loss.detach(), {}

    step = GraphedStep(differentiate, module.trained_parameters()) if graphed else differentiate
    chances = [torch.Generator(task.device).manual_seed(i) for i in range(module.networks)]
    size = module.batch_size

    def run() -> None:
        drawn = [sample_labels_and_noise(task.steps * size, module.classes, module.noise_dim, c) for c in chances]
        z, y = (
            torch.stack([tensor.unflatten(0, (task.steps, size)) for tensor in part], 1)
            for part in zip(*drawn, strict=True)
        )
        for pair in zip(z, y, strict=True):
            step(pair if task.together else (pair[0][0], pair[1][0]))
            optimizer.step()

    return run


def _student_epoch(case: Case, task: Task) -> Callable[[], float]:
    """Return a function that measures the seconds of one epoch of one student."""
    config = case.settings.student
    data = SyntheticDataModule(
        NoiseSource("normal", case.input_shape), case.teacher(), samples=task.samples,
        batch_size=config.batch_size, shuffle=config.shuffle, device=task.device,
    )  # fmt: skip
    data.setup()
    student = case.student()
    if task.how == "direct":
        x, logits = data.splits["train"]
        student = student.train().to(task.device)
        optimizer = torch.optim.Adam(student.parameters(), lr=float(config.optimizer.lr))
        targets = functional.softmax(logits, dim=1)
        return lambda: _timed(lambda: direct_student_epoch(student, optimizer, x, targets, config.batch_size))
    count = case.settings.generator.count if task.together else 1
    if task.together:
        every = [copy.copy(data) for _ in range(count)]
        for seed, own in enumerate(every):
            own.seed = seed
    module = StudentModule(
        StackedModule([student] * count) if task.together else prefer_channels_last(student, case.input_shape),
        DistillationLoss(config.temperature),
        build(config.optimizer),
        compile=task.compile,
        cuda_graphs=task.graphs,
    )
    return lambda: _fit(case, task, module, StackedDataModule(every) if task.together else data) / count


def _draw(case: Case, task: Task) -> Callable[[], float]:
    """Return a function that measures the seconds of a draw from five generators."""
    config = case.settings.generator
    generators = [case.generator(i) for i in range(config.count)]
    if task.how == "direct":
        for generator in generators:
            generator.to(task.device)
        chance = torch.Generator(task.device).manual_seed(0)
        draws = (task.samples // len(generators), case.classes, config.noise_dim, chance)
        return lambda: _timed(lambda: generate_samples(generators, *sample_labels_and_noise(*draws)))
    source = GeneratorSource(generators, task.device)
    return lambda: _timed(lambda: source.sample(task.samples, 0))


def count_operations(task: Task) -> int:
    """Return the floating-point operations of one measurement: products of matrices and convolutions."""
    case = make_case(task.network)
    config = case.settings.generator
    size = config.batch_size
    z, y = torch.randn(size, config.noise_dim), torch.eye(case.classes)[torch.arange(size) % case.classes]
    counter = FlopCounterMode(display=False)
    if task.work == "generator_step":
        module = _generator_module(case, task)
        with counter:
            module.step((z, y))[0].backward()
        return int(counter.get_total_flops())
    if task.work == "draw":
        with torch.no_grad(), counter:
            case.generator().eval()(z, y)
        return int(counter.get_total_flops() * task.samples // size)
    batch = case.settings.student.batch_size
    student = case.student().train()
    with counter:
        student(torch.randn(batch, *case.input_shape)).sum().backward()
    return int(counter.get_total_flops() * task.samples // batch)


def measure_rate(device: str, precision: str, sides: Sequence[int] = (1024, 2048, 4096)) -> float:
    """Return the operations per second of matrix products: the median of nine, of the best of several sizes."""
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    rates = []
    for side in sides:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        for _ in range(2):
            a @ b
        seconds = sorted(_timed(lambda: a @ b) for _ in range(9))[4]  # noqa: B023
        rates.append(2 * side**3 / seconds)
    return max(rates)


def serve(task: Task, pipe: Connection) -> None:
    """Run a task on request; return its seconds, or the peak memory since the second run.

    Args:
        task: What to do.
        pipe: Asks ``go``, ``peak`` or ``stop``.
    """
    try:
        quiet_lightning()
        warnings.filterwarnings("ignore")
        if task.how != "direct" and task.keep and task.device == "cpu":
            keep_freed_memory()
        works = {"generator_step": _generator_step, "student_epoch": _student_epoch, "draw": _draw}
        run = works[task.work](make_case(task.network), task)
        pipe.send("ready")
        while (asked := pipe.recv()) != "stop":
            pipe.send(run() if asked == "go" else peak_memory())
            if asked == "forget":
                reset_peak_memory()
    except Exception:
        pipe.send(traceback.format_exc())
