"""Stored results of a command: a JSON file in ``results/``, and the page of the same name in capital letters."""

import json
from pathlib import Path
from typing import Any

from kegnet_pl.runtime.atomic_files import atomic_write


def read_record(path: Path, default: Any) -> Any:
    """Return the content of a JSON file; ``default`` if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else default


def write_record(path: Path, record: Any, page: str | None = None) -> None:
    """Write a JSON file, and its page if there is one: ``networks.json`` has the page ``NETWORKS.md``."""
    atomic_write(path, json.dumps(record, indent=1) + "\n")
    if page is not None:
        atomic_write(path.with_name(f"{path.stem.upper()}.md"), page)
