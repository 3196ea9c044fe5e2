"""Finished runs on disk: what the report of a sweep is made from."""

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
SWEEP_MARK = "multirun.yaml"
"""What Hydra leaves in the folder of a sweep."""
_PLACES = ("logger", "store", "resume", "sweep", "hydra")
_RUN = "run"
"""What a sweep's rows have beside a run's: the name of theirs."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, or a job of a sweep.

    Attributes:
        folder: Where it left its results.
        settings: What was changed on its command line, by key.
        rows: Its networks; none where it failed or was stopped.
        failure: Why it failed; None where it did not, or was stopped.
        name: Of its folder, which is the number of the job; with so much of the path as tells it from the others.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    failure: str | None = None
    name: str = ""


def read_runs(folders: str | Path | Sequence[str | Path]) -> list[FinishedRun]:
    """Read the runs in folders of runs and sweeps, and below.

    A folder of which only a sweep's own ``results.json`` is left gives the runs that it tells of.

    Raises:
        UserError: If a folder does not exist, cannot be read, or none holds a finished run.
    """
    places = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    found = find_runs(places)
    if not any(run.rows for run in found):
        failed = f" ({len(found)} failed or were stopped)" if found else ""
        raise UserError(
            f"Expected finished runs (folders with a {RESULTS}) in {', '.join(map(str, places))}, but found "
            f"none{failed}. Name folders such as outputs/runs/... or outputs/sweeps/..."
        )
    return found


def find_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read runs, also where none has finished; see :func:`read_runs`."""
    found: dict[Path, FinishedRun] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "it is a file" if folder.exists() else "it does not exist"
            raise UserError(f"Expected a folder with finished runs, but got {folder}: {what}.")
        runs = [read_run(place) for place in _run_folders(folder)] or _read_summary(folder)
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    if len({path.name for path in found}) == len(found):
        return list(found.values())
    above = Path(os.path.commonpath(path.parent for path in found))
    return [replace(run, name=path.relative_to(above).as_posix()) for path, run in found.items()]


def _run_folders(folder: Path) -> Iterator[Path]:
    marks = (RESULTS, FAILURE, str(OVERRIDES))
    if any((folder / mark).exists() for mark in marks) and not _is_of_several(folder):
        yield folder
        return
    for child in sorted(folder.iterdir(), key=lambda path: (not path.name.isdigit(), path.name.zfill(9))):
        if child.is_dir() and not child.name.startswith("."):
            yield from _run_folders(child)


def _is_of_several(folder: Path) -> bool:
    return (folder / SWEEP_MARK).exists() or any(_RUN in record for record in _records(folder))


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
    """Return the runs that a sweep's ``results.json`` tells of."""
    runs: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, dict[str, str]] = {}
    for record in _records(folder):
        name = str(record.pop(_RUN, ""))
        settings[name] = {key: value for key, value in record.pop("settings", {}).items() if value is not None}
        runs.setdefault(name, []).append(record)
    return [
        FinishedRun(folder / name, settings[name], _rows(records, folder), name=name) for name, records in runs.items()
    ]


def read_run(folder: Path) -> FinishedRun:
    """Read what a run left in its folder.

    Raises:
        UserError: If its results cannot be read.
    """
    settings = _settings(folder / OVERRIDES)
    if (folder / RESULTS).exists():
        return FinishedRun(folder, settings, _rows(_records(folder), folder), name=folder.name)
    failure = json.loads((folder / FAILURE).read_text())["error"] if (folder / FAILURE).exists() else None
    return FinishedRun(folder, settings, failure=failure, name=folder.name)


def _settings(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    overrides: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    pairs = (str(override).lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def varied(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the keys whose values differ between runs, in the order of the command line.

    Settings that say where something is kept or shown, and change no network, are left out.
    """
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.settings) if not _changes_nothing(key)]
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def _changes_nothing(key: str) -> bool:
    return re.split(r"[./]", key)[0] in _PLACES or key in ("data.root", "data.download")
