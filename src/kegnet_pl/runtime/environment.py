"""The environment of this process: its rank and its folder; this module imports nothing heavy."""

import os
from pathlib import Path


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def display_path(path: Path) -> Path:
    """Return a path relative to the current folder if it lies below it, and absolute otherwise."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
