"""Finished runs on disk: what the report of a sweep is made from."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kegnet_pl.errors import UserError
from kegnet_pl.reporting.results import Row
from kegnet_pl.sweep import FAILURE

RESULTS = "results.json"
OVERRIDES = Path(".hydra") / "overrides.yaml"
SWEEP_MARK = "multirun.yaml"
"""What Hydra leaves in the folder of a sweep."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, or a job of a sweep.

    Attributes:
        folder: Where it left its results.
        settings: What was changed on its command line, by key.
        rows: Its networks; none where it failed or was stopped.
        failure: Why it failed; None where it did not, or was stopped.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    failure: str | None = None

    @property
    def name(self) -> str:
        """Its folder's name: the number of the job."""
        return self.folder.name


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read the runs in folders of runs and sweeps, and below.

    Raises:
        UserError: If a folder does not exist, or none holds a finished run.
    """
    found: dict[Path, FinishedRun] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"Expected a folder with finished runs, but {folder} does not exist.")
        for place in _run_folders(folder):
            found.setdefault(place.resolve(), read_run(place))
    if not any(run.rows for run in found.values()):
        failed = f" ({len(found)} failed or were stopped)" if found else ""
        raise UserError(
            f"Expected finished runs (folders with a {RESULTS}) in {', '.join(map(str, folders))}, but found "
            f"none{failed}. Name folders such as outputs/runs/... or outputs/sweeps/..."
        )
    return list(found.values())


def _run_folders(folder: Path) -> Iterator[Path]:
    marks = (RESULTS, FAILURE, str(OVERRIDES))
    if not (folder / SWEEP_MARK).exists() and any((folder / mark).exists() for mark in marks):
        yield folder
        return
    for child in sorted(folder.iterdir(), key=lambda path: (not path.name.isdigit(), path.name.zfill(9))):
        if child.is_dir() and not child.name.startswith("."):
            yield from _run_folders(child)


def read_run(folder: Path) -> FinishedRun:
    """Read what a run left in its folder.

    Raises:
        UserError: If its results cannot be read.
    """
    settings = _settings(folder / OVERRIDES)
    if (folder / RESULTS).exists():
        try:
            rows = tuple(Row(**row) for row in json.loads((folder / RESULTS).read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"Expected the results of a run in {folder / RESULTS}, but: {error}.") from error
        return FinishedRun(folder, settings, rows)
    failure = json.loads((folder / FAILURE).read_text())["error"] if (folder / FAILURE).exists() else None
    return FinishedRun(folder, settings, failure=failure)


def _settings(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    overrides: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    pairs = (str(override).lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def varied(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the keys whose values differ between runs, in the order of the command line."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
