"""Locks between processes: the operating system locks a file, and releases it when its owner exits."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TRIES = 5


@contextmanager
def locked(path: Path, waiting: Callable[[str], object] | None) -> Iterator[None]:
    """Hold a lock; its file is removed when the lock is released.

    The lock uses ``flock``: the kernel releases it when the owner exits or is killed. Network file
    systems must support it (NFS does, unless it is mounted with ``nolock`` or ``local_lock``).

    Args:
        path: The file; it may belong to another user, and read permission is enough.
        waiting: Called once with the owner, such as ``"process 12 on host"``, if another process holds the lock; None
            does not wait.

    Raises:
        BlockingIOError: If another process holds the lock and ``waiting`` is None.
        OSError: If the file cannot be opened, or the file system has no locks.
    """
    descriptor = _acquire(path, waiting)
    try:
        with suppress(OSError):  # another user's file, or a full disk: only the owner's name is lost
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while the lock is held: a waiting process notices it and creates a new file
        os.close(descriptor)


def _acquire(path: Path, waiting: Callable[[str], object] | None) -> int:
    said = False
    while True:
        descriptor = _open(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                if not said:
                    said = True
                    waiting(os.pread(descriptor, 200, 0).decode(errors="replace") or "another process")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNSUPPORTED:
                error.filename = str(path)
                error.strerror = "this file system has no locks (flock)"
            raise
        except BaseException:  # such as Ctrl-C while it waits
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int:
    mode = 0o666 if follows_group(path.parent) else 0o644
    for _ in range(_TRIES):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        except PermissionError:
            with suppress(FileNotFoundError):  # its owner has removed it in the meantime
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _is_still(descriptor: int, path: Path) -> bool:
    """Return True if the open file is the one at the path: its last owner has not removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def follows_group(folder: Path) -> bool:
    """Return True if a folder is shared by a group: the group may write, and new files belong to it."""
    found = folder.stat()
    return bool(found.st_mode & stat.S_IWGRP) and (bool(found.st_mode & stat.S_ISGID) or found.st_gid == os.getegid())


@contextmanager
def group_modes(folder: Path) -> Iterator[None]:
    """Let the group write what this process creates, if the folder is shared by a group."""
    if not follows_group(folder):
        yield
        return
    before = os.umask(0o077)
    os.umask(before & ~0o070)
    try:
        yield
    finally:
        os.umask(before)
