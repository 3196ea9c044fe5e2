"""Stored results of a command: a JSON file in ``results/``, and the page of the same name in capital letters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kegnet_pl.runtime.atomic_files import atomic_write

_BATCH_NORM = ("batch norm", "published", "MobileNet", "ResNet18")
"""Parts of the names of networks with batch norm."""


def list_unmatched(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line on the networks with batch norm whose samples were not matched to it; none without such rows."""
    names = dict.fromkeys(
        f"{row['data']}, {row['network']}"
        for row in rows
        if not row.get("matched") and any(part in row["network"] for part in _BATCH_NORM)
    )
    return ["", f"Measured before samples were matched to batch norm: {'; '.join(names)}."] if names else []


def read_record(path: Path, default: Any) -> Any:
    """Return the content of a JSON file; ``default`` if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else default


def write_record(path: Path, record: Any, page: str | None = None) -> None:
    """Write a JSON file, and its page if there is one: ``networks.json`` has the page ``NETWORKS.md``."""
    atomic_write(path, json.dumps(record, indent=1) + "\n")
    if page is not None:
        atomic_write(path.with_name(f"{path.stem.upper()}.md"), page)
