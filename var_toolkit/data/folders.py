"""Images in one folder for each class (the ImageNet layout), with the augmentation of the published VAR models."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZE = 1.125  # the short side before cropping, over the size after it


class ClassFolders(Dataset[tuple[Tensor, int]]):
    """Item i is (uint8 tensor (3, size, size), label); labels count the class folders in the order of their names.

    The short side is resized to round(1.125 * size) with a Lanczos filter. Training takes a random crop of it, a pure
    function of the seed, the epoch and i, so that a resumed training sees the same crops; evaluation takes the centre.

    Args:
        root: folder with a folder of images for each class.
        size: width and height of the images handed out, in pixels.
        train: random crops (and flips) if true, the centre if false.
        flip: mirror half of the training images left to right.
        seed: of the random crops and flips, from 0 to 2**63 - 1.

    Raises:
        ValueError: if the root is missing or has no class folders, or one of them holds no images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int = 256,
        train: bool = True,
        *,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        # torchvision takes a second to import, and the still lifes do without it.
        from torchvision.datasets import ImageFolder

        if not Path(root).is_dir():
            raise ValueError(f"root {str(root)!r} is not a folder: it must hold one folder of images for each class")
        try:
            self._folder = ImageFolder(str(root))
        except FileNotFoundError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"root {str(root)!r} must hold one folder of images for each class: {reason}") from error
        self.classes: tuple[str, ...] = tuple(self._folder.classes)
        self._size, self._train, self._flip, self._seed = size, train, flip, seed
        # Shared memory, so that loader processes that outlive an epoch learn of the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64 (N)."""
        return np.array(self._folder.targets, dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits that change with the size handed out, or with the names or sizes of the files."""
        digest = hashlib.blake2b(repr(self._size).encode(), digest_size=5)
        for path, _ in self._folder.samples:
            digest.update(f"{Path(path).relative_to(self._folder.root)} {os.path.getsize(path)}\n".encode())
        return digest.hexdigest()

    def set_epoch(self, epoch: int) -> None:
        """Take the crops of this epoch, from 0; to be called before the epoch's images are asked for."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._folder[index]
        across, down, mirror = self._draws(index) if self._train else (0.5, 0.5, 1.0)
        cropped = _crop(_shrink(image, round(RESIZE * self._size)), self._size, across, down)
        pixels = np.array(cropped.convert("RGB"))
        if self._flip and mirror < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), label

    def _draws(self, index: int) -> list[float]:
        # The index goes into the counter's second word: in the first, neighbours would share their random numbers.
        bits = np.random.Philox(key=[self._seed, int(self._epoch)], counter=[0, index, 0, 0])
        return np.random.Generator(bits).random(3).tolist()


def _shrink(image: Image, short_side: int) -> Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    return resize(image, short_side, InterpolationMode.LANCZOS)


def _crop(image: Image, size: int, across: float, down: float) -> Image:
    """Return a square of the image, at the given place of all there are from left to right and from top to bottom."""
    left = min(int(across * (image.width - size + 1)), image.width - size)
    top = min(int(down * (image.height - size + 1)), image.height - size)
    return image.crop((left, top, left + size, top + size))
