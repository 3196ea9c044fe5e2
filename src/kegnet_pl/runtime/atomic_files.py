"""Atomic writes: a killed process leaves the old file or the new one, never a part."""

import os
from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes under a temporary name, then rename the file; an older one is replaced.

    Links are replaced, not followed, so that nothing is written outside of the folder.
    """
    draft = path.with_name(f".{path.name}.draft")
    if draft.is_symlink() or (draft.exists() and not draft.is_file()):
        draft.unlink()
    with open(draft, "wb", opener=_open_no_link) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    draft.replace(path)


def _open_no_link(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
