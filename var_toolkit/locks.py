"""Lock files: one process holds one at a time, and the system releases it when that process ends in any way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # of a folder that one run writes to
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # by some network file systems


def acquire(path: Path, *, create: bool = False) -> int | None:
    """A descriptor that holds the lock on a file or folder; None if a live process holds it.

    OSError if it does not exist and `create` does not make it; one of `UNSUPPORTED` if the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(path))
    while True:
        handle = _opened(path, os.O_CREAT if create else 0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(path, handle):
                return handle
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            raise
        os.close(handle)  # the previous holder removed the file while this process opened it


def _opened(path: Path, create: int) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | create, 0o666)  # network file systems lock what may be written
    except (IsADirectoryError, PermissionError):
        if create:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _is_still_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold an existing folder for this process; ValueError with the text `busy` if another process holds it.

    Where the file system does not support locks, there is no protection.
    """
    path = folder / LOCK
    try:
        handle = acquire(path, create=True)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        path.unlink(missing_ok=True)
        yield
        return
    if handle is None:
        raise ValueError(busy)
    held_here = [handle]

    def drop() -> None:
        for inherited in held_here:
            os.close(inherited)
        held_here.clear()

    # A forked data loader outlives its killed parent by seconds; it must not hold the lock for so long.
    os.register_at_fork(after_in_child=drop)
    try:
        yield
    finally:
        held_here.clear()
        path.unlink(
            missing_ok=True
        )  # before the lock is released, so that no process locks a file that is about to be removed
        os.close(handle)
