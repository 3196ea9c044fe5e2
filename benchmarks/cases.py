"""What is measured: the paper's settings for three data sets, from the product's own configuration."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import nn

from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.pipeline.context import Experiment, build
from kegnet_pl.pipeline.configuration import to_plain

ROOT = Path(__file__).parents[1]

EXPERIMENTS = {
    "lenet5": ("mnist_lenet", "option2"),
    "resnet14": ("svhn_resnet", "option2"),
    "mlp": ("letter_mlp", "option1"),
}
"""network -> experiment and compression."""


@dataclass(frozen=True)
class Case(Experiment):
    """One network with the paper's settings.

    Attributes:
        config: The experiment's configuration, plain.
        network: lenet5, resnet14 or mlp.
    """

    network: str

    def teacher(self) -> nn.Module:
        """Return the teacher, untrained: what it costs does not depend on what it knows."""
        torch.manual_seed(1)
        network: nn.Module = build(self.config["teacher"]["network"])
        return network.eval()

    def generator(self, index: int = 0) -> nn.Module:
        """Return one of the generators."""
        torch.manual_seed(10 + index)
        network: nn.Module = build(self.config["generator"]["network"])
        return network

    def decoder(self, index: int = 0) -> nn.Module:
        """Return one of the decoders."""
        torch.manual_seed(20 + index)
        network: nn.Module = build(self.config["generator"]["decoder"])
        return network

    def weight(self, term: str) -> float:
        """Return the weight of a term of the objective."""
        return float(self.config["generator"]["objective"][term]["weight"])

    def student(self) -> nn.Module:
        """Return the compressed teacher, with the ranks that the paper's option finds for the released teacher."""
        plan = self.config["compression"]
        known = {"lenet5": "mnist", "resnet14": "svhn"}.get(self.network)
        rules = [Rule(rule["layers"], rule["rank"]) for rule in plan["rules"]]
        if known is not None:
            found = json.loads((ROOT / "tests" / "parity" / "golden.json").read_text())[known]["evbmf_ranks"]
            rules = [
                Rule(layer, {"in": ranks["in_rank"], "out": ranks["out_rank"]})
                for layer, ranks in found.items()
                if any(rule.matches(layer) for rule in rules)
            ]
        compression = CompressionPlan(rules, None, plan["when_larger"])
        small: nn.Module = compression.apply(self.teacher(), self.input_shape).network
        return small


def make_case(network: str) -> Case:
    """Compose the configuration of one network."""
    experiment, option = EXPERIMENTS[network]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[f"+experiment={experiment}", f"compression={option}"])
        return Case(to_plain(config), network)
