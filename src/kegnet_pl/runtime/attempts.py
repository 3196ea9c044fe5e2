"""Curves and pictures of the attempts to build a stage; later attempts do not write them again."""

import csv
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.manifests import UNFINISHED

_PICTURE = ".png"

Record = dict[str, list[Any]]
"""Relative path -> amount (rows of a table, or bytes of another file), and its SHA-256."""


def find_tables(logs: Path) -> list[Path]:
    """Return the tables of a CSV logger in the order of its attempts; a resumed fit has several."""
    versions = [path for path in logs.glob("version_*") if path.name[8:].isdigit()]
    return [path / "metrics.csv" for path in sorted(versions, key=lambda path: int(path.name[8:]))]


def describe_attempt(folder: Path, others: Collection[str] = ()) -> Record:
    """Return a record of the files in the folders of an unfinished stage; they may grow afterwards.

    ``others`` are the names of networks whose files (``logs/NAME``, ``sheets/NAME``) other processes write.
    """
    record = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if len(name.parts) > 1 and name.parts[1] in others:
            continue
        if path.is_file() and len(name.parts) > 1 and name.parts[0] not in UNFINISHED:
            amount = sum(1 for _ in _rows(path)) if path.suffix == ".csv" else path.stat().st_size
            record[name.as_posix()] = [amount, _digest(path, amount)]
    return record


def check_attempt(folder: Path, record: Mapping[str, Any], notify: Callable[[str], object]) -> None:
    """Set aside files that differ from the record of an attempt, with a message; a table may have more rows."""
    for name, (amount, digest) in record.items():
        path = folder / name
        try:
            if _digest(path, amount) == digest and not (path.suffix == _PICTURE and path.stat().st_size != amount):
                continue
            away = folder / UNFINISHED[0] / "damaged" / name
            away.parent.mkdir(parents=True, exist_ok=True)
            path.replace(away)
            reason = "is damaged"
        except FileNotFoundError:
            reason = "is missing"
        notify(
            f"Warning: {name} of the interrupted stage {folder.name} {reason}. The finished stage will not contain "
            f"this curve or picture. Weights and results are not affected."
        )


def drop_parts(folder: Path) -> None:
    """Remove incomplete rows from the tables of an attempt, such as a row cut by a kill."""
    for path in folder.glob("logs/*/*/metrics.csv"):
        lines = path.read_bytes().split(b"\n")
        columns = lines[0].count(b",")
        whole = [lines[0], *(line for line in lines[1:-1] if line.count(b",") == columns and _is_row(line))]
        content = b"".join(line + b"\n" for line in whole)
        if len(lines) > 1 and content != b"\n".join(lines):
            atomic_write(path, content)


def _is_row(line: bytes) -> bool:
    try:
        return bool([float(cell) for cell in line.strip().split(b",") if cell])
    except ValueError:
        return False


def _rows(path: Path) -> Iterator[str]:
    """Yield the rows of a table without empty cells, since the logger adds new columns to all rows."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file, restkey="more"):
            yield repr(sorted((str(key), value) for key, value in row.items() if value))


def _digest(path: Path, amount: int) -> str:
    """Return the SHA-256 of the first rows of a table, or of the first bytes of another file."""
    found = hashlib.sha256()
    if path.suffix == ".csv":
        for row in islice(_rows(path), amount):
            found.update(row.encode())
    else:
        with path.open("rb") as file:
            found.update(file.read(amount))
    return found.hexdigest()
