"""Stored results of a command: a JSON file in ``results/``, and the page of the same name in capital letters."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.environment import display_path
from reproduction.paths import ROOT
from reproduction.runner import say


class StoredRows:
    """Rows that a command measures one after another: ``results/NAME.json``, with the page ``results/NAME.md``.

    Args:
        name: Name of the JSON file.
        command: Command that measures the rows.
        seed: Seed of the rows.

    Attributes:
        path: The JSON file.
        rows: The stored rows, and those that were added.
    """

    def __init__(self, name: str, command: str, seed: int = 0) -> None:
        self.path = ROOT / "results" / f"{name}.json"
        self.rows: list[dict[str, Any]] = read_record(self.path, [])
        self._origin = {"command": command, "seed": seed}

    def add(self, row: dict[str, Any]) -> None:
        """Print a row, and add it with its command, seed and versions; :meth:`save` writes it."""
        say(str(row))
        self.rows.append(row | self._origin | {"versions": versions()})

    def save(self) -> None:
        """Write the JSON file. The command does not measure these rows again."""
        write_record(self.path, self.rows)

    def finish(self, render: Callable[[list[dict[str, Any]]], str]) -> None:
        """Write the JSON file and its page, if there are rows."""
        if self.rows:
            write_record(self.path, self.rows, render(self.rows))
            say(f"Written: {display_path(self.path)}")


def list_missing(
    rows: Iterable[Mapping[str, Any]], networks: Iterable[tuple[str, str]], targets: Sequence[float]
) -> list[str]:
    """Return a line on the networks, given as data and name, and targets that have no row; none if all have one."""
    done = {(row["data"], row["network"], row["target"]) for row in rows}
    missing = [f"{data}, {name}, {t:g}x" for data, name in networks for t in targets if (data, name, t) not in done]
    return ["", f"Not run: {'; '.join(missing)}."] if missing else []


def read_record(path: Path, default: Any) -> Any:
    """Return the content of a JSON file; ``default`` if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else default


def write_record(path: Path, record: Any, page: str | None = None) -> None:
    """Write a JSON file, and its page if there is one: ``networks.json`` has the page ``NETWORKS.md``."""
    atomic_write(path, json.dumps(record, indent=1) + "\n")
    if page is not None:
        atomic_write(path.with_name(f"{path.stem.upper()}.md"), page)
