"""Atomic writes: a killed process leaves the old file or the new one, never a part."""

import os
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, content: str | bytes, *, durable: bool = False, keep: Path | None = None) -> None:
    """Write text (as UTF-8) or bytes under a temporary name, then rename the file; an older one is replaced.

    With ``durable``, the content is on the disk before the file is renamed, so a power failure leaves no part either.
    An older file is kept as ``keep``.

    Raises:
        OSError: If the file cannot be written; ``filename`` names it, also where the disk is full.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
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
