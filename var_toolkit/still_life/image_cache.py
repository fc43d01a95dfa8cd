"""Renders still lifes or scenes into a file once, on all CPU cores, and returns the file's images afterwards.

torch is not imported here, so that the rendering processes start fast. Images are rendered in chunks, each written
atomically to its own file; when all exist they are joined into one file under its final name. After a kill, rendering
continues with the missing chunks, and a longer file reuses the images of a shorter one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap

from var_toolkit.files import allocate
from var_toolkit.progress import Progress
from var_toolkit.still_life.names import CLASSES, parts
from var_toolkit.still_life.ray_tracing import draw

VERSION = 1  # part of the file's name: increase it whenever images change
SIZE = 64
SPLITS = ("train", "validation")
CHUNK = 250
_FIRST_SEEDS = dict(zip(SPLITS, (0, 2**40), strict=True))


@dataclass(frozen=True)
class Kind:
    """A data set that is rendered: the name of its files, its images' side in pixels, and how one is drawn."""

    name: str  # increase the version in it whenever images change
    size: int
    splits: tuple[str, ...]
    draw: Callable[[int, str], np.ndarray]  # of an image's number and its split; a function that can be pickled


def item(index: int, split: str) -> tuple[int, int]:
    """Return the label and the seed of a split's image. ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")
    return index % CLASSES, _FIRST_SEEDS[split] + index


def _still_life(index: int, split: str) -> np.ndarray:
    label, seed = item(index, split)
    return draw(parts(label), seed, SIZE)


STILL_LIFES = Kind(f"still-lifes-v{VERSION}", SIZE, SPLITS, _still_life)


def cached(
    directory: str | os.PathLike[str], count: int, split: str, *, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` still lifes of a split, uint8 (count, 3, 64, 64), and their labels, int64 (count,).

    See `cached_images`.
    """
    images = cached_images(STILL_LIFES, directory, count, split, progress=progress)
    return images, np.arange(count, dtype=np.int64) % CLASSES


def cached_images(
    kind: Kind, directory: str | os.PathLike[str], count: int, split: str, *, progress: bool = True
) -> np.ndarray:
    """Return the first `count` images of a split from a file in `directory`, drawing those that it lacks.

    The first n images of a longer file are those of a shorter one. Processes that want the same file at the same
    time wait for one another. A script that calls this needs the usual `if __name__ == "__main__":` guard, as the
    drawing processes are spawned.

    Args:
        kind: what is drawn.
        directory: the folder of the file; created if it does not exist.
        count: how many images, at least 1.
        split: one of the kind's.
        progress: show progress on stderr.

    Returns:
        The images, a read-only memory map of uint8 (count, 3, size, size).

    Raises:
        ValueError: if the count is below 1 or the split is unknown.
    """
    if split not in kind.splits:
        raise ValueError(f"split {split!r} must be one of {', '.join(kind.splits)}")
    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    file = Path(directory) / f"{kind.name}-{split}.npy"
    if _length(file) < count:
        file.parent.mkdir(parents=True, exist_ok=True)
        # The system releases this lock when its process ends in any way.
        with FileLock(file.with_suffix(".lock")):
            # Another process may have drawn the file while this one waited.
            if _length(file) < count:
                _extend(kind, file, count, split, progress)
    return np.load(file, mmap_mode="r")[:count]


_Task = tuple[Kind, int, str, Path]  # first image, split, file


def _length(file: Path) -> int:
    return len(np.load(file, mmap_mode="r")) if file.exists() else 0


def _extend(kind: Kind, file: Path, count: int, split: str, progress: bool) -> None:
    existing = _length(file)
    chunks = file.with_suffix(".chunks")
    chunks.mkdir(exist_ok=True)
    starts = range(existing // CHUNK * CHUNK, count, CHUNK)
    tasks = [(kind, start, split, _chunk_file(chunks, start)) for start in starts]
    missing = [task for task in tasks if not task[3].exists()]
    what = f"rendering images for {'training' if split == 'train' else split}"
    with Progress(CHUNK * len(missing), "images", what=what, active=progress and bool(missing)) as bar:
        for _ in _drawn(missing):
            bar.update(CHUNK)
    _join(kind, file, existing, count, chunks)


def _drawn(missing: list[_Task]) -> Iterator[None]:
    workers = min(len(missing), os.cpu_count() or 1)
    if workers < 2:
        yield from map(_draw_chunk, missing)
        return
    # An executor, because a multiprocessing.Pool would restart workers that fail to start for ever.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw_chunk, missing)


def _draw_chunk(task: _Task) -> None:
    kind, start, split, file = task
    images = np.stack([kind.draw(start + offset, split) for offset in range(CHUNK)])
    # A worker may outlive its killed parent by one chunk, and must not write into the file of its successor.
    unfinished = file.with_suffix(f".{os.getpid()}.unfinished")
    with unfinished.open("wb") as handle:
        np.save(handle, images)
    unfinished.replace(file)


def _join(kind: Kind, file: Path, existing: int, count: int, chunks: Path) -> None:
    unfinished = file.with_suffix(".unfinished")
    joined = open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, 3, kind.size, kind.size))
    allocate(unfinished)
    if existing:
        joined[:existing] = np.load(file, mmap_mode="r")
    for start in range(existing // CHUNK * CHUNK, count, CHUNK):
        joined[start : start + CHUNK] = np.load(_chunk_file(chunks, start))[: count - start]
    joined.flush()
    del joined
    unfinished.replace(file)
    shutil.rmtree(chunks, ignore_errors=True)


def _chunk_file(chunks: Path, start: int) -> Path:
    return chunks / f"{start:09d}.npy"
