"""Images in files, cropped to squares, with the augmentation of the published VAR models."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from var_toolkit.data.shards import ImageFile, Member, readable
from var_toolkit.images import DamagedImageError, ImageFileError, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZE = 1.125  # the short side before cropping, over the size after it


class CroppedImages:
    """Reads images as squares of bytes.

    The short side is resized to round(1.125 * size) with a Lanczos filter. Training takes a random crop of it, a pure
    function of the seed, the epoch and i, so that a resumed training sees the same crops; evaluation takes the centre.

    Args:
        files: paths, or members of shards; paths are strings, which take a third of the memory.
        size: width and height of the images returned, in pixels.
        train: random crops (and flips) if true, the centre if false.
        flip: mirror half of the training images left to right.
        seed: of the random crops and flips, from 0 to 2**63 - 1.
        skip_damaged: in place of an image that cannot be decoded, return the next one that can.

    Raises:
        ImageFileError: a ValueError of one line, when an item is read whose image cannot be read.
    """

    whole: ClassVar[str] = "the data set"  # where an image is looked for that replaces a damaged one

    def __init__(
        self,
        files: Sequence[str | Member],
        size: int,
        train: bool = True,
        *,
        flip: bool = False,
        seed: int = 0,
        skip_damaged: bool = False,
    ) -> None:
        self._files, self._size, self._train, self._flip = files, size, train, flip
        self._seed, self._skip = seed, skip_damaged
        # Shared memory, so that loader processes that outlive an epoch see the next one. This kind is a file, and is
        # created elsewhere if /dev/shm is full.
        self._epoch = multiprocessing.RawValue("q", 0)

    def file(self, index: int) -> ImageFile:
        """The file of an image."""
        found = self._files[index]
        return found if isinstance(found, Member) else Path(found)

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64 (N); 0 without classes."""
        return np.zeros(len(self), np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, which determines the random crops; call it before reading the epoch's images."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> tuple[Tensor, int]:
        """An image, uint8 (3, size, size), and its number: that of another image if it is damaged and replaced."""
        image, shown = self._readable(index)
        return self._cut(image, index), shown

    def _cut(self, image: Image, index: int) -> Tensor:
        """The square of an image that is shown at a number, uint8 (3, size, size)."""
        across, down, mirror = self._draws(index) if self._train else (0.5, 0.5, 1.0)
        pixels = np.array(_crop(_shrink(image, round(RESIZE * self._size)), self._size, across, down))
        if self._flip and mirror < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _readable(self, index: int) -> tuple[Image, int]:
        try:
            return self._image(index), index
        except DamagedImageError as error:
            if not self._skip:
                raise DamagedImageError(f"{error}; remove it or use --skip-damaged") from None
            damage = error
        for other in self._others(index):
            with suppress(DamagedImageError):
                return self._image(other), other
        raise ImageFileError(f"{damage}; {self.whole} has no other readable image to replace it") from None

    def _others(self, index: int) -> Iterable[int]:
        """The images that may replace one, from it on, cyclically: every run finds the same."""
        return (*range(index + 1, len(self)), *range(index))

    def _image(self, index: int) -> Image:
        file = self.file(index)
        try:
            return read_image(readable(file), file)
        except OSError as error:
            raise ImageFileError(f"{file} cannot be read: {error.strerror}") from None

    def _draws(self, index: int) -> list[float]:
        # The index goes into the counter's second word: in the first, neighbours would share their random numbers.
        bits = np.random.Philox(key=[self._seed, self._epoch.value], counter=[0, index, 0, 0])
        return np.random.Generator(bits).random(3).tolist()


def _shrink(image: Image, short_side: int) -> Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    return resize(image, short_side, InterpolationMode.LANCZOS)


def _crop(image: Image, size: int, across: float, down: float) -> Image:
    """Return a square of the image; 0 to 1 say where between left and right, and between top and bottom."""
    left = min(int(across * (image.width - size + 1)), image.width - size)
    top = min(int(down * (image.height - size + 1)), image.height - size)
    return image.crop((left, top, left + size, top + size))
