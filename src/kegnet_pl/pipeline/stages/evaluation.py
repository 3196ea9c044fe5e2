"""Accuracy of a finished network: no part of training, and never what a student is selected by."""

from pathlib import Path

from torch import nn

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.evaluation import count_answers
from kegnet_pl.compression import measure_size
from kegnet_pl.pipeline.context import Config, RunContext
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.reporting.wandb import class_tables
from kegnet_pl.runtime.costs import StageCosts


def evaluation_stage(context: RunContext, stage: Stage, name: str, teacher: nn.Module) -> Stage | None:
    """Measure a finished network on the real test data; None where there is none."""
    data = context.data
    if data is None:
        return None
    if "test" not in data.splits:
        return None
    test = data.part("test")
    settings = {"test_data": data.digest("test")[0], "measured": ["accuracy", "confusion"]}

    def make(folder: Path, costs: StageCosts) -> Config:
        network = load_network(stage.folder)
        with costs.measure("evaluation"):
            answers = count_answers(network, test, context.device)
        value = int(answers.trace()) / len(test)
        costs.teacher_forwards += len(test) if stage.name == "teacher" else 0
        cost = measure_size(network, context.input_shape)
        ratio = measure_size(teacher, context.input_shape).parameters / cost.parameters
        size = {"parameters": cost.parameters, "macs": cost.macs, "compression_ratio": ratio}
        for logger in context.training.loggers.make("evaluation", name, folder):
            logger.log_metrics({"test/accuracy": value, **size}, step=0)
            logger.save()
        context.training.loggers.show("evaluation", folder, lambda: class_tables(answers))
        measured = {"test/accuracy": value, "test_set": data.test_set, "samples": len(test)}
        return measured | {"confusion": answers.tolist()}

    return context.get_or_build("evaluation", settings, [stage], make, title=None)
