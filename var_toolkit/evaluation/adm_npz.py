"""Images in the `.npz` that the ADM evaluator (openai/guided-diffusion, `evaluator.py`) reads.

It holds one array, `arr_0`, uint8, N x H x W x 3. The images lie in a fixed shuffled order: that evaluator averages
the Inception Score over consecutive blocks of 5,000, and over images in class order it reports about 62 where 298 is
right (openai/guided-diffusion issue 165).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.lib.format import write_array_header_1_0

from var_toolkit.data.shards import ImageFile, readable
from var_toolkit.files import write_whole
from var_toolkit.images import read_image
from var_toolkit.progress import Progress

ARRAY = "arr_0"


def shuffled(count: int) -> list[int]:
    """The numbers 0 to count - 1 in the order of their hashes: the same on every machine, with every version of numpy.

    (NumPy promises no stable stream for `Generator.permutation`.)
    """
    return sorted(range(count), key=lambda number: blake2b(number.to_bytes(8, "little"), digest_size=8).digest())


def check_name(path: Path | None) -> None:
    """ValueError for a file that is not named as the evaluator expects."""
    if path is not None and (path.suffix != ".npz" or path.is_dir()):
        raise ValueError(f"{path} must end in .npz, and be no folder")


def write_images(path: Path, files: Sequence[ImageFile]) -> None:
    """Pack image files of one size, in shuffled order, whole or not at all. One image at a time is in memory.

    ValueError if the images have several sizes or one is damaged; OSError if one is missing.
    """
    check_name(path)
    if not files:
        raise ValueError(f"{path} needs at least one image")
    write_whole(path, lambda temporary: _pack(temporary, files))


def _pack(target: Path, files: Sequence[ImageFile]) -> None:
    shape = _pixels(files[0]).shape
    # A name without a time stamp, stored as numpy.savez does it: equal images give equal files.
    with (
        ZipFile(target, "w", ZIP_STORED) as archive,
        archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as member,
        Progress(len(files), "images", what="packing") as bar,
    ):
        write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)})
        for number in shuffled(len(files)):
            pixels = _pixels(files[number])
            if pixels.shape != shape:
                sizes = (f"{s[1]} x {s[0]}" for s in (pixels.shape, shape))
                raise ValueError("{} is {} pixels, the first image {}".format(files[number], *sizes))
            member.write(pixels.tobytes())
            bar.update()


def _pixels(file: ImageFile) -> np.ndarray:
    """uint8, (H, W, 3)."""
    return np.asarray(read_image(readable(file), file))
