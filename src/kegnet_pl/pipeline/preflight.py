"""What is wrong with the settings of a later stage is told before the first takes its time."""

import torch
from torch import nn

from kegnet_pl.pipeline.context import Config, RunContext, build
from kegnet_pl.pipeline.stages.compression import make_plan
from kegnet_pl.runtime.errors import ConfigError


def check_early(context: RunContext) -> None:
    """Build what later stages will build from their settings, and read the real data that they will read.

    Raises:
        ConfigError: If an optimiser or a plan of compression cannot be built.
        ValueError: If the data is damaged, or has no split to select by.
    """
    config = context.config
    if context.data is not None:
        context.data.setup()
        if config["student"]["selection"] == "real" and config["sources"]:
            context.data.part("val")
    if config["student"]["network"] is None:
        try:
            make_plan(config["compression"])
        except ValueError as error:
            raise ConfigError(f"{error} See compression=...") from error
    trained = {
        "teacher": config["teacher"]["weights"] is None,
        "generator": "kegnet" in config["sources"],
        "student": bool(config["sources"]),
    }
    for part in (part for part, wanted in trained.items() if wanted):
        _check_optimizer(part, config[part]["optimizer"])


def _check_optimizer(part: str, specification: Config) -> None:
    make = build(specification)
    if callable(make):
        try:
            made = make([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"Expected `{part}.optimizer` to be built from its settings, but: {error}") from error
        if isinstance(made, torch.optim.Optimizer):
            return
    raise ConfigError(
        f"Expected `{part}.optimizer` to be a torch.optim.Optimizer, made of its parameters later "
        f"({part}.optimizer._partial_=true), but got {specification}."
    )
