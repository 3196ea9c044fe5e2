"""The teachers that were trained for the tables: one a seed, kept, as another machine trains another."""

import filecmp
import shutil
from collections.abc import Iterable
from pathlib import Path

from reproduction.jobs import Job
from reproduction.runner import shown


def keep_teachers(jobs: Iterable[Job], out: Path) -> None:
    """Copy the weights of the teachers of runs out of the store, once a seed.

    Args:
        jobs: Those whose teachers are trained by the run itself.
        out: Folder of results: runs lie in ``paper/``, teachers in ``teachers/``.

    Raises:
        ValueError: If the runs of a seed have not one teacher.
    """
    from kegnet_pl.reporting.run_page import (
        StageFolders,
    )  # takes seconds to import: not where it is only asked for help

    for job in jobs:
        stages = StageFolders.read(out / "paper" / job.name)
        teacher = stages and stages.find("teacher")
        if not teacher:
            continue  # not run, on another machine, or its store is gone
        weights = teacher / "network.safetensors"
        kept = out / "teachers" / f"{job.experiment}-seed{job.seed}.safetensors"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            shutil.copyfile(weights, kept)
        elif not filecmp.cmp(weights, kept, shallow=False):
            raise ValueError(
                f"Expected the runs of a seed to have one teacher, but {job.name} has another one than {shown(kept)}. "
                f"Remove that file together with its runs ({job.experiment}-*-seed{job.seed}), and run them again."
            )
