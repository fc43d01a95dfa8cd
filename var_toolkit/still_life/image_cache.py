"""Renders still lifes into a file once, on all CPU cores, and returns the file's images afterwards.

torch is not imported here, so that the rendering processes start fast. Images are rendered in chunks, each written
atomically to its own file; when all exist they are joined into one file under its final name. After a kill, rendering
continues with the missing chunks, and a longer file reuses the images of a shorter one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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


def item(index: int, split: str) -> tuple[int, int]:
    """Return the label and the seed of a split's image. ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")
    return index % CLASSES, _FIRST_SEEDS[split] + index


def cached(
    directory: str | os.PathLike[str], count: int, split: str, *, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` images of a split from a file in `directory`, drawing those that it lacks.

    The first n images of a longer file are those of a shorter one. Processes that want the same file at the same
    time wait for one another. A script that calls this needs the usual `if __name__ == "__main__":` guard, as the
    drawing processes are spawned.

    Args:
        directory: the folder of the file; created if it does not exist.
        count: how many images, at least 1.
        split: "train" or "validation".
        progress: show progress on stderr.

    Returns:
        The images, a read-only memory map of uint8 (count, 3, 64, 64), and their labels, int64 (count,).

    Raises:
        ValueError: if the count is below 1 or the split is unknown.
    """
    item(0, split)
    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    file = Path(directory) / f"still-lifes-v{VERSION}-{split}.npy"
    if _length(file) < count:
        file.parent.mkdir(parents=True, exist_ok=True)
        # The system releases this lock when its process ends in any way.
        with FileLock(file.with_suffix(".lock")):
            # Another process may have drawn the file while this one waited.
            if _length(file) < count:
                _extend(file, count, split, progress)
    return np.load(file, mmap_mode="r")[:count], np.arange(count, dtype=np.int64) % CLASSES


def _length(file: Path) -> int:
    return len(np.load(file, mmap_mode="r")) if file.exists() else 0


def _extend(file: Path, count: int, split: str, progress: bool) -> None:
    existing = _length(file)
    chunks = file.with_suffix(".chunks")
    chunks.mkdir(exist_ok=True)
    starts = range(existing // CHUNK * CHUNK, count, CHUNK)
    tasks = [(start, split, _chunk_file(chunks, start)) for start in starts]
    missing = [task for task in tasks if not task[2].exists()]
    what = f"rendering images for {'training' if split == 'train' else split}"
    with Progress(CHUNK * len(missing), "images", what=what, active=progress and bool(missing)) as bar:
        for _ in _drawn(missing):
            bar.update(CHUNK)
    _join(file, existing, count, chunks)


def _drawn(missing: list[tuple[int, str, Path]]) -> Iterator[None]:
    workers = min(len(missing), os.cpu_count() or 1)
    if workers < 2:
        yield from map(_draw_chunk, missing)
        return
    # An executor, because a multiprocessing.Pool would restart workers that fail to start for ever.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw_chunk, missing)


def _draw_chunk(task: tuple[int, str, Path]) -> None:
    start, split, file = task
    images = np.empty((CHUNK, 3, SIZE, SIZE), dtype=np.uint8)
    for offset in range(CHUNK):
        label, seed = item(start + offset, split)
        images[offset] = draw(parts(label), seed, SIZE)
    # A worker may outlive its killed parent by one chunk, and must not write into the file of its successor.
    unfinished = file.with_suffix(f".{os.getpid()}.unfinished")
    with unfinished.open("wb") as handle:
        np.save(handle, images)
    unfinished.replace(file)


def _join(file: Path, existing: int, count: int, chunks: Path) -> None:
    unfinished = file.with_suffix(".unfinished")
    joined = open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, 3, SIZE, SIZE))
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
