"""`.npz` files of evaluators: images, statistics of features, or both.

The ADM evaluator's files hold images as `arr_0` (uint8, N x H x W x 3) and statistics as `mu`, `sigma` (of pooled
features) and `mu_s`, `sigma_s` (of spatial ones). A file is data and nothing else: no object is unpickled, and no array
is allocated before its header has been compared with what the archive holds.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy

from var_toolkit.evaluation.frechet import Statistics

IMAGES, POOLED, SPATIAL = "arr_0", ("mu", "sigma"), ("mu_s", "sigma_s")
MOST_FEATURES = 16_384  # a covariance of 2 GiB; the longest in use has 2048
LONGEST_TEXT = 4096  # characters
SHOWN = 6  # names of arrays in a message
CHUNK = 2**24  # bytes
NUMBERS = "fiu"  # kinds of dtypes: float, int, unsigned int
TOLERANCE = 1e-4  # relative, for covariances that were written in float32


class Header(NamedTuple):
    """What an array says of itself, and how many bytes of its file come before the values."""

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype
    length: int


class Archive:
    """An open `.npz`; every method raises ValueError in one line that names the file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        """The header of an array, compared with the bytes that follow it."""
        if name not in self.names:
            raise ValueError(f"{self.path} lacks {name}; it holds {self.held()}")
        with self._archive.open(f"{name}.npy") as file:
            header = self._header(name, file)
        promised = math.prod(header.shape) * header.dtype.itemsize
        there = self._archive.getinfo(f"{name}.npy").file_size - header.length
        if not header.dtype.hasobject and promised != there:
            raise ValueError(
                f"{self.path}: {name} is damaged: {header.dtype} {header.shape} is {promised} bytes, not {there}"
            )
        return header

    def numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of finite numbers of this shape, in float64."""
        header = self.header(name)
        if header.dtype.kind not in NUMBERS or header.shape != shape:
            raise ValueError(
                f"{self.path}: {name} is {header.dtype} {header.shape}; it must be numbers of shape {shape}"
            )
        array = self.array(name).astype(np.float64)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.path}: {name} holds values that are not finite")
        return array

    def text(self, name: str) -> str | None:
        """The text in an array; None if the archive does not have that array."""
        if name not in self.names:
            return None
        header = self.header(name)
        if header.dtype.kind != "U" or header.shape or header.dtype.itemsize > 4 * LONGEST_TEXT:
            raise ValueError(f"{self.path}: {name} is {header.dtype} {header.shape}; it must be one short text")
        return str(self.array(name))

    def array(self, name: str) -> np.ndarray:
        """The values of an array whose header was checked; the archive's checksum is compared."""
        with self._archive.open(f"{name}.npy") as file:
            header = self._header(name, file)
            values = np.frombuffer(file.read(), header.dtype)
        return values.reshape(header.shape, order="F" if header.in_columns else "C")

    def mapped(self, name: str) -> np.ndarray:
        """The same, mapped rather than read where the archive stores it as it is, as `np.savez` does."""
        header, member = self.header(name), self._archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return self.array(name)
        with self._archive.open(member) as file:
            while file.read(CHUNK):  # to the end, where the archive's checksum is compared
                pass
        with self.path.open("rb") as raw:
            raw.seek(member.header_offset + 26)  # the two lengths of a zip's local header, which end its 30 bytes
            lengths = np.frombuffer(raw.read(4), "<u2")
            start = member.header_offset + 30 + int(lengths.sum()) + header.length
        return np.memmap(self.path, header.dtype, "r", offset=start, shape=header.shape)

    def held(self) -> str:
        """The names of the first arrays, for a message."""
        return ", ".join(self.names[:SHOWN]) + (", ..." if len(self.names) > SHOWN else "") or "nothing"

    def _header(self, name: str, file: IO[bytes]) -> Header:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            header = Header(*read(file), length=file.tell())
        except MemoryError:  # of a literal that is nested too deeply
            raise ValueError(f"{self.path}: {name} is damaged: its header cannot be read") from None
        except Exception as error:  # numpy's parser lets RecursionError and others through
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{self.path}: {name} is damaged, or is not an array: {reason}") from None
        if any(length < 0 for length in header.shape):
            raise ValueError(f"{self.path}: {name} is damaged: its shape is {header.shape}")
        return header


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive in a file; ValueError in one line if it is damaged, also for what is noticed while it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(path, archive)
    except (ValueError, MemoryError, PermissionError):
        raise
    except Exception as error:  # zipfile lets zlib.error, struct.error, RuntimeError and others through
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} is damaged, or is not an .npz file: {reason}") from None


def images_in(archive: Archive) -> np.ndarray | None:
    """The images, uint8 (N, height, width, 3); None if there are none."""
    if IMAGES not in archive.names:
        return None
    shape, in_columns, dtype, _ = archive.header(IMAGES)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or in_columns or 0 in shape:
        raise ValueError(f"{archive.path}: {IMAGES} is {dtype} {shape}; it must be uint8 images (N, height, width, 3)")
    return archive.mapped(IMAGES)


def statistics_in(archive: Archive, keys: tuple[str, str]) -> Statistics | None:
    """A mean and a covariance in float64; None if neither is there."""
    path, lacking = archive.path, [key for key in keys if key not in archive.names]
    if len(lacking) == 2:
        return None
    if lacking:
        raise ValueError(
            f"{path} holds {' or '.join(set(keys) - set(lacking))} without {lacking[0]}; it must hold both"
        )
    shape = archive.header(keys[0]).shape
    if len(shape) != 1 or not 1 <= shape[0] <= MOST_FEATURES:
        raise ValueError(f"{path}: {keys[0]} has the shape {shape}; it must be a mean of 1 to {MOST_FEATURES} features")
    mu, sigma = archive.numbers(keys[0], shape), archive.numbers(keys[1], (*shape, *shape))
    variances = sigma.diagonal()
    if variances.min() < 0:
        raise ValueError(f"{path}: {keys[1]} is not a covariance: a variance is negative")
    bound = np.sqrt(np.outer(variances, variances))
    slack = TOLERANCE * (bound + variances.max())
    if (np.abs(sigma - sigma.T) > slack).any() or (np.abs(sigma) > bound + slack).any():
        raise ValueError(f"{path}: {keys[1]} is not a covariance: not symmetric, or a correlation above 1")
    return Statistics(torch.from_numpy(mu), torch.from_numpy(sigma))
