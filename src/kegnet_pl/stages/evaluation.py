"""Accuracy of a finished network: no part of training, and never what a student is selected by."""

from pathlib import Path

from torch import nn

from kegnet_pl.artefacts import load_network
from kegnet_pl.compression import measure_cost
from kegnet_pl.costs import Costs
from kegnet_pl.evaluation import count_answers
from kegnet_pl.reporting.wandb_objects import class_tables
from kegnet_pl.stages.workshop import Config, Workshop
from kegnet_pl.store import Stage


def evaluation_stage(shop: Workshop, stage: Stage, name: str, teacher: nn.Module) -> Stage | None:
    """Measure a finished network on the real test data; None where there is none."""
    data = shop.data
    if data is None:
        return None
    if "test" not in data.splits:
        return None
    test = data.part("test")
    settings = {"test_data": data.digest("test")[0], "measured": ["accuracy", "confusion"]}

    def make(folder: Path, costs: Costs) -> Config:
        network = load_network(stage.folder)
        with costs.measure("evaluation"):
            answers = count_answers(network, test, shop.device)
        value = int(answers.trace()) / len(test)
        costs.teacher_forwards += len(test) if stage.name == "teacher" else 0
        cost = measure_cost(network, shop.input_shape)
        ratio = measure_cost(teacher, shop.input_shape).parameters / cost.parameters
        size = {"parameters": cost.parameters, "macs": cost.macs, "compression_ratio": ratio}
        for logger in shop.training.loggers.make("evaluation", name, folder):
            logger.log_metrics({"test/accuracy": value, **size}, step=0)
            logger.save()
        shop.training.loggers.show("evaluation", folder, lambda: class_tables(answers))
        measured = {"test/accuracy": value, "test_set": data.test_set, "samples": len(test)}
        return measured | {"confusion": answers.tolist()}

    return shop.obtain("evaluation", settings, [stage], make, title=None)
