"""Accuracy of a finished network: no part of training, and never what a student is selected by."""

import functools
from pathlib import Path

from kegnet_pl.artefacts import load_network
from kegnet_pl.costs import Costs
from kegnet_pl.data import RealDataModule
from kegnet_pl.evaluation import count_answers, digest
from kegnet_pl.stages.workshop import Config, Workshop
from kegnet_pl.store import Stage


def evaluation_stage(shop: Workshop, stage: Stage, name: str) -> Stage | None:
    """Measure a finished network on the real test data; None where there is none."""
    data = shop.data
    if data is None:
        return None
    data.setup()
    test = data.splits["test"]
    settings = {"test_data": _test_digest(data), "measured": ["accuracy", "confusion"]}

    def make(folder: Path, costs: Costs) -> Config:
        with costs.measure("evaluation"):
            answers = count_answers(load_network(stage.folder), test, shop.device)
        value = int(answers.trace()) / len(test)
        costs.teacher_forwards += len(test) if stage.name == "teacher" else 0
        for logger in shop.training.make_loggers("evaluation", name, folder):
            logger.log_metrics({"test/accuracy": value}, step=0)
            logger.save()
        shop.training.finish_loggers()
        return {
            "test/accuracy": value, "test_set": data.test_set, "samples": len(test), "confusion": answers.tolist(),
        }  # fmt: skip

    return shop.store.get("evaluation", settings, [stage], make)


@functools.cache
def _test_digest(data: RealDataModule) -> str:
    return digest(data.splits["test"])
