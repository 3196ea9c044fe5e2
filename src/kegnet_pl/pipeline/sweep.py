"""Sweeps: the folder and name that all jobs share, and the records of failed jobs.

Hydra runs the jobs, one after another or through a launcher; this module imports nothing heavy.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kegnet_pl.runtime import held
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import FAILURE
from kegnet_pl.runtime.secrets import conceal

NAME_VARIABLE = "KEGNET_SWEEP"
"""Environment variable that carries the sweep's name to its jobs, which a launcher may start elsewhere."""

started: Path | None = None
"""Folder of the sweep that this process has started."""

_made: list[Path] = []
"""Folders that this process has made for its run, the outermost first."""

ONE_PROCESS = (
    "Expected one process per job in a sweep (-m), but got several: the processes of one job would start the whole "
    "sweep again. Use trainer=gpu or trainer=cpu (with hydra/launcher=joblib, jobs run in parallel, one per GPU), or "
    "run the jobs one by one without -m."
)

NO_ACCURACY = (
    "Expected `objective` to be agreement or agreement_and_speed with a sweeper that searches, but got accuracy. A "
    "student that is selected by its test accuracy is not a data-free result. Use hparams_search=agreement, or set "
    "objective=agreement."
)


class SweepCallback(Callback):
    """Hydra callback that prepares a run or a sweep (``hydra.callbacks.sweep``).

    Hydra turns exceptions of callbacks into warnings, so errors call ``sys.exit``.
    """

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Check that the run's folder can be written; Hydra itself would print a traceback."""
        _make_folder(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Store the folder of the sweep, and set its name, which is the same for the same overrides."""
        global started
        held.release()
        processes = [OmegaConf.select(config, f"trainer.{name}") for name in ("devices", "num_nodes")]
        if any(isinstance(number, int) and number > 1 for number in processes):
            sys.exit(f"\nError: {ONE_PROCESS}")
        if _searches(config.hydra.sweeper) and OmegaConf.select(config, "objective") == "accuracy":
            sys.exit(f"\nError: {NO_ACCURACY}")
        _make_folder(config, "hydra.sweep.dir")
        started = Path(config.hydra.sweep.dir).absolute()
        if not os.environ.get(NAME_VARIABLE):
            os.environ[NAME_VARIABLE] = sweep_name(_as_written(config.hydra.overrides.task))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:  # noqa: ARG002
        """Free the configuration of a finished job, which Hydra would keep until the end of the sweep."""
        if in_sweep():
            job_return.cfg = job_return.hydra_cfg = None


def _make_folder(config: DictConfig, key: str) -> None:
    try:
        folder = Path(OmegaConf.select(config, key, throw_on_missing=True)).absolute()
        _made[:] = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        sys.exit(
            f"\nError: Expected to write results to {folder}, but got: {error.strerror or error}. Choose another "
            f"folder with {key}=FOLDER, or run the command in a folder with write permission."
        )


def sweep_name(overrides: Sequence[str]) -> str:
    """Return a name for a sweep, the same for the same overrides: ``svhn_resnet-compression-seed-1a2b3c``."""
    experiment = next((o.split("=", 1)[1] for o in overrides if o.lstrip("+").startswith("experiment=")), "")
    swept = [
        o.get_key_element().lstrip("+")
        for o in OverridesParser.create().parse_overrides(list(overrides))
        if o.is_sweep_override()
    ]
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    parts = [part for part in (experiment, *swept) if part and "," not in part]
    return "-".join([*[re.sub(r"[^\w.]+", "_", part) for part in parts], digest])[-100:]


def in_sweep() -> bool:
    """Return True if this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def searches() -> bool:
    """Return True if this process runs a job of a sweep whose sweeper looks at results, such as Optuna's."""
    return in_sweep() and _searches(HydraConfig.get().sweeper)


def _searches(sweeper: DictConfig) -> bool:
    return not str(sweeper["_target_"]).endswith(".BasicSweeper")


def job_number() -> int:
    """Return the number of the current job, from 0."""
    return int(HydraConfig.get().job.num)


def job_overrides() -> list[str]:
    """Return the overrides of the current job, with interpolations unresolved."""
    return _as_written(HydraConfig.get().overrides.task)


def _as_written(overrides: Any) -> list[str]:
    plain = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain] if isinstance(plain, list) else []


def jobs_share_the_terminal() -> bool:
    """Return True if other jobs may write to the terminal at the same time."""
    return not str(HydraConfig.get().launcher["_target_"]).endswith(".BasicLauncher")


def discard_refused(folder: Path) -> bool:
    """Delete the folder of a run that was refused before its first stage; return False if there is more in it.

    Only folders that this process has made are deleted, and only if they hold nothing but Hydra's record of settings. A
    folder that the command names (``hydra.run.dir``) stays, with the reason of the failure.
    """
    named = any(text.startswith("hydra.run.dir=") for text in HydraConfig.get().overrides.hydra)
    if in_sweep() or named or folder not in _made or [path.name for path in folder.iterdir()] != [".hydra"]:
        return False
    shutil.rmtree(folder / ".hydra")
    for path in reversed(_made):
        with suppress(OSError):  # other runs are in it
            path.rmdir()
    return True


def record_failure(folder: Path, error: Exception, expected: bool) -> None:
    """Write the error of a run to its folder, for reports; print that of a sweep's job, since the sweep continues.

    ``expected`` is True if the message of the error is complete without a traceback.
    """
    overrides = job_overrides()
    reason = str(error) if expected else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    number = job_number() if in_sweep() else None
    content = {"job": number, "overrides": overrides, "error": reason, "traceback": trace}
    with suppress(OSError):  # the error may be a full disk
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FAILURE, json.dumps(conceal(content), indent=2) + "\n")
    if number is None:
        return
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier sweep in the same folder
    sys.stdout.flush()
    details = reason if expected and not os.environ.get("HYDRA_FULL_ERROR") else trace
    print(f"Job {number} ({' '.join(overrides)}) failed: {conceal(details)}", file=sys.stderr, flush=True)  # noqa: T201
