"""Files that are there whole or not at all, whenever a run is killed."""

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, then move it there.

    Args:
        path: The file; an older one is replaced.
        content: Text (written as UTF-8) or bytes.
    """
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)
