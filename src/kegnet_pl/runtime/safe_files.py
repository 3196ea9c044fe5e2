"""Safe reading of run folders, which may be untrusted: only regular files inside the folder, of limited size.

Texts of such files are printed with :func:`printable`.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from kegnet_pl.runtime.errors import UserError, first_line

MOST_BYTES = 64 * 2**20
"""Maximum size of a file that is read."""

LARGEST = 1e100
"""Maximum number that is read; sums and plots of larger numbers overflow."""

_MOST_DIGITS = 24
_MOST_TEXT = 4_000
_PNG = b"\x89PNG\r\n\x1a\n"

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFLNK: "a loop of links",
}  # fmt: skip


class RefusedFileError(UserError):
    """A file is not a regular file, is outside its folder, is too large, or does not have the format of its name."""


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if a path lies in a folder after all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def exists(path: Path) -> bool:
    """Return True if there is a regular file at a path; it is not opened."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, folder: Path | None, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file.

    Args:
        path: The file.
        folder: Folder that it must lie in, after links are followed; None for any.
        most: Maximum number of bytes.

    Raises:
        RefusedFileError: If it is not a regular file, is outside the folder, is too large, or cannot be read.
    """
    real = Path(os.path.realpath(path))
    if folder is not None and not real.is_relative_to(os.path.realpath(folder)):
        raise _refused(path, f"a link that leaves {folder}", "Copy its target into the folder.")
    try:
        _check_kind(path, os.lstat(real).st_mode)
        descriptor = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            _check_kind(path, os.fstat(file.fileno()).st_mode)
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise _refused(path, reason, "Check the folder, or omit it.") from error
    if len(content) > most:
        raise _refused(path, f"more than {most:,} bytes", "The file is not from a run.")
    return content


def read_json(path: Path, folder: Path | None, most: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file; numbers are at most 1e100 and have at most 24 digits. See :func:`read_bytes`.

    Raises:
        RefusedFileError: If it cannot be read, or is not such a JSON file.
    """
    content = read_bytes(path, folder, most)
    try:
        return json.loads(content, parse_int=_integer, parse_float=_number, parse_constant=_number)
    except RecursionError as error:
        raise _refused(path, "lists that are nested too deeplyly", "The file is damaged, or not from a run.") from error
    except ValueError as error:
        raise _refused(path, first_line(error), "The file is damaged: run its command again, or delete it.") from error


def read_png(path: Path, folder: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a PNG file. See :func:`read_bytes`.

    Raises:
        RefusedFileError: If it cannot be read, or is not a PNG file.
    """
    content = read_bytes(path, folder, most)
    if not content.startswith(_PNG):
        raise _refused(path, "a file that is not PNG", "The file is damaged, or not from a run.")
    return content


def printable(text: object, most: int = _MOST_TEXT, *, lines: bool = False) -> str:
    r"""Return a text that is safe to print: control characters become escapes such as ``\x1b``.

    Args:
        text: The text.
        most: Maximum number of characters; longer texts end with an ellipsis.
        lines: True to keep line breaks.
    """
    found = str(text)
    if len(found) > most:
        found = f"{found[: most - 1]}…"
    if found.isprintable():
        return found
    kept = "\n\N{NO-BREAK SPACE}" if lines else "\N{NO-BREAK SPACE}"
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in found
    )


def printable_values(value: Any) -> Any:
    """Return plain values, at any depth, with :func:`printable` texts and names."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): printable_values(one) for key, one in value.items()}
    return [printable_values(one) for one in value] if isinstance(value, list) else value


def _refused(path: Path, reason: str, remedy: str) -> RefusedFileError:
    return RefusedFileError(f"Expected a file of a run at {printable(path)}, but got: {printable(reason)}. {remedy}")


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise _refused(path, kind, "Only regular files are opened.")


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if value - value != 0:  # infinite, or NaN
        raise ValueError(f"{text[:20]}, which is not a finite number")
    if abs(value) > LARGEST:
        raise ValueError(f"{text[:20]}, which is too large")
    return value
