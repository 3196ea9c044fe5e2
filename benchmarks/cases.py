"""Cases of the benchmarks: the paper's settings for three data sets, from the product's own configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import nn

from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.objects import build
from kegnet_pl.settings import RunSettings

ROOT = Path(__file__).parents[1]

EXPERIMENTS = {
    "lenet5": ("mnist_lenet", "option2"),
    "resnet14": ("svhn_resnet", "option2"),
    "mlp": ("letter_mlp", "option1"),
}
"""network -> experiment and compression."""


@dataclass(frozen=True)
class Case:
    """One network with the paper's settings.

    Attributes:
        settings: Settings of the experiment.
        network: lenet5, resnet14 or mlp.
    """

    settings: RunSettings
    network: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.settings.data.input_shape)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.settings.data.classes

    def _build(self, specification: dict[str, Any], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network: nn.Module = build(specification)
        return network

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: its cost does not depend on its weights."""
        return self._build(self.settings.teacher.network, 1).eval()

    def generator(self, index: int = 0) -> nn.Module:
        """Return one of the generators."""
        return self._build(self.settings.generator.network, 10 + index)

    def decoder(self, index: int = 0) -> nn.Module:
        """Return one of the decoders."""
        return self._build(self.settings.generator.decoder, 20 + index)

    def weight(self, term: str) -> float:
        """Return the weight of a term of the objective."""
        return self.settings.generator.objective[term].weight

    def student(self) -> nn.Module:
        """Return the compressed teacher, with the ranks that the paper's option finds for the released teacher."""
        plan = self.settings.compression
        known = {"lenet5": "mnist", "resnet14": "svhn"}.get(self.network)
        rules = [Rule(rule.layers, rule.rank) for rule in plan.rules or []]
        if known is not None:
            found = json.loads((ROOT / "tests" / "parity" / "golden.json").read_text())[known]["evbmf_ranks"]
            rules = [
                Rule(layer, {"in": ranks["in_rank"], "out": ranks["out_rank"]})
                for layer, ranks in found.items()
                if any(rule.matches(layer) for rule in rules)
            ]
        compression = CompressionPlan(rules, None, plan.when_larger)
        small: nn.Module = compression.apply(self.teacher(), self.input_shape).network
        return small


def make_case(network: str) -> Case:
    """Compose the configuration of one network."""
    experiment, option = EXPERIMENTS[network]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[f"experiment=strict/{experiment}", f"compression={option}"])
        return Case(RunSettings.from_config(to_plain(config)), network)
