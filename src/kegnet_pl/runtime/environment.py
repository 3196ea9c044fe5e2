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
    "JSM_NAMESPACE_SIZE",
)  # fmt: skip
"""Variables with the number of processes."""

_OF_CHILDREN = ("LOCAL_RANK",)
"""Variables that Lightning also sets, for the processes that it starts."""


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def choose_ranks(processes: int) -> None:
    """Make a run of one process ignore the rank that a launcher (srun, torchrun, mpirun) has set.

    Raises:
        ConfigError: If a launcher has started one of several processes, which the run starts itself.
    """
    ranks = [name for name in _RANKS if name in os.environ]
    sizes = [name for name in _SIZES if name in os.environ]
    if processes == 1:
        os.environ.update(dict.fromkeys(ranks, "0") | dict.fromkeys(sizes, "1"))
        lightning = sys.modules.get("lightning_fabric.utilities.rank_zero")  # reads the variables when it is imported
        if ranks and lightning is not None:
            lightning.rank_zero_only.rank = 0
        return
    started = [name for name in ranks if name not in _OF_CHILDREN]
    several = any(os.environ[name] not in ("", "1") for name in sizes)
    if started and several and "NODE_RANK" not in os.environ:
        raise ConfigError(
            f"Expected one start of the command for trainer.devices={processes}, since it starts its own "
            f"processes, but got {started[0]}={os.environ[started[0]]} from a launcher with several tasks (torchrun, "
            f"srun). Start the command once (srun --ntasks=1), or set trainer.devices=1 for independent runs."
        )


def display_path(path: Path) -> Path:
    """Return a path relative to the current folder if it lies below it, and absolute otherwise."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
