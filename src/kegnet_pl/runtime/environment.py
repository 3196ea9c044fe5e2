"""The environment of this process: its rank and its folder; this module imports nothing heavy."""

import os
import sys
from pathlib import Path

from kegnet_pl.runtime.errors import ConfigError

_RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "JSM_NAMESPACE_RANK",
    "JSM_NAMESPACE_LOCAL_RANK",
)  # fmt: skip
"""Variables by which launchers number their processes, from 0."""

_SIZES = (
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
    "SLURM_STEP_NUM_TASKS", "JSM_NAMESPACE_SIZE",
)  # fmt: skip
"""Variables with the number of processes."""

_OF_CHILDREN = ("LOCAL_RANK",)
"""Variables that Lightning also sets, for the processes that it starts."""

_JOB_NAME = "SLURM_JOB_NAME"
"""Lightning does not look at SLURM in jobs with the name ``bash``."""


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def global_rank() -> int:
    """Return the rank of this process, from 0, by the variables that Lightning reads, in its order."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def launched() -> int:
    """Return the number of processes that torchrun or srun has started for this run, 1 without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get(_JOB_NAME) == "bash":
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # srun sets it; the script of a job does not have it


def choose_ranks(devices: int, machines: int = 1) -> None:
    """Decide who starts the processes of a run: torchrun or srun, or the run itself, on one machine.

    A run of one process ignores the rank that a launcher (srun, torchrun, mpirun) has set.

    Raises:
        ConfigError: If a launcher has started another number of processes, or none on several machines.
    """
    processes = devices * machines
    ranks = [name for name in _RANKS if name in os.environ]
    sizes = [name for name in _SIZES if name in os.environ]
    if processes == 1:
        os.environ.update(dict.fromkeys(ranks, "0") | dict.fromkeys(sizes, "1"))
        if ranks:
            _tell_lightning()
        return
    if "NODE_RANK" in os.environ and machines == 1:  # Lightning has started this process
        return
    if "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get(_JOB_NAME) == "bash":
        os.environ[_JOB_NAME] = "interactive step"
    started = launched()
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", devices)))
    if started == processes and per_machine == devices:
        if "SLURM_STEP_NUM_TASKS" in os.environ:  # Lightning compares the job's own numbers, a step may have others
            numbers = {"SLURM_NTASKS": started, "SLURM_NTASKS_PER_NODE": devices, "SLURM_NNODES": machines}
            os.environ.update({name: str(value) for name, value in numbers.items()})
        _tell_lightning()
        return
    others = [name for name in ranks if name not in _OF_CHILDREN and not name.startswith("SLURM")]
    several = any(os.environ[name] not in ("", "1") for name in sizes if not name.startswith("SLURM"))
    if started > 1 or machines > 1 or (others and several):
        raise ConfigError(
            f"Expected torchrun or srun to start trainer.devices={devices} processes on each of trainer.num_nodes="
            f"{machines} machines, but {_describe(started, per_machine, others)}. Use torchrun --nnodes={machines} "
            f"--nproc-per-node={devices}, or srun --nodes={machines} --ntasks-per-node={devices}; or start the "
            f"command once (on one machine it starts its own processes), or set trainer.devices=1 for independent runs."
        )
    if "SLURM_NTASKS" in os.environ:  # a job of one task: the run starts its own processes
        os.environ[_JOB_NAME] = "bash"


def _tell_lightning() -> None:
    """Set the rank in Lightning, which reads the variables when it is imported."""
    lightning = sys.modules.get("lightning_fabric.utilities.rank_zero")
    if lightning is not None:
        lightning.rank_zero_only.rank = global_rank()


def _describe(started: int, per_machine: int, others: list[str]) -> str:
    if started > 1:
        return f"it has started {started} processes, {per_machine} on a machine"
    return (
        f"got {others[0]}={os.environ[others[0]]} from another launcher" if others else "neither has started this one"
    )


def display_path(path: Path) -> Path:
    """Return a path relative to the current folder if it lies below it, and absolute otherwise."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
