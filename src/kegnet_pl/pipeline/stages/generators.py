"""The stage of the generators: trained against the frozen teacher."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.engine import GeneratorTask, MakeCallbacks, fit_generators
from kegnet_pl.api.sampling import Generators
from kegnet_pl.pipeline.context import RunContext, training_fingerprint
from kegnet_pl.pipeline.objects import build, build_objective, code_of
from kegnet_pl.pipeline.sample_monitor import SampleMonitor
from kegnet_pl.pipeline.stages.pictures import draw_samples, draw_walk
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trainer import ResumableFit
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import apart, exchange, place, rank, shares
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.training.progress import StageProgress

SHEETS = "sheets"
"""Folder of the sheets that were drawn while generators trained."""


def generators_stage(context: RunContext, teacher: Stage) -> Stage:
    """Train the generators against the frozen teacher."""
    generator, processes = context.settings.generator, context.settings.trainer.processes
    spread = generator.is_spread(processes)
    own = [len(share) for share in shares(generator.count, processes if spread else 1)]
    task = _make_task(context, context.network(teacher), own[0])
    decided = generator.model_copy(update={"parallel": task.settings.parallel})
    # Generators that are trained one by one are the same in any process.
    together = own if task.settings.parallel == "vmap" else 1
    settings = {
        "generator": decided.fingerprint(),
        "input_shape": context.input_shape,
        "classes": context.classes,
        **training_fingerprint(context.settings),
        **({"processes": together} if spread else {}),
        **code_of(generator),
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        def make_callbacks(names: Sequence[str], network: nn.Module) -> list[SampleMonitor]:
            seed = derive_seed(generator.seed, "sheet")
            return [SampleMonitor(task.teacher, network, names, folder / SHEETS, seed, costs, generator.batch_size)]

        if processes > 1:
            context.console.print(_describe(generator.count, processes, spread))
        progress = context.progress("generators")
        fit = ResumableFit(context.trainers, folder, "generators", costs, "generator_training")
        if spread:
            generators = _fit_share(task, fit, progress, make_callbacks, context.device)
        else:
            generators = fit_generators(task, fit, progress, make_callbacks)
        if rank() != 0:
            return {}
        for index, (network, decoder) in enumerate(zip(generators.networks, generators.decoders, strict=True)):
            save_network(network, folder, f"generator_{index}", generator.network)
            save_network(decoder, folder, f"decoder_{index}", generator.decoder)
        return {
            "generators": {str(index): metrics for index, metrics in enumerate(generators.metrics)},
            **draw_samples(context, generators, folder, costs),
            "walk": draw_walk(generators, generator.seed, folder, costs),
        }

    return context.get_or_build("generators", settings, [teacher], make, title="generators", collective=True)


def _fit_share(
    task: GeneratorTask,
    fit: ResumableFit,
    progress: StageProgress,
    make_callbacks: MakeCallbacks,
    device: torch.device,
) -> Generators:
    """Train the generators of this process alone, and receive the others from the other processes."""
    number, count = place()
    share = shares(task.settings.count, count)[number]
    others = [f"generator_{index}" for index in range(task.settings.count) if index not in share]
    fit.costs.leave_to_others(others)
    alone = replace(fit, trainers=fit.trainers.apart(device), apart=True)
    with apart(), _recorded(fit, number):
        generators = fit_generators(task, alone, progress, make_callbacks, share)
    counts = exchange((fit.costs.samples_made, fit.costs.teacher_forwards))
    fit.costs.samples_made, fit.costs.teacher_forwards = (sum(values) for values in zip(*counts, strict=True))
    fit.trainers.loggers.pass_on(fit.stage, fit.folder, others)
    return generators


@contextmanager
def _recorded(fit: ResumableFit, number: int) -> Iterator[None]:
    """Continue and record the costs of a process other than rank 0; the store records those of rank 0."""
    if number == 0:
        yield
        return
    file = fit.folder / "checkpoints" / f"process_{number}" / "costs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    earlier = StageCosts.load(file)
    fit.costs.samples_made, fit.costs.teacher_forwards = earlier.samples_made, earlier.teacher_forwards
    with fit.costs.recorded(file):
        yield


def _describe(count: int, processes: int, spread: bool) -> str:
    """Return the sentence about the processes that train the generators."""
    if spread:
        own = ", ".join(str(len(share)) for share in shares(count, processes))
        return f"generators: each of {processes} processes trains its own ({own})"
    return (
        f"generators: all {processes} processes train each generator, on shares of its batches "
        f"(generator.processes=spread: each process trains its own)"
    )


def _make_task(context: RunContext, teacher: nn.Module, count: int) -> GeneratorTask:
    """Return the task of the engine. ``parallel`` depends on networks, device and number of generators per process.

    Raises:
        ConfigError: If ``generator.parallel=vmap`` is set and torch cannot vectorise the networks.
    """
    generator, trainer = context.settings.generator, context.settings.trainer
    objective = {name: term for name, term in generator.objective.items() if term.weight}
    task = GeneratorTask(
        teacher,
        context.input_shape,
        context.device,
        lambda: build(generator.network),
        lambda: build(generator.decoder),
        lambda: build_objective(objective),
        build(generator.optimizer),
        generator,
        trainer.precision,
        (trainer.gradient_clip_val, trainer.gradient_clip_algorithm),
    )
    try:
        task, obstacle = task.choose_parallel(count)
    except ValueError as error:
        raise ConfigError(str(error).replace("parallel='", "generator.parallel='")) from error
    if obstacle is not None:
        context.console.print(
            f"Generators are trained one after the other, since torch cannot vectorise them: {obstacle}"
        )
    return task
