"""The stage of the generators: trained against the frozen teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.engine import GeneratorTask, fit_generators
from kegnet_pl.pipeline.context import RunContext, training_fingerprint
from kegnet_pl.pipeline.objects import build, build_objective, code_of
from kegnet_pl.pipeline.sample_monitor import SampleMonitor
from kegnet_pl.pipeline.stages.pictures import draw_samples, draw_walk
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trainer import ResumableFit
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.seeds import derive_seed

SHEETS = "sheets"
"""Folder of the sheets that were drawn while generators trained."""


def generators_stage(context: RunContext, teacher: Stage) -> Stage:
    """Train the generators against the frozen teacher."""
    generator = context.settings.generator
    task = _make_task(context, context.network(teacher))
    decided = generator.model_copy(update={"parallel": task.settings.parallel})
    settings = {
        "generator": decided.fingerprint(),
        "input_shape": context.input_shape,
        "classes": context.classes,
        **training_fingerprint(context.settings),
        **code_of(generator),
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        def make_callbacks(names: Sequence[str], network: nn.Module) -> list[SampleMonitor]:
            seed = derive_seed(generator.seed, "sheet")
            return [SampleMonitor(task.teacher, network, names, folder / SHEETS, seed, costs, generator.batch_size)]

        fit = ResumableFit(context.trainers, folder, "generators", costs, "generator_training")
        generators = fit_generators(task, fit, context.progress("generators"), make_callbacks)
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


def _make_task(context: RunContext, teacher: nn.Module) -> GeneratorTask:
    """Return the task of the engine; ``parallel`` is decided for the networks and the device.

    Raises:
        ConfigError: If they shall be and torch cannot vectorise them.
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
        task, obstacle = task.choose_parallel()
    except ValueError as error:
        raise ConfigError(str(error).replace("parallel='", "generator.parallel='")) from error
    if obstacle is not None:
        context.console.print(
            f"Generators are trained one after the other, since torch cannot vectorise them: {obstacle}"
        )
    return task
