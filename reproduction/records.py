"""The JSON-lines files of finished runs: one line for each run, sorted by name.

``results/STUDY.jsonl`` holds one study. A line is ``{"run": NAME, "rows": [...]}`` with the rows of the run's
``results.json``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.environment import display_path
from reproduction.commands import present

Rows = list[dict[str, Any]]


def read_runs(path: Path) -> dict[str, Rows]:
    """Return the rows of each finished run by its name, sorted by name; empty if the file does not exist.

    Commands have the spelling of this version, whatever version made the row.

    Raises:
        ValueError: If a line is damaged.
    """
    runs = _read_as_stored(path)
    return {name: [row | {"command": present(row["command"])} for row in rows] for name, rows in runs.items()}


def _read_as_stored(path: Path) -> dict[str, Rows]:
    runs: dict[str, Rows] = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            record = json.loads(line)
            runs[record["run"]] = record["rows"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Expected the JSON of a run in line {number} of {display_path(path)}, but got {error!r}. "
                "Remove the line and run the same command again."
            ) from error
    return dict(sorted(runs.items()))


def write_runs(path: Path, runs: Mapping[str, Rows]) -> None:
    """Write runs sorted by name. A process that is killed leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps({"run": name, "rows": runs[name]}) + "\n" for name in sorted(runs)))


def add_run(path: Path, name: str, results: Path) -> None:
    """Add a finished run, or replace its line. Several processes may do so at the same time.

    Args:
        path: File of the study.
        name: Name of the run.
        results: The ``results.json`` that the run wrote.
    """
    rows = json.loads(results.read_text())
    for row in rows:  # times of a machine that does other work; tables of speed measure it on their own
        row.pop("latency", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        write_runs(path, _read_as_stored(path) | {name: rows})
