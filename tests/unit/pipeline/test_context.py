"""The context that stages share."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.inventory import find_users
from kegnet_pl.pipeline.store import Store
from kegnet_pl.runtime.costs import StageCosts


def test_starting_a_logger_is_no_time_of_a_stage(tmp_path: Path) -> None:
    loggers = SimpleNamespace(waited=0.0, finish_stage=lambda *_: None)
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
