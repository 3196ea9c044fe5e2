"""The stage of evaluation: test accuracy of a finished network. No training or selection uses it."""

from pathlib import Path
from typing import Any

from kegnet_pl.api.evaluation import count_answers
from kegnet_pl.compression import measure_size
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.reporting.classes import ClassCounts
from kegnet_pl.reporting.wandb import class_tables
from kegnet_pl.runtime.costs import StageCosts


def evaluation_stage(context: RunContext, stage: Stage, name: str, teacher: Stage) -> Stage | None:
    """Measure the network of a finished stage, and its size against the teacher's; None where there is no test data."""
    data = context.data
    if data is None or "test" not in data.splits:
        return None
    test = data.part("test")
    settings = {"test_data": data.digest("test")[0], "measured": ["accuracy", "confusion"]}

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        network = context.network(stage)
        with costs.measure("evaluation"):
            answers = count_answers(network, test, context.device)
        accuracy = int(answers.trace()) / len(test)
        costs.teacher_forwards += len(test) if stage.name == "teacher" else 0
        metrics = {"test/accuracy": accuracy}
        if stage.name != "quantization":  # an ONNX file has no parameters of torch
            size = measure_size(network, context.input_shape)
            ratio = measure_size(context.network(teacher), context.input_shape).parameters / size.parameters
            metrics |= {"parameters": size.parameters, "macs": size.macs, "compression_ratio": ratio}
        for logger in context.loggers.make("evaluation", name, folder):
            logger.log_metrics(metrics, step=0)
            logger.save()
        context.loggers.show("evaluation", name, folder, lambda: class_tables(answers))
        return {
            "test/accuracy": accuracy,
            "test_set": data.test_set,
            "samples": len(test),
            **ClassCounts.of(answers).to_metrics(),
        }

    return context.get_or_build("evaluation", settings, [stage], make, title=None)
