"""Atomic writes: a killed process leaves the old file or the new one, never a part."""

from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes under a temporary name, then rename the file; an older one is replaced."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)
