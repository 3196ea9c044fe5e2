"""The stage of a student: trained on the samples of a source."""

import json
from pathlib import Path
from typing import Any

from kegnet_pl.api.agreement import MOST_UNREACHED
from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.api.engine import fit_student
from kegnet_pl.pipeline.context import RunContext, training_fingerprint
from kegnet_pl.pipeline.objects import build_optimizer, code_of, own_code, source_definitions
from kegnet_pl.pipeline.stages.samples import (
    UNCHANGED,
    count_parts,
    load_samples,
    make_student_data,
    make_student_source,
    settings_for,
)
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trainer import ResumableFit, Selection
from kegnet_pl.reporting.names import name_network
from kegnet_pl.reporting.wandb import histogram
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.manifests import UNFINISHED
from kegnet_pl.settings import StudentSettings
from kegnet_pl.sources import SourceInfo

_OFF = {"reconstruct": False, **UNCHANGED}
"""Values that turn settings off; stages of earlier versions lack these settings."""


def student_title(source: SourceInfo) -> str:
    """Return the title of the stage of a student."""
    return name_network(f"T+{source.title}")


def student_stage(
    context: RunContext,
    source: SourceInfo,
    teacher: Stage,
    initial: Stage,
    generators: Stage | None,
    samples: Stage | None,
) -> Stage:
    """Train the initial student on samples of a source, labelled by the teacher.

    ``generators`` is None where the source needs none. ``samples`` is None if this stage draws the samples.
    """
    student = settings_for(context.settings.student, source)
    definitions = source_definitions(context.settings, source.shares)
    real = [*(["train"] if source.needs_data else []), *(["val"] if student.selection == "real" else [])]
    settings = {
        "student": _decisive_settings(student, source),
        "source": {"shares": source.shares, "definitions": definitions, **code_of(definitions)},
        **code_of(student.optimizer),
        "input_shape": context.input_shape,
        "seed": context.seed,
        **count_parts(student, source, context.input_shape),
        **training_fingerprint(context.settings),
        **({"data": context.data_fingerprint(*real)} if real else {}),
    }
    title = student_title(source)

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        network = context.network(teacher)
        inputs = context.data.part("train").x if source.needs_data and context.data is not None else None
        trust = own_code(context.settings)
        folder_of_generators = None if generators is None else generators.folder
        drawn = make_student_source(
            context.settings, source, network, folder_of_generators, context.device, inputs, trust
        )
        data = make_student_data(context, student, network, drawn, costs)
        if samples is not None:
            data.use(load_samples(samples.folder))
        selection = Selection(student.selection != "last", student.patience, student.min_epochs)
        fit = ResumableFit(context.trainers, folder, "student", costs, "student_training", selection)
        module, metrics = fit_student(
            load_network(initial.folder, logits=True, trust=trust), data, student, build_optimizer(student.optimizer),
            fit, context.progress(title), name=source.name, find_lr=student.optimizer.lr == "auto",
            trials_file=folder / UNFINISHED[0] / "learning_rates.json",
        )  # fmt: skip
        costs.teacher_forwards += module.teacher_forwards
        if rank() == 0:
            recipe = json.loads((initial.folder / "network.json").read_text())
            save_network(module.network, folder, "network", recipe["network"])
        entropies = data.label_entropies()
        context.loggers.show("student", source.name, folder, lambda: {"labels/entropies": histogram(entropies)})
        unreached = data.unreached_classes()
        return metrics | {
            "label_entropy": float(entropies.mean()), "label_information": data.label_information(),
            "unreached_classes": len(unreached), "unreached": unreached[:MOST_UNREACHED],
        }  # fmt: skip

    parents = [teacher, initial, *(stage for stage in (generators, samples) if stage is not None)]
    return context.get_or_build("student", settings, parents, make, title=title, collective=True)


def _decisive_settings(settings: StudentSettings, source: SourceInfo) -> dict[str, Any]:
    """Return the settings that the result of a student depends on."""
    idle = {"baselines"}
    if not source.needs_generators:
        idle |= {"sampling_norm", "noise_std"}
    if settings.selection != "synthetic":
        idle.add("validation_samples")
    idle |= {name for name, off in _OFF.items() if getattr(settings, name) == off}
    if not settings.feature_distillation.weight:
        idle.add("feature_distillation")
    return {name: value for name, value in settings.fingerprint().items() if name not in idle}
