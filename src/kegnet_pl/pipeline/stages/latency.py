"""The stage of latency: how long teacher and student take for a batch on this machine."""

from pathlib import Path
from typing import Any

from kegnet_pl.benchmark import LatencyReport, describe_machine, measure_latency
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import StoreError


def measure_stage_latency(context: RunContext, teacher: Stage, initial: Stage) -> LatencyReport | None:
    """Return the latencies of the teacher and of the network of its students, which have one structure.

    Returns:
        A report on ``"teacher"`` and ``"student"``. None if ``latency.batch_sizes`` is empty, or if the store has no
        such stage and none may be built.
    """
    wanted = context.settings.latency
    if not wanted.batch_sizes:
        return None
    settings = {
        "batch_sizes": wanted.batch_sizes,
        "machine": describe_machine(context.device),
        "input_shape": context.input_shape,
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:  # noqa: ARG001
        networks = {"teacher": context.network(teacher), "student": context.network(initial)}
        return measure_latency(
            networks, context.input_shape, batch_sizes=wanted.batch_sizes, device=context.device, seconds=wanted.seconds
        ).to_dict()

    try:
        stage = context.get_or_build("latency", settings, [teacher, initial], make, title=None)
    except StoreError:
        if context.store.resume != "require":
            raise
        return None
    return LatencyReport.from_dict(stage.metrics)
