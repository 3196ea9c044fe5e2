"""The student before any training: the teacher compressed, or another network."""

import json
from pathlib import Path

from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.compression import CompressionPlan, Rule, measure_size
from kegnet_pl.pipeline.context import Config, RunContext, build, check_network, code_of, without
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.reporting.wandb import compression_table
from kegnet_pl.runtime.atomic_files import write_whole
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.seeds import derive_seed


def compression_stage(context: RunContext, teacher: Stage, network: nn.Module) -> Stage:
    """Compress the teacher, or build another network: the student before any training."""
    other = context.config["student"]["network"]
    plan_config = context.config["compression"]
    if other is not None:
        settings: Config = {"network": other, "seed": context.seed, **code_of(other)}
    else:
        settings = {"compression": without(plan_config, "name"), "input_shape": context.input_shape}

    def make(folder: Path, costs: StageCosts) -> Config:
        with costs.measure("compression"):
            return compress(folder)

    def compress(folder: Path) -> Config:
        if other is not None:
            seed_everything(derive_seed(context.seed, "student") % 2**32, verbose=False)
            student = build(other)
            check_network(student, "student", context.input_shape, context.classes)
            save_network(student, folder, "network", other)
            return _cost(student, context.input_shape)
        compressed = make_plan(plan_config).apply(network, context.input_shape)
        recipe = context.config["teacher"]["network"]
        save_network(compressed.network, folder, "network", recipe, compressed.report.ranks)
        write_whole(folder / "compression.json", json.dumps(compressed.report.to_dict(), indent=2))
        context.training.loggers.show("compression", folder, lambda: {"layers": compression_table(compressed.report)})
        return _cost(compressed.network, context.input_shape)

    return context.get_or_build("compression", settings, [teacher], make, title="compression")


def make_plan(config: Config) -> CompressionPlan:
    """Return the plan that ``compression`` describes.

    Raises:
        ValueError: If a setting is out of range.
    """
    rules = [Rule(rule["layers"], rule["rank"]) for rule in config["rules"]]
    return CompressionPlan(rules, config["target"], config["when_larger"])


def _cost(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    cost = measure_size(network, input_shape)
    return {"parameters": cost.parameters, "macs": cost.macs}
