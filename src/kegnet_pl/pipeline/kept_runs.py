"""The identifier of a tracker's run. An interrupted pipeline stores it for the next attempt."""

import json
import secrets
from contextlib import ExitStack, suppress
from pathlib import Path

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.locks import locked


class KeptRun:
    """Identifier of a tracker's run and the curves in it; the next attempt of an interrupted pipeline continues it.

    A lock prevents a second process that runs the same pipeline at the same time from using the same identifier.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = ExitStack()
        self._path: Path | None = None
        self.identifier: str | None = None
        self.begun: list[str] = []
        if path is None:
            return
        with suppress(OSError):  # another process has it, or the store is read-only
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(locked(path.with_suffix(".lock"), None))
            self._path = path
        with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: a new run
            if self._path is not None:
                found = json.loads(path.read_text())
                self.identifier, self.begun = str(found["id"]), [str(name) for name in found["begun"]]

    def start(self, identifier: str | None = None) -> str:
        """Return the identifier of the run: the given one, or that of the interrupted run, or a new one."""
        identifier = identifier or self.identifier or secrets.token_hex(4)
        if identifier != self.identifier:
            self.identifier, self.begun = identifier, []
        self._write()
        return identifier

    def begin(self, namespace: str) -> bool:
        """Return True if the run has no curves with this namespace yet; it has them from now on."""
        if namespace in self.begun:
            return False
        self.begun.append(namespace)
        self._write()
        return True

    def close(self, *, success: bool) -> None:
        """Forget the identifier if the pipeline succeeded, and release the lock."""
        if success and self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._lock.close()

    def _write(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                atomic_write(self._path, json.dumps({"id": self.identifier, "begun": self.begun}) + "\n")
