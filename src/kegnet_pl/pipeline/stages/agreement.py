"""The stage of agreement: how often a student and its teacher give the same class to synthetic samples."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kegnet_pl.api.agreement import AgreementReport, compare, default_sources, draw
from kegnet_pl.api.evaluation import find_logits
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.objects import code_of, source_definitions
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import ConfigError, StoreError
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SourceInfo, build_source, describe_source
from kegnet_pl.sources.registry import find_related

_SEED = 0
"""Seed of the samples, the same in all runs, so that runs can be compared."""


def agreement_stages(context: RunContext, teacher: Stage, students: Sequence[Stage]) -> list[Stage | None]:
    """Measure the agreement of each student with the teacher; all are compared on the same samples.

    Returns:
        None for each student if ``agreement.sources`` is empty, or if the store has no such stage and none may be
        built.
    """
    names, count = find_sources(context.settings), context.settings.agreement.samples
    definitions = source_definitions(context.settings, names)
    settings = {
        "sources": names,
        "definitions": definitions,
        **code_of(definitions),
        "samples": count,
        "seed": _SEED,
        "input_shape": context.input_shape,
    }

    @functools.cache
    def samples() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        network, drawn = context.network(teacher), {}
        for name in names:
            source = build_source(
                {name: 1.0}, definitions, input_shape=context.input_shape, teacher=network, device=context.device
            )
            drawn[name] = draw(source, count, _SEED)
        return drawn, {name: find_logits(network, x, context.device) for name, x in drawn.items()}

    def measure(student: Stage) -> Stage | None:
        def make(folder: Path, costs: StageCosts) -> dict[str, Any]:  # noqa: ARG001
            with costs.measure("evaluation"):
                return compare(context.network(student), *samples(), device=context.device).to_dict()

        try:
            return context.get_or_build("agreement", settings, [teacher, student], make, title=None)
        except StoreError:
            if context.store.resume != "require":
                raise
            return None

    return [measure(student) if names else None for student in students]


def describe_agreements(
    context: RunContext, measured: Sequence[tuple[Stage | None, Sequence[SourceInfo]]]
) -> list[dict[str, Any] | None]:
    """Return the agreement of networks in the form of rows of results.

    The mean is over sources that were used for none of the networks of the run, so the networks can be compared.
    Without such a source, it is over the sources that were not used for the network itself.

    Args:
        context: Context of the run.
        measured: For each network, its agreement and the sources that were used to compress and train it.
    """
    names = find_sources(context.settings)
    own = [
        find_related({name for info in sources for name in info.shares}, context.input_shape) for _, sources in measured
    ]
    common = set(names).difference(*own)
    return [
        None
        if stage is None
        else AgreementReport.from_dict(stage.metrics).describe(used, common or set(names).difference(used))
        for (stage, _), used in zip(measured, own, strict=True)
    ]


def find_sources(settings: RunSettings) -> list[str]:
    """Return the names of the sources of a run for the agreement of students with their teacher."""
    named = settings.agreement.sources
    return list(default_sources(settings.data.input_shape) if named is None else named)


def check_agreement_sources(settings: RunSettings) -> None:
    """Check the sources for the agreement of students with their teacher.

    Raises:
        ConfigError: If one needs generators, or is real data.
    """
    for name in find_sources(settings):
        info = describe_source(name, settings.source.get(name))
        if info.needs_generators or info.is_ceiling:
            raise ConfigError(
                f"Expected `agreement.sources` without generators and without real data, but got {name}. Use "
                f"'agreement.sources=[procedural,fields,normal]'."
            )
