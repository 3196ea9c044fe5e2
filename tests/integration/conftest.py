"""Running the pipeline in this process and in others."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.settings import RunSettings

FAST = "debug=fast"

Run = Callable[..., dict[str, Any]]
Command = Callable[..., subprocess.CompletedProcess[str]]


def configure(*overrides: str) -> dict[str, Any]:
    """Compose and check the shipped configuration."""
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        config = to_plain(compose("config", overrides=list(overrides)))
    RunSettings.from_config(config)
    return config


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run ``python -m kegnet_pl`` in an empty folder, with no W&B key."""

    def run(*arguments: str, expect: int | None = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        done = subprocess.run(
            [sys.executable, "-m", "kegnet_pl", *arguments],
            cwd=tmp_path,
            env={**environment, "HOME": str(tmp_path), "COLUMNS": "160"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if expect is not None:
            assert done.returncode == expect, done.stdout + done.stderr
        return done

    return run
