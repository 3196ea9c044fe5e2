"""Outputs of a run: rows of results, the report, and the summary on the terminal."""

import functools
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kegnet_pl.benchmark import LatencyReport
from kegnet_pl.compression import measure_size
from kegnet_pl.networks import answers_of
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.pipeline.context import OUTPUT, QUANTIZED, RunContext, student_name
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.pipeline.stages.agreement import describe_agreements
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.teacher_card import FILE_NAME, write_card
from kegnet_pl.pipeline.trackers import TENSORBOARD
from kegnet_pl.pipeline.warnings import (
    is_worse,
    warn_of_agreement,
    warn_of_compression,
    warn_of_quantization,
    warn_of_regression,
    warn_of_student,
    warn_of_teacher,
    warn_of_training,
)
from kegnet_pl.reporting.agreement import explain_agreement
from kegnet_pl.reporting.names import name_compression
from kegnet_pl.reporting.results import TRIAL, Row, explain_validity, find_last, list_warnings, summarize, write_results
from kegnet_pl.reporting.run_page import StageFolders, write_run_page
from kegnet_pl.reporting.run_parts import list_trusted, read_compression_report
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.tables import (
    describe_job,
    describe_results,
    explain_losses,
    explain_names,
    explain_quantization,
    explain_speed,
    make_compression_table,
    make_results_table,
)
from kegnet_pl.reporting.wandb import print_sync_command, report_objects
from kegnet_pl.runtime.costs import add_up
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.secrets import conceal
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SourceInfo


@dataclass
class Network:
    """One network of a run.

    Attributes:
        method: ``teacher``, ``T`` (compressed, untrained), ``S`` (another network, untrained), ``T+KegNet``, ...;
            ``T+KegNet int8`` if it is quantised.
        stages: The stages that made it; the last one holds the network.
        source: Source of its training samples; None without training on synthetic data.
        quantization: Description of its quantisation, see ``results.schema.json``; None for float32.
        evaluation: Its evaluation, None where there is no test data.
        calibration: Source of the samples that calibrated its activations; None if there are none.
        warnings: Sentences on the inputs of the teacher.
        agreement: Its agreement with the teacher on synthetic samples; None for the teacher, or if it was not measured.
    """

    method: str
    stages: list[Stage]
    source: SourceInfo | None = None
    quantization: dict[str, Any] | None = None
    evaluation: Stage | None = None
    agreement: Stage | None = None
    calibration: SourceInfo | None = None
    warnings: Sequence[str] = ()

    @property
    def stage(self) -> Stage:
        """The last stage that is not a quantisation: it made the weights."""
        return next(stage for stage in reversed(self.stages) if stage.name in ("teacher", "compression", "student"))

    @property
    def accuracy(self) -> float | None:
        """Accuracy on test data; None where there is none."""
        return None if self.evaluation is None else float(self.evaluation.metrics["test/accuracy"])

    @property
    def all_stages(self) -> list[Stage]:
        """The stages behind it and its evaluation."""
        return [*self.stages, *([self.evaluation] if self.evaluation is not None else [])]


def describe_networks(
    context: RunContext,
    networks: Sequence[Network],
    quantized: Sequence[Network],
    compression_source: SourceInfo | None,
    latency: LatencyReport | None,
    quantized_latency: LatencyReport | None,
) -> list[Row]:
    """Return the rows of results: the teacher (first), its students, and quantised networks.

    ``compression_source`` describes the samples that were used for the compression of students.
    """
    teacher, *students = networks
    compared = [*students, *quantized]
    agreements = describe_agreements(
        context, [(one.agreement, _sources_of(one, compression_source)) for one in compared]
    )
    rows = [
        _describe(context, teacher, teacher, None, None, latency),
        *(
            _describe(
                context, one, teacher, compression_source, agreement,
                latency if one.quantization is None else quantized_latency,
            )
            for one, agreement in zip(compared, agreements, strict=True)
        ),
    ]  # fmt: skip
    last = find_last(rows)
    start = next((row for row in rows if row.method == "T"), None)
    return [
        replace(row, warnings=_warn(context.settings, network, row, last, start))
        for row, network in zip(rows, (teacher, *compared), strict=True)
    ]


def _sources_of(network: Network, compression_source: SourceInfo | None) -> list[SourceInfo]:
    """Return the sources of the samples that made a network."""
    of_compression = compression_source if network.stage.name != "teacher" else None
    return [info for info in (network.source, network.calibration, of_compression) if info is not None]


def _describe(
    context: RunContext,
    network: Network,
    teacher: Network,
    compression_source: SourceInfo | None,
    agreement: dict[str, Any] | None,
    latency: LatencyReport | None,
) -> Row:
    settings, last, made = context.settings, network.stages[-1], network.stage
    plan = settings.compression
    size = measure_size(context.network(teacher.stages[0]), context.input_shape)
    is_teacher, trained = made.name == "teacher", made.name == "student"
    own: dict[str, Any] = {"parameters": size.parameters, "macs": size.macs}
    own = own if is_teacher else network.stages[1].metrics
    config = made.manifest["config"]["student"] if trained else {}
    file = QUANTIZED if network.quantization is not None else "network.safetensors"
    return Row(
        dataset=settings.data.name,
        test_set=network.evaluation.metrics["test_set"] if network.evaluation is not None else None,
        teacher=settings.teacher.title,
        student=None if is_teacher else student_name(settings),
        method=network.method,
        source=network.source.to_dict() if network.source is not None else None,
        compression=None if is_teacher or settings.student.network is not None else own.get("method", plan.method),
        compression_source=compression_source.to_dict() if compression_source is not None and not is_teacher else None,
        quantization=network.quantization,
        seed=context.seed,
        recipe=settings.recipe,
        selection=settings.student.selection if trained else None,
        epochs=made.metrics.get("epochs"),
        epoch=made.metrics.get("epoch"),
        accuracy=network.accuracy,
        teacher_accuracy=teacher.accuracy,
        parameters=own["parameters"],
        teacher_parameters=size.parameters,
        compression_ratio=round(size.parameters / own["parameters"], 4),
        size=(last.folder / file).stat().st_size,
        macs=own["macs"],
        teacher_macs=size.macs,
        agreement=agreement,
        latency=None if latency is None else latency.describe("teacher" if is_teacher else "student"),
        samples=config["samples"] if trained else None,
        learning_rate=made.metrics.get("lr", config["optimizer"]["lr"]) if trained else None,
        label_entropy=made.metrics["label_entropy"] if trained else None,
        precision=settings.trainer.precision,
        seconds=last.seconds,
        stage_seconds={stage.name: stage.seconds for stage in network.all_stages},
        costs=add_up([stage.manifest for stage in network.all_stages]),
        fingerprint=last.fingerprint,
        command=command_line(),
        versions=versions(),
    )


def _warn(settings: RunSettings, network: Network, row: Row, last: Row, start: Row | None) -> list[str]:
    """Return the warnings about a network; a student's do not repeat those of its compression.

    Args:
        settings: Settings of the run.
        network: The network.
        row: Its row of results, without warnings.
        last: The row that is the result of the run.
        start: The row of the compressed teacher; None if the student is another network.
    """
    made, found = network.stage, [*([TRIAL] if settings.trial else []), *network.warnings]
    classes = settings.data.classes
    if network.quantization is not None:
        return found + warn_of_quantization(network.quantization) + warn_of_agreement(row.agreement, classes)
    if made.name == "teacher":
        return found + (warn_of_teacher(row.accuracy, classes) if settings.teacher.is_given else [])
    if made.name == "compression":
        recovered = last.samples is not None and is_worse(last.agreement, last.accuracy, last.teacher_accuracy) is False
        found += warn_of_compression(settings, made, recovered=recovered)
        return found + warn_of_agreement(row.agreement, classes)
    if made.name == "student":
        generators = next((stage for stage in network.stages if stage.name == "generators"), None)
        found += warn_of_training(
            settings, made, generators, mixed=network.source is not None and len(network.source.shares) > 1
        )
        regression = warn_of_regression(row, start, chosen="lr" in made.metrics)
        return found + (
            regression
            or warn_of_student(row.agreement, row.accuracy, row.teacher_accuracy, classes, compressed=start is not None)
        )
    return found


def write_outputs(context: RunContext, rows: Sequence[Row], networks: Sequence[Network]) -> None:
    """Write results and report to the folder of the run and to loggers; print the tables and, for a job, its line.

    Rows are in the order of networks.
    """
    folder = context.folder
    write_results(rows, folder / "results.json")
    generators = next((stage for one in networks for stage in one.stages if stage.name == "generators"), None)
    sheet = generators.folder / "samples.png" if generators is not None else None
    if sheet is not None:
        shutil.copyfile(sheet, folder / "samples.png")
    folders = {
        one.method: {stage.name: stage.folder for stage in (*one.all_stages, one.agreement) if stage is not None}
        for one in networks
    }
    StageFolders(conceal(dict(context.config)), folders).write(folder)
    page = write_run_page(FinishedRun(folder, rows=tuple(rows)))
    write_teacher_card(context, networks[0].stages[0], folder)
    context.loggers.show("report", "report", folder, lambda: report_objects(rows, page, sheet))
    context.loggers.finish(summarize(rows))
    _print_tables(context, rows, networks)
    _print_paths(context, networks, find_last(rows).method, generators, page)
    if context.terminal is not None:
        context.terminal.print(f"{describe_job(rows)}; {display_path(folder / OUTPUT)}", soft_wrap=True)


def write_teacher_card(context: RunContext, stage: Stage, folder: Path) -> None:
    """Write the card of a run's teacher, with which another run can use the same network."""
    teacher, network = context.settings.teacher, context.network(stage)
    answers = answers_of(network)
    trained = Path(context.settings.store, stage.folder.name, "network.safetensors")
    write_card(
        folder,
        teacher.model_dump(by_alias=True),
        context.settings.data.model_dump(by_alias=True),
        teacher.weights or (None if teacher.is_given else str(trained)),
        "logits" if answers is None else answers.outputs,
    )


def _print_tables(context: RunContext, rows: Sequence[Row], networks: Sequence[Network]) -> None:
    say = functools.partial(context.console.print, soft_wrap=True)
    report = read_compression_report(networks[1].stages[1].folder)
    say()
    if report is not None:
        say(f"Compression ({name_compression(find_last(rows).student or '')}), layer by layer")
        context.console.print(make_compression_table(report))
        say()
    say(describe_results(rows))
    context.console.print(make_results_table(rows))
    batch_norm = bool(norm_layers(context.network(networks[0].stages[0])))
    for line in [
        *explain_validity(rows),
        *explain_names(rows),
        *explain_agreement(rows),
        *explain_speed(rows),
        *explain_quantization(rows),
        *explain_losses(rows, context.settings.student.norm, batch_norm),
        *(f"Warning about {name}: {sentence}" for name, sentence in list_warnings(rows)),
    ]:
        say(line)
    own = ("samples", "student")  # of each student
    spent = {name: seconds for row in rows for name, seconds in row.stage_seconds.items() if name not in own}
    for row in (row for row in rows if row.samples is not None and row.quantization is None):
        spent |= {f"{name} of {row.name}": row.stage_seconds[name] for name in own[:1] if name in row.stage_seconds}
        spent[row.name] = row.seconds
    for name in (name for name in ("evaluation", "quantization") if name in spent):
        spent[name] = sum(row.stage_seconds.get(name, 0.0) for row in rows)
    say("Seconds of each stage: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))


def _print_paths(
    context: RunContext, networks: Sequence[Network], last: str, generators: Stage | None, page: Path
) -> None:
    """Print the paths of stages, results and report; ``last`` is the method of the student whose path is printed."""
    folder = page.parent
    paths = {one.method: one.stages[-1].folder for one in networks}
    lines = ["", f"teacher       {display_path(paths['teacher'])}"]
    if generators is not None:
        lines.append(f"generators    {display_path(generators.folder)}  (kegnet_pl.load_generators reads them)")
    if "T" in paths and last != "T":
        lines.append(f"untrained     {display_path(paths['T'])}")
    trust = list_trusted(paths[last])
    reads = f"kegnet_pl.load_network reads it{f', with trust={json.dumps(trust)}' if trust else ''}"
    lines.append(f"student       {display_path(paths[last])}  ({reads})")
    if f"{last} int8" in paths:
        lines.append(f"int8          {display_path(paths[f'{last} int8'] / QUANTIZED)}")
    if generators is not None:
        lines.append(f"sample sheet  {display_path(folder / 'samples.png')}")
    options = ["--trust", *trust] if trust else []
    lines += [
        f"teacher card  {display_path(folder / FILE_NAME)}",
        f"results       {display_path(folder / 'results.json')}",
        f"report        {display_path(page)}  (open it in a browser)",
        f"export        {shlex.join(['python', '-m', 'kegnet_pl.export', str(display_path(folder)), *options])}",
    ]
    if (folder / TENSORBOARD).is_dir():
        lines.append(f"TensorBoard   tensorboard --logdir {display_path(folder / TENSORBOARD)}")
    context.console.print("\n".join(lines), soft_wrap=True)
    print_sync_command(folder, "wandb/offline-run-*", context.console)
