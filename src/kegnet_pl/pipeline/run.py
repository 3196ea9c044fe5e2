"""The run: teacher -> generators -> synthetic data -> students -> report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kegnet_pl.pipeline.context import RunContext, open_context
from kegnet_pl.pipeline.outputs import Network, describe_networks, write_outputs
from kegnet_pl.pipeline.preflight import check_before, check_inputs, check_sources, check_teacher_and_student
from kegnet_pl.pipeline.preset import describe_time, estimate_seconds
from kegnet_pl.pipeline.stages.agreement import agreement_stages, check_agreement_sources
from kegnet_pl.pipeline.stages.compression import compression_stage, describe_compression_source
from kegnet_pl.pipeline.stages.evaluation import evaluation_stage
from kegnet_pl.pipeline.stages.generators import generators_stage
from kegnet_pl.pipeline.stages.latency import measure_quantized_latency, measure_stage_latency
from kegnet_pl.pipeline.stages.quantization import (
    describe_quantization_source,
    quantization_stage,
    quantize_networks,
)
from kegnet_pl.pipeline.stages.samples import are_kept, describe_student_source, samples_stage, samples_title
from kegnet_pl.pipeline.stages.student import student_stage, student_title
from kegnet_pl.pipeline.stages.teacher import teacher_stage
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.warnings import warn_of_teacher
from kegnet_pl.reporting.results import Row, find_last
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SourceInfo


def run(
    config: Mapping[str, Any],
    folder: Path,
    *,
    settings: RunSettings | None = None,
    terminal: Console | None = None,
    gpu: int | None = None,
    estimate: bool = False,
) -> float | tuple[float, ...] | None:
    """Run the pipeline.

    Args:
        config: A resolved configuration of plain values; with ``settings``, it is used only for records.
        folder: Folder of the run's results.
        settings: The same, typed; None to check the configuration here.
        terminal: Gets one line of the result, for a job of a sweep; the rest is in ``output.txt`` in the folder. None
            to print everything.
        gpu: Index of the GPU that is reserved for this run; None for the first.
        estimate: True to print the expected time, after the teacher and the data are checked.

    Returns:
        The value of the setting ``objective``, with which a sweeper compares runs, for the last network that is not a
        ceiling. It is the test accuracy in [0, 1] (None without test data), the agreement with the teacher, or both
        agreement and speed-up.

    Raises:
        UserError: If something is wrong that the user can repair.
        ValueError: If a source cannot be found, or networks and data do not fit.
    """
    settings = settings or RunSettings.from_config(config)
    sources = [describe_student_source(settings, shares) for shares in settings.sources]
    check_sources(settings, sources)
    check_agreement_sources(settings)
    compression_source = describe_compression_source(settings)
    needs_generators = any(source.needs_generators for source in sources)
    calibration = describe_quantization_source(settings, generators=needs_generators)
    others = [info for info in (compression_source, calibration) if info is not None]
    needs_data = any(source.needs_data for source in (*sources, *others))
    titles = ["teacher", "compression", *(["generators"] if needs_generators else [])]
    for source in sources:
        titles += [*([samples_title(source)] if are_kept(settings, source) else []), student_title(source)]
    titles.append("evaluation")
    context = open_context(settings, config, folder, terminal, gpu, titles=titles, needs_data=needs_data)
    check_before(context, sources, others)
    with context.loggers.running():
        rows = _run_stages(context, sources, compression_source, calibration, estimate)
    return find_objective(find_last(rows), settings.objective)


def _run_stages(
    context: RunContext,
    sources: Sequence[SourceInfo],
    compression_source: SourceInfo | None,
    calibration: SourceInfo | None,
    estimate: bool,
) -> list[Row]:
    """Run the stages, write the outputs, and return the rows of results."""
    settings, needs_generators = context.settings, any(source.needs_generators for source in sources)
    teacher = teacher_stage(context)
    if settings.teacher.is_given:
        _say_accuracy(context, teacher)
    input_warnings = check_inputs(context, context.network(teacher), generators=needs_generators)
    if estimate and rank() == 0:
        stored = any(Path(settings.store).glob("compression-*"))
        seconds = estimate_seconds(settings, context.network(teacher), context.device)
        context.console.print(describe_time(seconds, stored), soft_wrap=True)
    initial = compression_stage(context, teacher)
    if sources:
        check_teacher_and_student(
            context, context.network(teacher), context.network(initial), generators=needs_generators
        )
    if calibration is not None and not calibration.needs_generators:
        quantization_stage(context, teacher, calibration, teacher, None)  # an error comes before the long stages
    generators = generators_stage(context, teacher) if needs_generators else None
    letter = "T" if settings.student.network is None else "S"
    networks = [Network("teacher", [teacher], warnings=input_warnings), Network(letter, [teacher, initial])]
    for source in sources:
        parent = generators if source.needs_generators else None
        samples = samples_stage(context, source, teacher, parent) if are_kept(settings, source) else None
        student = student_stage(context, source, teacher, initial, parent, samples)
        parents = [teacher, initial, *(stage for stage in (parent, samples) if stage is not None)]
        networks.append(Network(f"{letter}+{source.title}", [*parents, student], source))

    with context.progress("evaluation") as bar:
        quantized = quantize_networks(context, networks, calibration, generators)
        compared = [*networks[1:], *quantized]
        with bar.part("accuracy"):
            for number, network in enumerate((*networks, *quantized)):
                network.evaluation = evaluation_stage(context, network.stages[-1], network.method, teacher)
                bar.move_to((number + 1) / (len(compared) + 3))
        with bar.part("agreement"):
            agreements = agreement_stages(context, teacher, [network.stages[-1] for network in compared])
        for network, agreement in zip(compared, agreements, strict=True):
            network.agreement = agreement
        bar.move_to((len(compared) + 2) / (len(compared) + 3))
        with bar.part("latency"):
            latency = measure_stage_latency(context, teacher, initial)
            in_onnx = measure_quantized_latency(context, teacher, [network.stages[-1] for network in quantized])
    rows = describe_networks(context, networks, quantized, compression_source, latency, in_onnx)
    if rank() == 0:
        write_outputs(context, rows, [*networks, *quantized])
    return rows


def _say_accuracy(context: RunContext, teacher: Stage) -> None:
    """Print the test accuracy of a given teacher before the long stages, with a warning if it is that of chance."""
    found = evaluation_stage(context, teacher, "teacher", teacher)
    if found is None or rank():
        return
    accuracy = found.metrics["test/accuracy"]
    context.console.print(f"{context.label('teacher')}: accuracy {100 * accuracy:.2f} % ({found.metrics['test_set']})")
    context.warn(warn_of_teacher(accuracy, context.classes))


def find_objective(row: Row, objective: str) -> float | tuple[float, ...] | None:
    """Return the value of ``objective`` for a sweeper: one number or two.

    Raises:
        ConfigError: If they were not measured.
    """
    if objective == "accuracy":
        return row.accuracy
    if row.mean_agreement is None:
        raise ConfigError(
            f"Expected the agreement of the {row.name} for objective={objective}, but it was not measured: all sources "
            f"made the network (add another one to agreement.sources), or resume=require found no measurement (set "
            f"resume=auto)."
        )
    if objective == "agreement":
        return row.mean_agreement
    if not row.speedups:
        raise ConfigError(
            f"Expected the speed-up of the {row.name} for objective={objective}, but resume=require found no "
            f"measurement. Set resume=auto."
        )
    return row.mean_agreement, row.speedups[max(row.speedups)]
