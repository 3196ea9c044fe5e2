"""Atomic writes: a killed process leaves the old file or the new one, never a part."""

import os
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, content: str | bytes, *, durable: bool = False, keep: Path | None = None) -> None:
    """Write text (as UTF-8) or bytes under a temporary name, then rename the file; an older one is replaced.

    Links, also hard links of the temporary file, are replaced, not followed, so nothing is written outside the folder.
    With ``durable``, the content is flushed to disk before the file is renamed, so a power failure leaves no part
    either. An older file is kept as ``keep``.

    Raises:
        OSError: If the file cannot be written; ``filename`` names it, also for a full disk.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        if draft.is_symlink() or (draft.exists() and (not draft.is_file() or draft.stat().st_nlink > 1)):
            draft.unlink()
        with open(draft, "wb", opener=_open_no_link) as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if error.filename is None:  # such as of a full disk
            error.filename = str(path)
        raise


def _open_no_link(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
