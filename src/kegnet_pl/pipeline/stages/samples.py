"""The samples of students: their sources, and the stage that keeps matched samples for several students."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kegnet_pl.api.checkpoints import damaged_stage, load_network
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.data.synthetic import divide_draw
from kegnet_pl.networks.handling import copy_network, move
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.objects import code_of, own_code, source_definitions
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.manifests import DamagedError, check_parts
from kegnet_pl.runtime.progress import listen_to_progress
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

FILE_NAME = "samples.safetensors"
"""File in the folder of a stage of samples: ``x`` and ``logits`` of each split, as ``SPLIT/x`` and ``SPLIT/logits``."""

UNCHANGED: dict[str, Any] = {"oversampling": 1, "matching": 0.0, "mixing": 0.0}
"""Settings with which a student learns from the samples as they are drawn."""


def samples_title(source: SourceInfo) -> str:
    """Return the title of the stage of a source's samples."""
    return f"samples ({source.title})"


def are_kept(settings: RunSettings, source: SourceInfo) -> bool:
    """Return True if the samples of a student are a stage of their own.

    Matching takes minutes to hours, and matched samples do not depend on the compression or the training. As a stage,
    they are drawn once for all runs that need them, and a resumed run does not draw them again. Sets of more than 1 GiB
    would need much room in the store, so they are no stage.
    """
    student = settings_for(settings.student, source)
    return bool(student.matching) and len(divide_draw(student.samples, settings.data.input_shape)) == 1


def samples_stage(context: RunContext, source: SourceInfo, teacher: Stage, generators: Stage | None) -> Stage:
    """Draw the samples of a student and label them; see :func:`are_kept`.

    ``generators`` is None where the source needs none.
    """
    student = settings_for(context.settings.student, source)
    definitions = source_definitions(context.settings, source.shares)
    settings = {
        "samples": _drawn_settings(student, source),
        "source": {"shares": source.shares, "definitions": definitions, **code_of(definitions)},
        "input_shape": context.input_shape,
        "seed": context.seed,
        **count_parts(student, source, context.input_shape),
    }
    title = samples_title(source)

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        network = context.network(teacher)
        drawn = make_student_source(
            context.settings, source, network, None if generators is None else generators.folder, context.device,
            trust=own_code(context.settings),
        )  # fmt: skip
        data = make_student_data(context, student, network, drawn, costs)
        data.real_validation = None  # it is not drawn
        with context.progress(title) as bar, listen_to_progress(bar.move_to):
            data.setup()
        if rank() == 0:
            tensors = {
                f"{split}/{name}": tensor.cpu().contiguous()
                for split, pair in data.splits.items()
                for name, tensor in zip(("x", "logits"), pair, strict=True)
            }
            atomic_write(folder / FILE_NAME, save(tensors))
        return {"samples": {split: len(x) for split, (x, _) in data.splits.items()}}

    parents = [teacher, *([generators] if generators is not None else [])]
    return context.get_or_build("samples", settings, parents, make, title=title, collective=True)


def load_samples(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return samples ``(N, *input_shape)`` and the teacher's logits ``(N, C)`` of a stage, by split.

    Raises:
        WeightsError: If the file differs from the stage's manifest.
    """
    try:
        check_parts(folder, [FILE_NAME])
    except DamagedError as error:
        raise damaged_stage(folder, error) from error
    tensors = load_file(folder / FILE_NAME)
    return {
        split: (tensors[f"{split}/x"], tensors[f"{split}/logits"])
        for split in ("train", "val")
        if f"{split}/x" in tensors
    }


def _drawn_settings(student: StudentSettings, source: SourceInfo) -> dict[str, Any]:
    """Return the settings of a student that its samples depend on."""
    names = ["samples"]
    names += ["validation_samples"] if student.selection == "synthetic" else []
    names += ["sampling_norm", "noise_std"] if source.needs_generators else []
    names += [name for name, off in UNCHANGED.items() if getattr(student, name) != off]
    return {name: getattr(student, name) for name in names}


def describe_student_source(settings: RunSettings, shares: Mapping[str, float]) -> SourceInfo:
    """Return the description of a student's samples. If the teacher selects them, their prior includes the teacher."""
    info = describe_mixture(shares, settings.source)
    student = settings_for(settings.student, info)
    return info.shaped(student.oversampling, student.matching)


def settings_for(settings: StudentSettings, source: SourceInfo) -> StudentSettings:
    """Return a student's settings: noise and real data are used as they are; noise uses ``baselines``."""
    if source.prior != "none" and not source.is_ceiling:
        return settings
    changes = dict(UNCHANGED)
    if source.prior == "none":
        own = settings.baselines
        optimizer = settings.optimizer.model_copy(update={"lr": own.lr})
        changes |= {
            "samples": own.samples, "epochs": own.epochs, "temperature": own.temperature, "optimizer": optimizer
        }  # fmt: skip
    return settings.model_copy(update=changes)


def count_parts(student: StudentSettings, source: SourceInfo, input_shape: Sequence[int]) -> dict[str, int]:
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


def make_student_data(
    context: RunContext, student: StudentSettings, teacher: nn.Module, source: SyntheticSource, costs: StageCosts
) -> SyntheticDataModule:
    """Return the data module of a student, before it draws samples."""
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
