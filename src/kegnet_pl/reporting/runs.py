"""Reading finished runs and sweeps from disk."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kegnet_pl.reporting.results import Row
from kegnet_pl.runtime.errors import FAILURE, UserError

RESULTS = "results.json"
OVERRIDES = Path(".hydra") / "overrides.yaml"
_NO_EFFECT = ("logger", "store", "resume", "verify_store", "sweep", "hydra")
_RUN = "run"
"""Key that the rows of a sweep have in addition: the name of the run."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, or a job of a sweep.

    Attributes:
        folder: Folder of its results.
        settings: Overrides of its command line, by key.
        rows: Its networks; none if it failed or was stopped.
        failure: The error of a failed run; None if it succeeded or was stopped.
        name: Name of its folder (the number of the job), with as many parent folders as make it unique.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    failure: str | None = None
    name: str = ""


def read_runs(folders: str | Path | Sequence[str | Path]) -> list[FinishedRun]:
    """Read the runs in folders of runs and sweeps, and below.

    If only the ``results.json`` of a sweep is left, the runs are read from it.

    Raises:
        UserError: If a folder does not exist, cannot be read, or none holds a finished run.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    found = find_runs(paths)
    if not any(run.rows for run in found):
        failed = f" ({len(found)} failed or were stopped)" if found else ""
        raise UserError(
            f"Expected finished runs (folders with a {RESULTS}) in {', '.join(map(str, paths))}, but found "
            f"none{failed}. Name folders such as outputs/runs/... or outputs/sweeps/..."
        )
    return found


def find_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read runs, also where none has finished; see :func:`read_runs`."""
    found: dict[Path, FinishedRun] = {}
    for folder in folders:
        if not folder.is_dir():
            reason = "it is a file" if folder.exists() else "it does not exist"
            raise UserError(f"Expected a folder with finished runs, but got {folder}: {reason}.")
        runs = list(_read_folder(folder)) or _read_summary(folder)
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    if len({path.name for path in found}) == len(found):
        return list(found.values())
    above = Path(os.path.commonpath(path.parent for path in found))
    return [replace(run, name=path.relative_to(above).as_posix()) for path, run in found.items()]


def _read_folder(folder: Path) -> Iterator[FinishedRun]:
    """Yield the run that a folder holds, or those below it; jobs of a sweep in the order of their numbers."""
    swept = (folder / "multirun.yaml").exists()  # written by Hydra
    records = [] if swept else _records(folder)
    holds_run = any((folder / name).exists() for name in (RESULTS, FAILURE, OVERRIDES))
    if holds_run and not swept and not any(_RUN in record for record in records):
        stopped = not records and (folder / FAILURE).exists()
        failure = json.loads((folder / FAILURE).read_text())["error"] if stopped else None
        yield FinishedRun(folder, _settings(folder / OVERRIDES), _rows(records, folder), failure, folder.name)
        return
    for child in sorted(folder.iterdir(), key=lambda path: (not path.name.isdigit(), path.name.zfill(9))):
        if child.is_dir() and not child.name.startswith("."):
            yield from _read_folder(child)


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / RESULTS
    if not path.exists():
        return []
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"Expected the results of a run in {path}, but: {error}. Run it again, or delete it."
        ) from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(
            f"Expected a list of rows in {path}, but it is something else. Delete it, if it is not a run's."
        )
    return records


def _rows(records: Sequence[dict[str, Any]], folder: Path) -> tuple[Row, ...]:
    try:
        return tuple(Row.from_dict(record) for record in records)
    except TypeError as error:
        raise UserError(
            f"Expected rows as results.schema.json describes them in {folder / RESULTS}, but: "
            f"{str(error).removeprefix('Row.__init__() ')}. Was it written by another version?"
        ) from error


def _read_summary(folder: Path) -> list[FinishedRun]:
    """Return the runs in the ``results.json`` of a sweep."""
    runs: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, dict[str, str]] = {}
    for record in _records(folder):
        name = str(record.pop(_RUN, ""))
        settings[name] = {key: value for key, value in record.pop("settings", {}).items() if value is not None}
        runs.setdefault(name, []).append(record)
    return [
        FinishedRun(folder / name, settings[name], _rows(records, folder), name=name) for name, records in runs.items()
    ]


def _settings(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    overrides: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    pairs = (str(override).lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def varied(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the keys whose values differ between runs, in the order of the command line.

    Settings that do not change a network (loggers, folders) are left out.
    """
    return [
        key
        for key in dict.fromkeys(key for run in runs for key in run.settings)
        if len({run.settings.get(key) for run in runs}) > 1
        and re.split(r"[./]", key)[0] not in _NO_EFFECT
        and key not in ("data.root", "data.download")
    ]
