"""The teacher: trained on real data, or read from the user's file."""

import hashlib
from pathlib import Path

import torch
from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.artefacts import load_network, save_network
from kegnet_pl.costs import Costs
from kegnet_pl.modules import TeacherModule
from kegnet_pl.progress import StageProgress
from kegnet_pl.ranks import rank
from kegnet_pl.seeds import derive_seed
from kegnet_pl.stages.workshop import (
    Config,
    Workshop,
    build,
    check_network,
    code_of,
    data_settings,
    schedule_of,
    without,
)
from kegnet_pl.store import Stage
from kegnet_pl.weights import load_weights


def teacher_stage(shop: Workshop) -> tuple[Stage, nn.Module]:
    """Train the teacher on real data, or take it from the user's file."""
    config = shop.config["teacher"]
    weights = config["weights"]
    stage = _train_teacher(shop) if weights is None else _import_teacher(shop, Path(weights))
    return stage, load_network(stage.folder)


def _train_teacher(shop: Workshop) -> Stage:
    config, data = shop.config["teacher"], shop.config["data"]
    assert shop.data is not None  # schema.check has seen to it
    parts = ["train", "val"] if config["patience"] is not None else ["train"]
    settings = {
        "teacher": without(config, "name", "weights"),
        "data": data_settings(shop.data, data, *parts),
        **shop.trained(),
        **code_of(config),
    }

    def make(folder: Path, costs: Costs) -> Config:
        seed_everything(derive_seed(shop.seed, "teacher") % 2**32, verbose=False)
        network = build(config["network"])
        check_network(network, "teacher", shop.input_shape, shop.classes)
        module = TeacherModule(network, build(config["optimizer"]), seed=shop.seed)
        with StageProgress("teacher", shop.console) as progress:
            metrics = shop.training.fit(
                module,
                shop.data,
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

    return shop.obtain("teacher", settings, [], make, title="teacher", collective=True)


def _import_teacher(shop: Workshop, weights: Path) -> Stage:
    config = shop.config["teacher"]
    network = build(config["network"])
    check_network(network, "teacher", shop.input_shape, shop.classes)
    load_weights(network, weights)
    settings = {"network": config["network"], "weights": _digest(network), **code_of(config["network"])}

    def make(folder: Path, costs: Costs) -> Config:  # noqa: ARG001
        save_network(network, folder, "network", config["network"])
        shop.console.print(f"teacher: read from {weights}")
        return {}

    return shop.obtain("teacher", settings, [], make, title="teacher")


def _digest(network: nn.Module) -> str:
    """Return a hash of a network's weights, whatever file they were in."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
