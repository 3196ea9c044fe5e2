"""The teachers that were trained for the tables: one a seed, kept, as another machine trains another."""

import filecmp
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from reproduction.jobs import Job
from reproduction.runner import shown


def teacher_file(folder: Path, experiment: str, seed: int) -> Path:
    """Return where the weights of an experiment's teacher are kept, in a folder of results."""
    return folder / "teachers" / f"{experiment}-seed{seed}.safetensors"


def keep_teachers(jobs: Iterable[Job], out: Path) -> None:
    """Copy the weights of the teachers of runs out of the store, once a seed.

    Args:
        jobs: Those whose teachers are trained by the run itself.
        out: Folder of results: runs lie in ``paper/``, teachers in ``teachers/``.

    Raises:
        ValueError: If the runs of a seed have not one teacher.
    """
    for job in jobs:
        run = out / "paper" / job.name
        if not (run / "results.json").exists() or not (run / "stages.json").exists():
            continue  # not run, or on another machine
        entry = run / json.loads((run / "stages.json").read_text())["networks"]["teacher"]["teacher"]
        weights, kept = entry / "network.safetensors", teacher_file(out, job.experiment, job.seed)
        if not weights.exists():
            continue  # the store is gone
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            shutil.copyfile(weights, kept)
        elif not filecmp.cmp(weights, kept, shallow=False):
            raise ValueError(
                f"Expected the runs of a seed to have one teacher, but {job.name} has another one than {shown(kept)}. "
                f"Remove that file together with its runs ({job.experiment}-*-seed{job.seed}), and run them again."
            )
