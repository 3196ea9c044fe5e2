"""The teachers that were trained for the tables: one a seed, kept, as another machine trains another.

What is kept is the stage of the store (weights, settings, costs), so that a run on another machine finds its teacher
built, and that every row of a seed has one teacher, wherever it is made.
"""

import filecmp
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp

from reproduction.jobs import Job
from reproduction.runner import shown

WEIGHTS = "network.safetensors"


def keep_teachers(jobs: Iterable[Job], out: Path) -> None:
    """Copy the teachers of runs out of the store, once a seed, without their curves.

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
        kept = _place(out, job.experiment, job.seed)
        if not kept.exists():
            _copy(teacher, kept)
        elif not filecmp.cmp(teacher / WEIGHTS, kept / WEIGHTS, shallow=False):
            raise ValueError(
                f"Expected the runs of a seed to have one teacher, but {job.name} has another one than {shown(kept)}. "
                f"Remove that folder together with its runs ({job.experiment}-*-seed{job.seed}), and run them again."
            )


def hand_out_teachers(wanted: Iterable[tuple[str, int]], out: Path, store: Path) -> None:
    """Copy the teachers that were kept into a store that lacks them, where runs find them.

    Args:
        wanted: Experiment and seed of the runs to come.
        out: Folder of results, with ``teachers/``.
        store: The runs' store. A teacher that was trained with other settings or data lies in it unused.

    Raises:
        ValueError: If a teacher that was kept is damaged.
    """
    for kept in (_place(out, *key) for key in dict.fromkeys(wanted)):
        if not kept.exists():
            continue
        try:
            manifest = json.loads((kept / "manifest.json").read_text())
            entry = store / f"{manifest['stage']}-{manifest['fingerprint']}"
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{shown(kept)} is damaged ({error}): restore it (git checkout), or remove it with the seed's runs."
            ) from error
        if not entry.exists():
            _copy(kept, entry)


def _place(out: Path, experiment: str, seed: int) -> Path:
    return out / "teachers" / f"{experiment}-seed{seed}"


def _copy(stage: Path, to: Path) -> None:
    """Copy a stage, whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    begun = Path(mkdtemp(prefix=".copy-", dir=to.parent))
    shutil.copytree(stage, begun / to.name, ignore=shutil.ignore_patterns("logs"))
    (begun / to.name).rename(to)
    begun.rmdir()
