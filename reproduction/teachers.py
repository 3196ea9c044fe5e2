"""The kept teachers that were trained for the tables: one for each seed.

Machines differ in rounding, so another machine trains another teacher of the same seed. Therefore the stage of the
store (weights, settings, costs) is kept. All rows of a seed have the same teacher, on every machine.
"""

import filecmp
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp

from kegnet_pl.runtime.environment import display_path
from reproduction.jobs import Job

WEIGHTS = "network.safetensors"


def keep_teachers(jobs: Iterable[Job], folder: Path, teachers: Path) -> None:
    """Copy one teacher for each seed from the store of the runs, without its logs.

    Args:
        jobs: Jobs whose runs train their teacher.
        folder: Working folder of the runs.
        teachers: Folder of kept teachers.

    Raises:
        ValueError: If the runs of a seed have different teachers.
    """
    # The import takes seconds, which --help should not wait for.
    from kegnet_pl.reporting.run_page import StageFolders

    for job in jobs:
        stages = StageFolders.read(folder / job.name)
        teacher = stages and stages.find("teacher")
        if not teacher:
            continue  # not run here, or the store was removed
        kept = _teacher_folder(teachers, job.experiment, job.seed)
        if not kept.exists():
            _copy(teacher, kept)
        elif not filecmp.cmp(teacher / WEIGHTS, kept / WEIGHTS, shallow=False):
            raise ValueError(
                f"Expected the runs of a seed to have one teacher, but {job.name} has another one than "
                f"{display_path(kept)}. Remove that folder and the lines of its runs "
                f"({job.experiment}-*-seed{job.seed}), and run them again."
            )


def copy_to_store(wanted: Iterable[tuple[str, int]], teachers: Path, store: Path) -> None:
    """Copy kept teachers into a store that does not contain them.

    Args:
        wanted: Experiment and seed of the runs that need a teacher.
        teachers: Folder of kept teachers.
        store: Store of the runs. Runs with other settings or data do not use the copied teacher.

    Raises:
        ValueError: If a kept teacher is damaged.
    """
    for kept in (_teacher_folder(teachers, *key) for key in dict.fromkeys(wanted)):
        if not kept.exists():
            continue
        try:
            manifest = json.loads((kept / "manifest.json").read_text())
            entry = store / f"{manifest['stage']}-{manifest['fingerprint']}"
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"Expected a teacher in {display_path(kept)}, but its manifest is damaged ({error!r}). "
                "Restore it (git checkout), or remove it with the lines of its runs."
            ) from error
        if not entry.exists():
            _copy(kept, entry)


def _teacher_folder(teachers: Path, experiment: str, seed: int) -> Path:
    return teachers / f"{experiment}-seed{seed}"


def _copy(stage: Path, to: Path) -> None:
    """Copy a stage without its logs, atomically; the manifest of the copy names the files that it has."""
    from kegnet_pl.runtime.manifests import MANIFEST, SEAL, describe_files, seal

    to.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(prefix=".copy-", dir=to.parent))
    shutil.copytree(stage, draft / to.name, ignore=shutil.ignore_patterns("logs"))
    manifest = json.loads((draft / to.name / MANIFEST).read_text())
    if SEAL in manifest:  # manifests of earlier versions name no logs
        copied = seal(manifest | {"files": describe_files(draft / to.name)})
        (draft / to.name / MANIFEST).write_text(json.dumps(copied, indent=2))
    (draft / to.name).rename(to)
    draft.rmdir()
