"""Files and folders that appear whole or not at all, and the removal of what killed processes left behind.

What is being written lies in a hidden file or folder `.NAME-XXXXXXXX.partial` beside its target. The process that
writes it holds a lock on it, which the system releases when that process ends in any way: so leftovers are told apart.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

ENDING = ".partial"
PARTIAL = re.compile(r"\..+-\w{8}\.partial")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it that name; after an error nothing is left."""
    try:
        with partial(path) as temporary:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # the temporary file was made private
            os.replace(temporary, path)
    except OSError as error:  # of a full disk, say, which does not know what was written, or of the temporary name
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the name `target` once the block ends well; nothing is left if it does not.

    ValueError if the target exists and is not an empty folder.
    """
    check_new(target)
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    try:
        with partial(target, folder=True) as temporary:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            os.replace(temporary, target)
    except BaseException:
        _remove_empty(missing)
        raise


@contextmanager
def partial(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A locked temporary file or folder beside `target`, which is removed at the end if it still has that name."""
    path, descriptor = _new_partial(target, folder)
    try:
        yield path
    finally:
        _remove(path)
        if descriptor is not None:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that processes left in `folder` when they were killed."""
    for path in folder.glob(f".*{ENDING}"):
        if PARTIAL.fullmatch(path.name) and (descriptor := _lock(path)) is not None:
            _remove(path)
            os.close(descriptor)


def check_new(target: Path) -> None:
    """ValueError in one line if a folder that is to be written exists already, unless it is empty."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ValueError(f"{target} exists already; choose another name or remove it")


def check_writable(folder: Path, *, make: bool = True) -> None:
    """See that files can be written in a folder; ValueError in one line if not.

    A missing folder is made, or else, without `make`, the nearest folder above it is tried. What killed processes left
    half written there is removed.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
        sweep(there)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"cannot write to {folder}: it is not a folder, or lies below a file") from None
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None


def _new_partial(target: Path, folder: bool) -> tuple[Path, int | None]:
    """A new temporary path and the descriptor that holds its lock; None where the file system has no such locks."""
    names = {"prefix": f".{target.name}-", "suffix": ENDING, "dir": target.parent}
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(**names))  # type: ignore[call-overload]
        else:
            handle, name = tempfile.mkstemp(**names)  # type: ignore[call-overload]
            os.close(handle)
            path = Path(name)
        descriptor = _lock(path)
        if path.exists():  # or another process took it for a leftover before it was locked
            return path, descriptor
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a path; None if another process holds it, or there are no locks here."""
    if sys.platform == "win32":
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
