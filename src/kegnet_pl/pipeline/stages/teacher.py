"""The teacher: trained on real data, or read from the user's file."""

import hashlib
from pathlib import Path

import torch
from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.api.weights import load_weights
from kegnet_pl.pipeline.context import (
    Config,
    RunContext,
    build,
    check_network,
    code_of,
    data_settings,
    schedule_of,
    without,
)
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.training import TeacherModule
from kegnet_pl.training.progress import StageProgress


def teacher_stage(context: RunContext) -> tuple[Stage, nn.Module]:
    """Train the teacher on real data, or take it from the user's file."""
    config = context.config["teacher"]
    weights = config["weights"]
    stage = _train_teacher(context) if weights is None else _import_teacher(context, Path(weights))
    return stage, load_network(stage.folder)


def _train_teacher(context: RunContext) -> Stage:
    config, data = context.config["teacher"], context.config["data"]
    assert context.data is not None  # schema.check has seen to it
    parts = ["train", "val"] if config["patience"] is not None else ["train"]
    settings = {
        "teacher": without(config, "name", "weights"),
        "data": data_settings(context.data, data, *parts),
        **context.trained(),
        **code_of(config),
    }

    def make(folder: Path, costs: StageCosts) -> Config:
        seed_everything(derive_seed(context.seed, "teacher") % 2**32, verbose=False)
        network = build(config["network"])
        check_network(network, "teacher", context.input_shape, context.classes)
        module = TeacherModule(network, build(config["optimizer"]), seed=context.seed)
        with StageProgress("teacher", context.console) as progress:
            metrics = context.training.fit(
                module,
                context.data,
                schedule_of(config, select_best=config["patience"] is not None),
                folder,
                stage="teacher",
                names=["teacher"],
                costs=costs,
                work="teacher_training",
                callbacks=[progress],
            )
        if rank() == 0:
            save_network(network, folder, "network", config["network"])
        return metrics

    return context.get_or_build("teacher", settings, [], make, title="teacher", collective=True)


def _import_teacher(context: RunContext, weights: Path) -> Stage:
    config = context.config["teacher"]
    network = build(config["network"])
    check_network(network, "teacher", context.input_shape, context.classes)
    load_weights(network, weights)
    settings = {"network": config["network"], "weights": _digest(network), **code_of(config["network"])}

    def make(folder: Path, costs: StageCosts) -> Config:  # noqa: ARG001
        save_network(network, folder, "network", config["network"])
        context.console.print(f"teacher: read from {weights}")
        return {}

    return context.get_or_build("teacher", settings, [], make, title="teacher")


def _digest(network: nn.Module) -> str:
    """Return a hash of a network's weights, whatever file they were in."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
