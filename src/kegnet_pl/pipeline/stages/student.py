"""The stage of a student: trained on the samples of a source."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kegnet_pl.api.agreement import MOST_UNREACHED
from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.api.engine import fit_student
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.data.synthetic import divide_draw
from kegnet_pl.networks.handling import copy_network, move
from kegnet_pl.pipeline.context import RunContext, training_fingerprint
from kegnet_pl.pipeline.objects import build_optimizer, code_of, own_code, source_definitions
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trainer import ResumableFit, Selection
from kegnet_pl.reporting.names import name_network
from kegnet_pl.reporting.wandb import histogram
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.storage import StorageLimits
from kegnet_pl.settings import RunSettings, StudentSettings
from kegnet_pl.sources import (
    MatchedSource,
    MixedSource,
    SelectedSource,
    SourceInfo,
    SyntheticSource,
    build_source,
    describe_mixture,
)

_OFF = {"reconstruct": False, "oversampling": 1, "matching": 0.0, "mixing": 0.0}
"""Values that turn settings off; stages of earlier versions lack these settings."""


def student_title(source: SourceInfo) -> str:
    """Return the title of the stage of a student."""
    return name_network(f"T+{source.title}")


def student_stage(
    context: RunContext, source: SourceInfo, teacher: Stage, initial: Stage, generators: Stage | None
) -> Stage:
    """Train the initial student on samples of a source, labelled by the teacher.

    ``generators`` is None where the source needs none.
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
        **_parts(student, source, context.input_shape),
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
        data = _make_data(context, student, network, drawn, costs)
        selection = Selection(student.selection != "last", student.patience, student.min_epochs)
        fit = ResumableFit(context.trainers, folder, "student", costs, "student_training", selection)
        module, metrics = fit_student(
            load_network(initial.folder, logits=True, trust=trust), data, student, build_optimizer(student.optimizer),
            fit, context.progress(title), name=source.name, find_lr=student.optimizer.lr == "auto",
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

    parents = [teacher, initial, *([generators] if generators is not None else [])]
    return context.get_or_build("student", settings, parents, make, title=title, collective=True)


def describe_student_source(settings: RunSettings, shares: Mapping[str, float]) -> SourceInfo:
    """Return the description of a student's samples. If the teacher selects them, their prior includes the teacher."""
    info = describe_mixture(shares, settings.source)
    student = settings_for(settings.student, info)
    return info.shaped(student.oversampling, student.matching)


def settings_for(settings: StudentSettings, source: SourceInfo) -> StudentSettings:
    """Return a student's settings: noise and real data are used as they are; noise uses ``baselines``."""
    if source.prior != "none" and not source.is_ceiling:
        return settings
    changes: dict[str, Any] = {"oversampling": 1, "matching": 0.0, "mixing": 0.0}
    if source.prior == "none":
        own = settings.baselines
        optimizer = settings.optimizer.model_copy(update={"lr": own.lr})
        changes |= {
            "samples": own.samples, "epochs": own.epochs, "temperature": own.temperature, "optimizer": optimizer
        }  # fmt: skip
    return settings.model_copy(update=changes)


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


def _parts(student: StudentSettings, source: SourceInfo, input_shape: Sequence[int]) -> dict[str, int]:
    """Return the number of parts in which samples are drawn if there are several, since samples depend on it."""
    parts = len(divide_draw(student.samples, () if source.needs_data else input_shape, student.oversampling))
    return {"parts": parts} if parts > 1 else {}


def make_student_source(
    settings: RunSettings,
    info: SourceInfo,
    teacher: nn.Module,
    generators: Path | None,
    device: torch.device,
    inputs: torch.Tensor | None = None,
    trust: Collection[str] = (),
) -> SyntheticSource:
    """Return the source of a student's samples.

    Args:
        settings: Settings of the run.
        info: Description of the source.
        teacher: Returns logits; selects or matches samples if the settings of the student ask for it.
        generators: Folder of the stage of the generators; None where the source needs none.
        device: Device of the samples.
        inputs: Real training samples ``(N, *input_shape)``, for the source of real data.
        trust: Code that files of generators may name, see :func:`load_network`.
    """
    student, generator, networks = settings_for(settings.student, info), settings.generator, None
    if generators is not None:
        networks = [load_network(generators, f"generator_{index}", trust=trust) for index in range(generator.count)]
    source = build_source(
        info.shares,
        source_definitions(settings, info.shares),
        input_shape=settings.data.input_shape,
        teacher=teacher,
        generators=networks,
        inputs=inputs,
        device=device,
        chunk=generator.batch_size if student.sampling_norm == "batch" else None,
        sampling_norm=student.sampling_norm,
        noise_std=student.noise_std,
    )
    own = move(copy_network(teacher), device) if student.oversampling > 1 or student.matching else teacher
    if student.oversampling > 1:
        source = SelectedSource(source, own, student.oversampling)
    if student.matching:
        source = MatchedSource(source, own, student.matching)
    return MixedSource(source, student.mixing) if student.mixing else source


def _make_data(
    context: RunContext, student: StudentSettings, teacher: nn.Module, source: SyntheticSource, costs: StageCosts
) -> SyntheticDataModule:
    real = context.data if student.selection == "real" else None
    folder = Path(os.environ.get("TMPDIR") or context.store.root)
    storage = StorageLimits(student.memory, folder, context.settings.trainer.devices, context.console.print)
    return SyntheticDataModule(
        source,
        teacher,
        samples=student.samples,
        validation_samples=student.validation_samples if student.selection == "synthetic" else 0,
        real_validation=real.part("val") if real is not None else None,
        batch_size=student.batch_size,
        shuffle=student.shuffle,
        resample_each_epoch=student.resample_each_epoch,
        seed=context.seed,
        device=context.device,
        costs=costs,
        share=True,
        storage=storage,
    )
