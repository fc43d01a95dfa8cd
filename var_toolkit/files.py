"""Files and folders that appear whole or not at all, and the removal of what killed processes left behind.

What is being written lies in a hidden file or folder `.NAME-XXXXXXXX.partial` beside its target. The process that
writes it holds a lock on it, which the system releases when that process ends in any way: so leftovers are told apart.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import BoundedSemaphore, Lock
from typing import Self

from var_toolkit.locks import acquire

ENDING = ".partial"
PARTIAL = re.compile(r"\..+-\w{8}\.partial")
_ASKING = Lock()  # two threads that read the umask of the process at once would leave it at 0


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it that name; after an error nothing is left.

    Missing folders are made. OSError names `path` if the disk is full, for example.
    """
    with made(path.parent), partial(path) as temporary:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # the temporary file was made private
        os.replace(temporary, path)


class Writers:
    """Threads that encode and write files, each whole or not at all, while other work goes on.

    The block ends once all files that were handed over are written, also after an error or Ctrl-C. OSError of the file
    that failed first is raised where the next file is handed over, or at the end of the block.
    """

    WAITING = 64  # files, which bounds the memory that their contents take

    def __init__(self, threads: int | None = None) -> None:
        from concurrent.futures import ThreadPoolExecutor  # late, for what writes nothing

        count = threads or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="writer")
        self._places, self._failed = BoundedSemaphore(self.WAITING), Queue[BaseException]()

    def write(self, path: Path, write: Callable[[Path], object]) -> None:
        """`write_whole` in one of the threads; waits while too many files are waiting."""
        self._raise_first()
        self._places.acquire()
        self._pool.submit(self._written, path, write)

    def _written(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            write_whole(path, write)
        except BaseException as error:
            self._failed.put(error)
        finally:
            self._places.release()

    def _raise_first(self) -> None:
        if not self._failed.empty():
            raise self._failed.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._raise_first()


@contextmanager
def written_whole(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the name `target` once the block ends well; nothing is left if it does not.

    Missing folders are made. ValueError if the target exists and is no empty folder, unless `overwrite` replaces it,
    or what it links to.
    """
    if overwrite:
        target = target.resolve()
    replaced = target.with_name(f".{target.name}.replaced")
    if replaced.exists() and not target.exists():
        os.replace(replaced, target)  # a process was killed between the two renamings below
    if not overwrite:
        check_new(target)
    with made(target.parent):
        sweep(target.parent)
        with partial(target, folder=True) as temporary:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if overwrite and target.exists():
                _remove(replaced)
                os.replace(target, replaced)
            os.replace(temporary, target)
            _remove(replaced)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents where they are missing; those that are empty at the end of the block go again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        _remove_empty(missing)


@contextmanager
def partial(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A locked temporary file or folder beside `target`, which is removed at the end if it still has that name.

    OSErrors about it, and those that name no file, name the target instead: a full disk does not know what was written.
    """
    with _naming(target):
        path, descriptor = _new_partial(target, folder)
    try:
        with _naming(target, path):
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


def allocate(path: Path) -> None:
    """Give a new file all the space of its length now. OSError with its name if the disk is full; then it is removed.

    Else a memory map of a sparse file ends the process with a bus error when the disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with _naming(path), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def check_new(target: Path) -> None:
    """ValueError in one line if a folder that is to be written exists already, unless it is empty."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ValueError(f"{target} exists already; choose another name or remove it")


def check_writable(folder: Path) -> None:
    """See that files can be written in a folder, or that it can be made; ValueError in one line if not.

    Nothing is made. What killed processes left half written in the folder is removed.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            raise ValueError(f"cannot write to {folder}: {there} is not a folder; choose another folder")
        tempfile.TemporaryFile(dir=there).close()
        sweep(there)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None


def _new_partial(target: Path, folder: bool) -> tuple[Path, int | None]:
    """A new temporary path and the descriptor of its lock; None where the file system does not support locks."""
    # A name has 255 bytes at most, and this one is longer than the target's.
    short = os.fsencode(target.name)[:200].decode(errors="ignore")
    names = {"prefix": f".{short}-", "suffix": ENDING, "dir": target.parent}
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
    try:
        return acquire(path)
    except OSError:
        return None


@contextmanager
def _naming(target: Path, temporary: Path | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        if name is None or temporary is None:
            name = target
        elif name.is_relative_to(temporary):
            name = target / name.relative_to(temporary)
        else:
            raise  # of a file that was read
        raise OSError(error.errno, error.strerror or str(error), str(name)) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
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
    with _ASKING:
        mask = os.umask(0)  # which is also the only way to read it
        os.umask(mask)
    return mask
