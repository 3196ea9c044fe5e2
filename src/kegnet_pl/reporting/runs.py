"""Reading finished runs and sweeps from disk."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.schema import find_faults
from kegnet_pl.runtime.errors import FAILURE, UserError, first_line
from kegnet_pl.runtime.safe_files import exists, is_inside, printable, printable_values, read_bytes, read_json

RESULTS = "results.json"
OVERRIDES = Path(".hydra") / "overrides.yaml"
_NO_EFFECT = ("logger", "store", "resume", "verify_store", "sweep", "hydra")
_RUN = "run"
"""Key that the rows of a sweep have in addition: the name of the run."""

_SWEEP = "multirun.yaml"
_MOST_FOLDERS = 50_000
_MOST_RUNS = 10_000
_MOST_ROWS = 500
_MOST_DEPTH = 40
_MOST_NAME = 200
_MOST_SMALL = 2**20
"""Maximum size of a run's small files, in bytes."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, or a job of a sweep.

    Attributes:
        folder: Folder of its results.
        settings: Overrides of its command line, by key.
        rows: Its networks; none if it failed or was stopped.
        failure: The error of a failed run; None if it succeeded or was stopped.
        name: Name of its folder (the number of the job), with as many parent folders as make it unique.
        broken: True if its files cannot be read; ``failure`` says why.
        summary: True if it was read from the results of a sweep; its folder may not exist.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    failure: str | None = None
    name: str = ""
    broken: bool = False
    summary: bool = False


def read_runs(folders: str | Path | Sequence[str | Path]) -> list[FinishedRun]:
    """Read the runs in folders of runs and sweeps, and below.

    If only the ``results.json`` of a sweep is left, the runs are read from it. The folders may be untrusted:
    links that leave them are not followed. A run whose files cannot be read counts as failed.

    Raises:
        UserError: If a folder does not exist, holds too many folders, or none holds a finished run.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    found = find_runs(paths)
    if not any(run.rows for run in found):
        broken = next((run.failure for run in found if run.broken), None)
        if broken is not None:
            raise UserError(broken)
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
        runs = list(_Walk(folder).read(folder)) or _read_summary(folder)
        for run in runs:
            found.setdefault(Path(os.path.realpath(run.folder)), run)
    if len({path.name for path in found}) == len(found):
        return list(found.values())
    above = Path(os.path.commonpath(path.parent for path in found))
    return [replace(run, name=printable(path.relative_to(above).as_posix(), _MOST_NAME)) for path, run in found.items()]


class _Walk:
    """A walk through the folders below a root. It enters each once, and does not follow links that leave the root.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: set[str] = set()
        self.runs = 0

    def read(self, folder: Path, depth: int = 0) -> Iterator[FinishedRun]:
        """Yield the run that a folder holds, or those below it; jobs of a sweep in the order of their numbers."""
        real = os.path.realpath(folder)
        if real in self.seen:
            return
        self.seen.add(real)
        if len(self.seen) > _MOST_FOLDERS or depth > _MOST_DEPTH or self.runs > _MOST_RUNS:
            raise UserError(
                f"Expected at most {_MOST_FOLDERS:,} folders, {_MOST_RUNS:,} runs and {_MOST_DEPTH} levels below "
                f"{printable(self.root)}, but got more. Name folders of runs and sweeps."
            )
        name = printable(folder.name, _MOST_NAME)
        if not is_inside(folder, self.root):
            if _looks_like_runs(folder):
                reason = f"{printable(folder)} is a link that leaves {printable(self.root)}: name its target instead"
                yield FinishedRun(folder, failure=f"Skipped: {reason}.", name=name, broken=True)
            return
        swept = (folder / _SWEEP).exists()  # written by Hydra
        try:
            run = None if swept else _read_run(folder, name)
        except UserError as error:
            run = FinishedRun(folder, failure=str(error), name=name, broken=True)
        if run is not None:
            self.runs += 1
            yield run
            return
        for child in _children(folder):
            yield from self.read(child, depth + 1)


def _children(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError:  # of another user
        return []
    return sorted(found, key=lambda path: (not path.name.isdigit(), path.name.zfill(9)))


def _looks_like_runs(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (RESULTS, FAILURE, OVERRIDES, _SWEEP))


def _read_run(folder: Path, name: str) -> FinishedRun | None:
    """Return the run that a folder holds, None if it holds none.

    Raises:
        UserError: If its files cannot be read.
    """
    if not any(os.path.lexists(folder / file) for file in (RESULTS, FAILURE, OVERRIDES)):
        return None
    records = _records(folder)
    if any(_RUN in record for record in records):
        return None
    failure = None
    if not records and os.path.lexists(folder / FAILURE):
        content = read_json(folder / FAILURE, folder, _MOST_SMALL)
        failure = printable(content.get("error") if isinstance(content, dict) else content, lines=True)
    return FinishedRun(folder, _settings(folder / OVERRIDES, folder), _rows(records, folder), failure, name)


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / RESULTS
    if not os.path.lexists(path):
        return []
    records = read_json(path, folder)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(
            f"Expected a list of rows in {printable(path)}, but got other content. Delete the file if no run wrote it."
        )
    return records


def _rows(records: Sequence[dict[str, Any]], folder: Path) -> tuple[Row, ...]:
    if len(records) > _MOST_ROWS:
        raise UserError(
            f"Expected at most {_MOST_ROWS:,} rows of a run in {printable(folder / RESULTS)}, but got "
            f"{len(records):,}. The file is not from a run."
        )
    found = [fault for record in records for fault in find_faults(record)]
    if found:
        raise UserError(
            f"Expected rows that match results.schema.json in {printable(folder / RESULTS)}, but got: "
            f"{printable('; '.join(found[:3]))}. The file may be from another version: run its command again."
        )
    if records and (records[0]["method"] != "teacher" or records[0].get("source") or records[0].get("quantization")):
        raise UserError(
            f"Expected the teacher in the first row of {printable(folder / RESULTS)}, but got "
            f"{printable(records[0]['method'], 60)}. Run its command again."
        )
    return tuple(Row.from_dict(_shorten(printable_values(record))) for record in records)


def _shorten(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record in which all texts but the command fit a plot."""
    return {
        key: printable(value, _MOST_NAME) if isinstance(value, str) and key != "command" else value
        for key, value in record.items()
    }


def _read_summary(folder: Path) -> list[FinishedRun]:
    """Return the runs in the ``results.json`` of a sweep."""
    runs: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, dict[str, str]] = {}
    for record in _records(folder):
        name = str(record.pop(_RUN, ""))
        given = record.pop("settings", {})
        pairs = given.items() if isinstance(given, dict) else ()
        settings[name] = {printable(key): printable(value) for key, value in pairs if value is not None}
        runs.setdefault(name, []).append(record)
    if len(runs) > _MOST_RUNS:
        found = f"{len(runs):,} in {printable(folder / RESULTS)}"
        raise UserError(f"Expected at most {_MOST_RUNS:,} runs, but got {found}. The file is not from a sweep.")
    return [
        FinishedRun(
            folder / name.replace("..", "_").lstrip("/"), settings[name], _rows(records, folder),
            name=printable(name, _MOST_NAME), summary=True,
        )
        for name, records in runs.items()
    ]  # fmt: skip


def _settings(path: Path, folder: Path) -> dict[str, str]:
    if not exists(path):
        return {}
    try:
        overrides = yaml.safe_load(read_bytes(path, folder, _MOST_SMALL))
    except Exception as error:  # values of other types raise many kinds
        raise UserError(
            f"Expected the settings of a run in {printable(path)}, but got: {printable(first_line(error))}. Delete it."
        ) from error
    texts = [one for one in overrides if isinstance(one, str)] if isinstance(overrides, list) else []
    pairs = (printable(text).lstrip("+~").partition("=") for text in texts)
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
