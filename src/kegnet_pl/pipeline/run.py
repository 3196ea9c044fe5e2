"""The whole story: teacher -> generators -> synthetic data -> student -> report."""

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kegnet_pl.compression import CompressionReport, measure_size
from kegnet_pl.data import RealDataModule
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.pipeline.stages import (
    RunContext,
    build,
    check_early,
    check_generator,
    check_student,
    compression_stage,
    evaluation_stage,
    generators_stage,
    result_settings,
    student_stage,
    teacher_stage,
)
from kegnet_pl.pipeline.store import Stage, Store, fingerprint
from kegnet_pl.pipeline.trainer import Training
from kegnet_pl.reporting import (
    Row,
    describe_results,
    explain_losses,
    format_accuracy,
    make_compression_table,
    make_results_table,
    write_results,
)
from kegnet_pl.reporting.run_page import StageFolders, write_run_page
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.wandb import report_objects
from kegnet_pl.runtime.costs import add_up
from kegnet_pl.runtime.devices import device_of
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.memory import keep_freed_memory
from kegnet_pl.sources import describe_source
from kegnet_pl.training.fit import quiet_lightning
from kegnet_pl.training.progress import make_console, shown, tell_offline

_ALWAYS_LOGGED = {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger"}}
"""What logger=[] leaves: the report draws its curves from it."""


def run(config: dict[str, Any], folder: Path, *, job: int | None = None, gpu: int | None = None) -> float | None:
    """Run the pipeline.

    Args:
        config: A resolved and checked configuration (:mod:`kegnet_pl.schema`).
        folder: Where the run leaves its results.
        job: Number of the job, where jobs of a sweep write to one terminal at the same time.
        gpu: Number of the GPU that this run has to itself; None for the first.

    Returns:
        Test accuracy of the last student in [0, 1], None where there is no test data: what a sweep compares.

    Raises:
        UserError: If something is wrong that the user can mend.
    """
    context = open_context(config, folder, job=job, gpu=gpu)
    check_early(context)
    if "kegnet" in config["sources"]:
        check_generator(context)

    teacher, network = teacher_stage(context)
    initial = compression_stage(context, teacher, network)
    if config["sources"]:
        check_student(context, network, initial)
    generators: Stage | None = None
    if "kegnet" in config["sources"]:
        generators = generators_stage(context, teacher, network)
    letter = "T" if config["student"]["network"] is None else "S"
    made: dict[str, list[Stage]] = {"teacher": [teacher], letter: [teacher, initial]}
    for method in config["sources"]:
        source = generators if method == "kegnet" else None
        student = student_stage(context, method, (teacher, network), initial, source)
        parents = [teacher, initial, *([source] if source is not None else [])]
        made[f"{letter}+{describe_source(method).title}"] = [*parents, student]

    tested = {method: evaluation_stage(context, stages[-1], method, network) for method, stages in made.items()}
    rows = [describe(context, method, stages, network, tested) for method, stages in made.items()]
    if rank() == 0:
        report(context, rows, made, tested, folder, batch_norm=bool(norm_layers(network)), brief=job is not None)
    return rows[-1].accuracy


def open_context(
    config: dict[str, Any], run_folder: Path, *, job: int | None = None, gpu: int | None = None
) -> RunContext:
    """Gather what all stages work with; see :func:`run`."""
    quiet_lightning()
    if config["trainer"]["accelerator"] == "cpu":
        keep_freed_memory()
    console = make_console(job)
    store = Store(config["store"], config["resume"], tell=console.print)
    training = Training(
        make_trainer=functools.partial(build, config["trainer"], **({} if gpu is None else {"devices": [gpu]})),
        make_callbacks=lambda folder: [
            build(callback, **({"dirpath": str(folder)} if name == "resume" else {}))
            for name, callback in config["callbacks"].items()
        ],
        loggers=_make_loggers(config, run_folder, console.print),
    )
    return RunContext(
        config, store, training, console, device_of(config["trainer"], gpu), open_data(config, console.print)
    )


def _make_loggers(config: Mapping[str, Any], run_folder: Path, tell: Callable[[str], object]) -> Loggers:
    pipeline = f"{config['data']['name']}-{fingerprint('pipeline', result_settings(config), [])}"
    names = [config["data"]["name"], config["teacher"]["name"], _student_name(config), config["recipe"]]
    return Loggers(
        config.get("logger") or _ALWAYS_LOGGED,
        run_folder,
        group=config["sweep"] or pipeline,
        label=f"{config['data']['name']} {_student_name(config)}, seed {config['seed']}",
        tags=[*dict.fromkeys(names), f"seed {config['seed']}", *([config["sweep"]] if config["sweep"] else [])],
        hyperparameters={**config, "pipeline": pipeline},
        tell=tell,
    )


def open_data(config: Mapping[str, Any], tell: Any) -> RealDataModule | None:
    """Return the real data, None where there is none and none is needed."""
    specification = config["data"]
    if specification["_target_"] is None:
        return None
    data: RealDataModule = build(specification)
    try:
        data.prepare_data()
    except FileNotFoundError as error:
        needed = config["teacher"]["weights"] is None or config["student"]["selection"] == "real"
        if needed or not data.may_be_missing:
            raise
        tell(f"Accuracy will not be measured: {error}")
        return None
    return data


def describe(
    context: RunContext, method: str, stages: list[Stage], teacher: nn.Module, evaluations: Mapping[str, Stage | None]
) -> Row:
    """Gather what is known about one network.

    Args:
        context: What all stages work with.
        method: Name of the row.
        stages: The stages behind it; the last one holds the network.
        teacher: The teacher.
        evaluations: Evaluation of every row, None where there is no test data.
    """
    config = context.config
    cost = measure_size(teacher, context.input_shape)
    mine = {"parameters": cost.parameters, "macs": cost.macs} if method == "teacher" else stages[1].metrics
    tested, teacher_tested = evaluations[method], evaluations["teacher"]
    trained = stages[-1].name == "student"
    seconds = {stage.name: stage.seconds for stage in stages}
    if tested is not None:
        seconds["evaluation"] = tested.seconds
    student = _student_name(config)
    return Row(
        dataset=config["data"]["name"],
        test_set=tested.metrics["test_set"] if tested is not None else None,
        teacher=config["teacher"]["name"],
        student=None if method == "teacher" else student,
        method=method,
        source=describe_source(stages[-1].manifest["config"]["source"]).to_dict() if trained else None,
        seed=context.seed,
        recipe=config["recipe"],
        selection=config["student"]["selection"] if trained else None,
        epochs=stages[-1].metrics.get("epochs"),
        epoch=stages[-1].metrics.get("epoch"),
        accuracy=tested.metrics["test/accuracy"] if tested is not None else None,
        teacher_accuracy=teacher_tested.metrics["test/accuracy"] if teacher_tested is not None else None,
        parameters=mine["parameters"],
        teacher_parameters=cost.parameters,
        compression_ratio=round(cost.parameters / mine["parameters"], 4),
        macs=mine["macs"],
        teacher_macs=cost.macs,
        samples=stages[-1].manifest["config"]["student"]["samples"] if trained else None,
        label_entropy=stages[-1].metrics["label_entropy"] if trained else None,
        precision=config["trainer"]["precision"],
        seconds=stages[-1].seconds,
        stage_seconds=seconds,
        costs=add_up([stage.manifest for stage in (*stages, *([tested] if tested is not None else []))]),
        fingerprint=stages[-1].fingerprint,
        command=command_line(),
        versions=versions(),
    )


def _student_name(config: Mapping[str, Any]) -> str:
    """Return the name of the compression, or of the other network that learns."""
    network = config["student"]["network"]
    return str(config["compression"]["name"] if network is None else network["_target_"].rsplit(".", 1)[-1])


def report(
    context: RunContext,
    rows: list[Row],
    made: Mapping[str, list[Stage]],
    tested: Mapping[str, Stage | None],
    folder: Path,
    *,
    batch_norm: bool,
    brief: bool,
) -> None:
    """Write results and report, print the tables, and say where everything lies; if brief, in one line.

    Args:
        context: What all stages work with.
        rows: One a network.
        made: The stages behind every row, by method.
        tested: Evaluation of every row, by method.
        folder: The run's.
        batch_norm: Whether the teacher has batch norm.
        brief: Whether other jobs write to the same terminal.
    """
    write_results(rows, folder / "results.json")
    networks = {
        method: [*stages, *([t] if (t := tested[method]) is not None else [])] for method, stages in made.items()
    }
    generators = next((stage for stages in made.values() for stage in stages if stage.name == "generators"), None)
    if generators is not None:
        shutil.copyfile(generators.folder / "samples.png", folder / "samples.png")
    behind = {method: {stage.name: stage.folder for stage in stages} for method, stages in networks.items()}
    StageFolders(context.config, behind).write(folder)
    page = write_run_page(FinishedRun(folder, rows=tuple(rows)))
    loggers = context.training.loggers
    sheet = generators.folder / "samples.png" if generators is not None else None
    loggers.show("report", folder, lambda: report_objects(rows, page, sheet))
    loggers.finish(None, done=True)
    say = functools.partial(context.console.print, soft_wrap=True)
    if brief:
        say("results: " + ", ".join(f"{row.method} {format_accuracy(row)}" for row in rows))
        return
    initial = next(stages[1] for method, stages in made.items() if method != "teacher")
    report = read_compression_report(initial)
    say()
    if report is not None:
        say(f"Compression ({rows[-1].student}), layer by layer")
        context.console.print(make_compression_table(report))
        say()
    say(describe_results(rows))
    context.console.print(make_results_table(rows))
    for line in explain_losses(rows, context.config["student"]["norm"], batch_norm):
        say(line)
    spent = {name: seconds for row in rows for name, seconds in row.stage_seconds.items() if name != "student"}
    spent |= {row.method: row.seconds for row in rows if row.samples is not None}
    spent["evaluation"] = sum(row.stage_seconds.get("evaluation", 0.0) for row in rows)
    say("Seconds of each stage: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))

    say()
    say(f"teacher       {shown(made['teacher'][0].folder)}")
    if generators is not None:
        say(f"generators    {shown(generators.folder)}  (kegnet_pl.load_generators reads them)")
    say(f"student       {shown(list(made.values())[-1][-1].folder)}  (kegnet_pl.load_network reads it)")
    if generators is not None:
        say(f"sample sheet  {shown(folder / 'samples.png')}")
    say(f"results       {shown(folder / 'results.json')}")
    say(f"report        {shown(page)}  (open it in a browser)")
    if "tensorboard" in context.config.get("logger", {}):
        say(f"TensorBoard   tensorboard --logdir {shown(context.store.root)}")
    tell_offline(folder, "", context.console)


def read_compression_report(stage: Stage) -> CompressionReport | None:
    """Return the report of a compression stage, None where another network was built."""
    path = stage.folder / "compression.json"
    if not path.exists():
        return None
    return CompressionReport.from_dict(json.loads(path.read_text()))
