"""The stage of the teacher: trained on real data, or read from the user's file."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.weights import load_weights
from kegnet_pl.networks import answers_of, explain_answers, value_range_of
from kegnet_pl.networks.execution import first_weight
from kegnet_pl.networks.foreign import recipe_of
from kegnet_pl.networks.handling import to_float32
from kegnet_pl.pipeline.context import RunContext, training_fingerprint
from kegnet_pl.pipeline.objects import build, code_of
from kegnet_pl.pipeline.preflight import check_network
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trainer import ResumableFit, Selection
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.seeds import seeded
from kegnet_pl.training import TeacherModule


def teacher_stage(context: RunContext) -> Stage:
    """Train the teacher on real data, or read it from the user's file or library."""
    teacher = context.settings.teacher
    if not teacher.is_given:
        return _train_teacher(context)
    return _read_teacher(context, None if teacher.weights is None else Path(teacher.weights))


def _train_teacher(context: RunContext) -> Stage:
    teacher = context.settings.teacher
    best = teacher.patience is not None
    with seeded(context.seed, "teacher"):
        network = _build_teacher(context)
    settings = {
        "teacher": teacher.fingerprint(),
        "data": context.data_fingerprint("train", *(["val"] if best else [])),
        "seed": context.seed,
        **training_fingerprint(context.settings),
        **code_of(teacher),
        **_interface(network),
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        selection = Selection(best, teacher.patience, teacher.min_epochs)
        fit = ResumableFit(context.trainers, folder, "teacher", costs, "teacher_training", selection)
        module = TeacherModule(network, build(teacher.optimizer), seed=context.seed)
        with context.progress("teacher") as progress:
            metrics = fit(module, context.data, name="teacher", epochs=teacher.epochs, callbacks=[progress])
        if rank() == 0:
            save_network(network, folder, "network", recipe_of(network, teacher.network))
        return metrics

    return context.get_or_build("teacher", settings, [], make, title="teacher", collective=True)


def _read_teacher(context: RunContext, weights: Path | None) -> Stage:
    teacher = context.settings.teacher
    network = _build_teacher(context, weights)
    settings = {
        "network": teacher.network,
        "weights": _digest(network),
        **code_of(teacher.network),
        **_interface(network),
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:  # noqa: ARG001
        save_network(network, folder, "network", recipe_of(network, teacher.network))
        origin = teacher.path or teacher.name if weights is None else weights
        context.console.print(f"{context.label('teacher')}: read from {origin}")
        return {}

    return context.get_or_build("teacher", settings, [], make, title="teacher")


def _build_teacher(context: RunContext, weights: Path | None = None) -> nn.Module:
    """Return the teacher, with the weights of a file if there is one; it returns logits.

    Raises:
        ConfigError: If it does not accept the data, or does not return logits of this number of classes.
    """
    teacher, title = context.settings.teacher, context.label("teacher")
    network: nn.Module = build(teacher.network)
    dtype = first_weight(network).dtype
    if dtype != torch.float32:
        context.console.print(f"{title}: weights are converted from {str(dtype).removeprefix('torch.')} to float32")
        to_float32(network)
    check = functools.partial(check_network, network, "teacher", context, teacher.outputs, teacher.output_key)
    if weights is not None:
        check()
        load_weights(network, weights)
    network = check()
    if teacher.is_given or answers_of(network) is not None:
        context.console.print(f"{title}: {explain_answers(network)} If this is wrong, set teacher.outputs.")
    return network


def _interface(network: nn.Module) -> dict[str, Any]:
    """Return the hooks that convert the inputs and outputs of a network, for a fingerprint; empty without any."""
    hooks = {"answers": answers_of(network), "inputs": value_range_of(network)}
    return {name: hook.to_dict() for name, hook in hooks.items() if hook is not None}


def _digest(network: nn.Module) -> str:
    """Return a hash of a network's weights, independent of their file."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
