"""The student before any training: the teacher compressed, or another network."""

import json
from pathlib import Path

from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.artefacts import save_network
from kegnet_pl.compression import CompressionPlan, Rule, measure_cost
from kegnet_pl.costs import Costs
from kegnet_pl.files import write_whole
from kegnet_pl.reporting.wandb_objects import ledger_table
from kegnet_pl.seeds import derive_seed
from kegnet_pl.stages.workshop import Config, Workshop, build, check_network, code_of, without
from kegnet_pl.store import Stage


def compression_stage(shop: Workshop, teacher: Stage, network: nn.Module) -> Stage:
    """Compress the teacher, or build another network: the student before any training."""
    other = shop.config["student"]["network"]
    plan_config = shop.config["compression"]
    if other is not None:
        settings: Config = {"network": other, "seed": shop.seed, **code_of(other)}
    else:
        settings = {"compression": without(plan_config, "name"), "input_shape": shop.input_shape}

    def make(folder: Path, costs: Costs) -> Config:
        with costs.measure("compression"):
            return compress(folder)

    def compress(folder: Path) -> Config:
        if other is not None:
            seed_everything(derive_seed(shop.seed, "student") % 2**32, verbose=False)
            student = build(other)
            check_network(student, "student", shop.input_shape, shop.classes)
            save_network(student, folder, "network", other)
            return _cost(student, shop.input_shape)
        compressed = make_plan(plan_config).apply(network, shop.input_shape)
        recipe = shop.config["teacher"]["network"]
        save_network(compressed.network, folder, "network", recipe, compressed.ledger.ranks)
        write_whole(folder / "ledger.json", json.dumps(compressed.ledger.to_dict(), indent=2))
        shop.training.loggers.show("compression", folder, lambda: {"ledger": ledger_table(compressed.ledger)})
        return _cost(compressed.network, shop.input_shape)

    return shop.obtain("compression", settings, [teacher], make, title="compression")


def make_plan(config: Config) -> CompressionPlan:
    """Return the plan that ``compression`` describes.

    Raises:
        ValueError: If a setting is out of range.
    """
    rules = [Rule(rule["layers"], rule["rank"]) for rule in config["rules"]]
    return CompressionPlan(rules, config["target"], config["when_larger"])


def _cost(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    cost = measure_cost(network, input_shape)
    return {"parameters": cost.parameters, "macs": cost.macs}
