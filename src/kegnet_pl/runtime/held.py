"""Standard error that is held back until it is known whether a better message replaces it."""

import io
import sys
from typing import TextIO

_stream: TextIO | None = None


def hold() -> None:
    """Keep what is written to ``sys.stderr`` in memory from now on."""
    global _stream
    release()
    _stream, sys.stderr = sys.stderr, io.StringIO()


def release(*, show: bool = True) -> None:
    """Restore ``sys.stderr``, and write to it what was held, or drop that; does nothing if nothing is held."""
    global _stream
    if _stream is None:
        return
    held, sys.stderr, _stream = sys.stderr, _stream, None
    if show and isinstance(held, io.StringIO):
        sys.stderr.write(held.getvalue())
