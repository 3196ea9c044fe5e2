"""The stage of compression: the teacher compressed, or another network, before any training."""

import json
from pathlib import Path
from typing import Any

from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.checks import describe_comparison
from kegnet_pl.api.engine import fit_compression
from kegnet_pl.benchmark import LAYOUT, describe_machine
from kegnet_pl.compression import Compressed, measure_size
from kegnet_pl.networks.foreign import recipe_of
from kegnet_pl.networks.handling import copy_network, move
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.objects import build, code_of, make_plan, source_definitions
from kegnet_pl.pipeline.preflight import check_network
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.warnings import warn_before_training
from kegnet_pl.reporting.wandb import compression_table
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.seeds import seeded
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SourceInfo, build_source, describe_mixture


def compression_stage(context: RunContext, teacher: Stage) -> Stage:
    """Compress the teacher, or build another network."""
    other, plan = context.settings.student.network, context.settings.compression
    if other is not None:
        settings: dict[str, Any] = {"network": other, "seed": context.seed, **code_of(other)}
    else:
        settings = {"compression": plan.fingerprint(), "input_shape": context.input_shape}
        if plan.by == "latency":
            settings["machine"] = describe_machine(context.device) | LAYOUT
        if plan.fit == "function":
            definitions = source_definitions(context.settings, plan.source)
            settings |= {"seed": context.seed, "definitions": definitions, **code_of(definitions)}

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with costs.measure("compression"):
            if other is not None:
                with seeded(context.seed, "student"):
                    network = build(other)
                network = check_network(network, "student", context)
                save_network(network, folder, "network", recipe_of(network, other))
            else:
                compressed = _compress(context, teacher, folder)
                network = compressed.network
                found = {} if compressed.agreement is None else {"agreement": compressed.agreement}
                found |= {"held_out": compressed.held_out} if compressed.held_out else {}
                if plan.method == "auto":
                    found |= {"method": compressed.method, "compared": dict(compressed.compared)}
            size = measure_size(network, context.input_shape)
        return {"parameters": size.parameters, "macs": size.macs, **found}

    stage = context.get_or_build("compression", settings, [teacher], make, title="compression")
    if "compared" in stage.metrics:
        found = stage.metrics
        line = describe_comparison(found["method"], found["compared"], found.get("held_out", 0))
        context.console.print(line, soft_wrap=True)
    if context.settings.sources:
        context.warn(warn_before_training(context.settings, stage))
    return stage


def describe_compression_source(settings: RunSettings) -> SourceInfo | None:
    """Return the description of the samples that the compression uses, None where it depends on weights alone.

    Raises:
        ConfigError: If the source needs generators, which are trained later, or is real data.
    """
    plan = settings.compression
    if plan.fit == "weights" or settings.student.network is not None:
        return None
    info = describe_mixture(plan.source, settings.source)
    if info.needs_generators:
        raise ConfigError(
            f"Expected `compression.source` to be a source without generators, since the compression runs before "
            f"generator training, but got {info.name}. Use compression.source=procedural."
        )
    if info.is_ceiling:
        raise ConfigError(
            f"Expected `compression.source` to be a source without real data, since real data is only used for a "
            f"ceiling, but got {info.name}. Use compression.source=procedural."
        )
    return info.shaped(plan.oversampling, plan.matching)


def _compress(context: RunContext, teacher: Stage, folder: Path) -> Compressed:
    plan = context.settings.compression
    network, source = context.network(teacher), None
    if plan.fit == "function":
        network = move(copy_network(network), context.device)
        source = build_source(
            plan.source, source_definitions(context.settings, plan.source), input_shape=context.input_shape,
            teacher=network, device=context.device,
        )  # fmt: skip
    progress = context.progress("compression")
    compressed = fit_compression(
        network, context.input_shape, make_plan(plan), progress, source, plan.samples, plan.oversampling, plan.matching,
        context.seed,
    )  # fmt: skip
    compressed.network.cpu()
    save_network(compressed.network, folder, "network", recipe_of(network, context.settings.teacher.network))
    atomic_write(folder / "compression.json", json.dumps(compressed.report.to_dict(), indent=2))
    context.loggers.show("compression", "compression", folder, lambda: {"layers": compression_table(compressed.report)})
    return compressed
