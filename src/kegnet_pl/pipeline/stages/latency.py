"""The stage of latency: how long teacher and student take for a batch on this machine."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kegnet_pl.api.export import export_network, import_onnx
from kegnet_pl.api.quantization import OnnxNetwork
from kegnet_pl.benchmark import LAYOUT, LatencyReport, describe_machine, measure_latency
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
    return _measure(
        context, [teacher, initial], context.device, LAYOUT,
        lambda _: {"teacher": context.network(teacher), "student": context.network(initial)},
    )  # fmt: skip


def measure_quantized_latency(context: RunContext, teacher: Stage, quantized: Sequence[Stage]) -> LatencyReport | None:
    """Return the latencies of the quantised teacher and of a quantised student, in ONNX Runtime on the CPU.

    Speed-ups are relative to the teacher in float32 in ONNX Runtime.

    Args:
        context: The run.
        teacher: Stage of the teacher.
        quantized: Stages of the quantised teacher, and of quantised networks of its students, which have one structure.

    Returns:
        See :func:`measure_stage_latency`; also None if nothing is quantised.
    """
    if not quantized:
        return None

    def make_networks(folder: Path) -> dict[str, nn.Module]:
        (exported,) = export_network(context.network(teacher), folder, context.input_shape, ["onnx"])
        first, last = context.network(quantized[0]), context.network(quantized[-1])
        return {"float32": OnnxNetwork(exported.path), "teacher": first, "student": last}

    parents = [teacher, quantized[0], quantized[-1]]
    return _measure(context, parents, torch.device("cpu"), {"runtime": import_onnx().__version__}, make_networks)


def _measure(
    context: RunContext,
    parents: Sequence[Stage],
    device: torch.device,
    runtime: Mapping[str, Any],
    make_networks: Callable[[Path], Mapping[str, nn.Module]],
) -> LatencyReport | None:
    wanted = context.settings.latency
    if not wanted.batch_sizes:
        return None
    settings = {
        "batch_sizes": wanted.batch_sizes,
        "machine": describe_machine(device),
        "input_shape": context.input_shape,
        **runtime,
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:  # noqa: ARG001
        with tempfile.TemporaryDirectory() as name:
            networks = make_networks(Path(name))
            return measure_latency(
                networks, context.input_shape, batch_sizes=wanted.batch_sizes, device=device, seconds=wanted.seconds
            ).to_dict()

    try:
        stage = context.get_or_build("latency", settings, parents, make, title=None)
    except StoreError:
        if context.store.resume != "require":
            raise
        return None
    return LatencyReport.from_dict(stage.metrics)
