"""Progress of long work that does not know what shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[float], None]
"""Called with the finished share of some work, in [0, 1]."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report_progress(share: float) -> None:
    """Tell the listener, if there is one, which share of the work is finished, in [0, 1]."""
    listener = _listener.get()
    if listener is not None:
        listener(share)


@contextmanager
def listen_to_progress(listener: Listener) -> Iterator[None]:
    """Call a function with the progress of the work inside the block; outer listeners do not receive it."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress_within(start: float, share: float) -> Iterator[None]:
    """Treat the work inside the block as a share of the work of the outer listener, from ``start``."""
    outer = _listener.get()
    with listen_to_progress(lambda done: None if outer is None else outer(start + share * done)):
        yield
