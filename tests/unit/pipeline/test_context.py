"""The context that stages share."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kegnet_pl.networks import LeNet5
from kegnet_pl.pipeline.context import RunContext, open_context, training_fingerprint
from kegnet_pl.pipeline.inventory import find_users
from kegnet_pl.pipeline.stages.generators import generators_stage
from kegnet_pl.pipeline.store import Store
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.settings import RunSettings
from tests.integration.conftest import configure


def test_starting_a_logger_is_no_time_of_a_stage(tmp_path: Path) -> None:
    loggers = SimpleNamespace(waited=0.0, finish=lambda *_, **__: None)
    unused: Any = None
    trainers: Any = SimpleNamespace(loggers=loggers)
    context = RunContext(unused, {}, Store(tmp_path), trainers, unused, torch.device("cpu"), None, tmp_path)

    def make(folder: Path, costs: StageCosts) -> Mapping[str, Any]:
        time.sleep(0.5)
        loggers.waited += 0.4
        return {}

    stage = context.get_or_build("teacher", {}, [], make, title=None)
    assert 0.05 < stage.seconds < 0.4
    assert find_users(tmp_path, [tmp_path]) == {str(tmp_path): {stage.folder.name}}, "before the run has finished"


@pytest.mark.parametrize(
    ("processes", "settings", "expected"),
    [
        (1, [], 1),
        (4, [], 1),  # spread and trained one by one: as one process does it
        (4, ["generator.parallel=vmap"], [2, 1, 1, 1]),
        (5, ["generator.parallel=vmap"], 1),
        (8, [], 8),  # all processes train each generator
        (8, ["generator.processes=spread"], 1),
        (4, ["generator.processes=shared"], 4),
    ],
)
def test_generators_that_are_spread_are_those_of_one_process(
    processes: int, settings: list[str], expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        "data=none", "data.input_shape=[1,32,32]", "data.classes=10", "teacher.weights=w", "generator.count=5",
        f"store={tmp_path}", f"trainer.devices={processes}", *settings,
        *(f"{part}.batch_size=40" for part in ("teacher", "generator", "student")),
    )  # fmt: skip
    context = open_context(RunSettings.from_config(config), config, tmp_path)
    monkeypatch.setattr(RunContext, "network", lambda *_: LeNet5().eval())
    monkeypatch.setattr(RunContext, "get_or_build", lambda _, stage, settings, *__, **___: settings)
    unused: Any = None
    found: Any = generators_stage(context, unused)
    assert found["processes"] == expected


def test_the_world_is_the_number_of_all_processes() -> None:
    def describe(devices: int, machines: int) -> dict[str, Any]:
        sizes = [f"{part}.batch_size=64" for part in ("teacher", "generator", "student")]
        config = configure("trainer=ddp", f"trainer.devices={devices}", f"trainer.num_nodes={machines}", *sizes)
        return training_fingerprint(RunSettings.from_config(config))

    assert describe(4, 1) == describe(2, 2) == describe(1, 4) != describe(2, 1)
