"""A sweep: what all its jobs have in common, what becomes of those that fail, and what is left when it ends.

Hydra runs the jobs, one after another or through a launcher; this module imports nothing heavy.
"""

import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

NAME_VARIABLE = "KEGNET_SWEEP"
"""Environment variable that carries the sweep's name to its jobs, wherever a launcher starts them."""

FAILURE = "failure.json"
"""What a failed job leaves in its folder."""

begun: Path | None = None
"""Folder of the sweep that this process has started."""


class SweepCallback(Callback):
    """Hydra's callback in the process that starts a sweep (``hydra.callbacks.sweep``)."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Remember where the sweep lies, and give it a name that is the same when it is started again."""
        global begun
        begun = Path(config.hydra.sweep.dir).absolute()
        if not os.environ.get(NAME_VARIABLE):
            os.environ[NAME_VARIABLE] = sweep_name(_as_written(config.hydra.overrides.task))


def sweep_name(overrides: Sequence[str]) -> str:
    """Return a name for a sweep, the same for the same overrides: ``svhn_resnet-compression-seed-1a2b3c``."""
    experiment = next((o.split("=", 1)[1] for o in overrides if o.lstrip("+").startswith("experiment=")), "")
    swept = [o.split("=", 1)[0].lstrip("+") for o in overrides if _is_sweep(o)]
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    parts = [part for part in (experiment, *swept) if part and "," not in part]
    return "-".join([*[re.sub(r"[^\w.]+", "_", part) for part in parts], digest])[-100:]


def _is_sweep(override: str) -> bool:
    """Whether an override has several values: a comma outside brackets and quotes, or a function such as range()."""
    value = override.partition("=")[2]
    bare = re.sub(r"\[[^\]]*\]|\{[^}]*\}|'[^']*'|\"[^\"]*\"", "", value)
    return "," in bare or re.match(r"(choice|range|interval|glob)\(", bare) is not None


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_number() -> int:
    """Return the number of the job that runs, from 0."""
    return int(HydraConfig.get().job.num)


def job_overrides() -> list[str]:
    """Return the command line of the job that runs, with the names of variables and not their values."""
    return _as_written(HydraConfig.get().overrides.task)


def _as_written(overrides: Any) -> list[str]:
    plain = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain] if isinstance(plain, list) else []


def jobs_share_the_terminal() -> bool:
    """Whether other jobs may write at the same time."""
    return not str(HydraConfig.get().launcher["_target_"]).endswith(".BasicLauncher")


def record_failure(folder: Path, error: Exception, expected: bool) -> None:
    """Leave the reason in the job's folder, and show it: the sweep goes on.

    Args:
        folder: The job's.
        error: What was raised.
        expected: Whether it says all by itself, so that a traceback would only hide it.
    """
    overrides = job_overrides()
    reason = str(error) if expected else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"job": job_number(), "overrides": overrides, "error": reason, "traceback": trace}
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier sweep in the same folder
    (folder / FAILURE).write_text(json.dumps(content, indent=2) + "\n")
    sys.stdout.flush()
    shown = reason if expected and not os.environ.get("HYDRA_FULL_ERROR") else trace
    print(f"Job {job_number()} ({' '.join(overrides)}) failed: {shown}", file=sys.stderr, flush=True)  # noqa: T201
