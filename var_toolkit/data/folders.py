"""Images in one folder for each class (the ImageNet layout), with the augmentation of the published VAR models."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from var_toolkit.data.folder_listing import is_leftover, list_images, skipped_files, told
from var_toolkit.images import ENDINGS, DamagedImageError, ImageFileError, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZE = 1.125  # the short side before cropping, over the size after it
READING = 2  # part of the fingerprint: increase it whenever decoding or resizing changes


class ClassFolders(Dataset[tuple[Tensor, int]]):
    """Item i is (uint8 tensor (3, size, size), label); labels count the class folders.

    They are in the order of their names, and in the order of their numbers if all names are whole numbers.

    The short side is resized to round(1.125 * size) with a Lanczos filter. Training takes a random crop of it, a pure
    function of the seed, the epoch and i, so that a resumed training sees the same crops; evaluation takes the centre.

    Args:
        root: folder with a folder of images for each class.
        size: width and height of the images returned, in pixels.
        train: random crops (and flips) if true, the centre if false.
        flip: mirror half of the training images left to right.
        seed: of the random crops and flips, from 0 to 2**63 - 1.
        flat: accept images outside class folders too: if any lies in the root itself, all images of any depth are
            taken, with the label 0, and `classes` is empty.
        skip_damaged: in place of an image that cannot be decoded, return the next one of its class that can.

    Attributes:
        classes: the names of the class folders; the label of an image is the index of its folder.
        notes: one line each about what was skipped, and about numbered folders.

    Raises:
        ValueError: if the root is missing or has no class folders, or one of them holds no images.
        ImageFileError: a ValueError of one line, when an item is read whose image cannot be read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int = 256,
        train: bool = True,
        *,
        flip: bool = False,
        seed: int = 0,
        flat: bool = False,
        skip_damaged: bool = False,
    ) -> None:
        self._root = Path(root)
        if not self._root.is_dir():
            raise ValueError(f"root {str(root)!r} is not a folder: it must hold one folder of images for each class")
        listing = list_images(self._root)
        loose = [path for path in listing.images if os.path.dirname(path) == str(self._root)]
        self.notes: list[str] = [skipped_files(listing.skipped)] if listing.skipped else []
        self.classes: tuple[str, ...] = ()
        if flat and loose:
            self._paths, self._labels = listing.images, np.zeros(len(listing.images), np.int64)
        else:
            self.classes = tuple(_in_order(_class_folders(self._root)))
            if not self.classes:
                raise ValueError(_without_classes(self._root, loose))
            self._paths, self._labels = _by_class(self._root, listing.images, self.classes)
            self.notes += [_loose(loose)] if loose else []
            self.notes += numbering(self.classes)
        self._size, self._train, self._flip, self._seed, self._skip = size, train, flip, seed, skip_damaged
        # Shared memory, so that loader processes that outlive an epoch see the next one. This kind is a file, and is
        # created elsewhere if /dev/shm is full.
        self._epoch = multiprocessing.RawValue("q", 0)

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64 (N), ascending."""
        return self._labels

    def path(self, index: int) -> Path:
        """The file of an image."""
        return Path(self._paths[index])

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits that change with the size returned, or with the names or sizes of the files."""
        digest = hashlib.blake2b(repr((READING, self._size)).encode(), digest_size=5)
        for path in self._paths:
            digest.update(f"{os.path.relpath(path, self._root)} {os.path.getsize(path)}\n".encode())
        return digest.hexdigest()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, which determines the random crops; call it before reading the epoch's images."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label, _ = self.read(index)
        return image, label

    def read(self, index: int) -> tuple[Tensor, int, bool]:
        """Item `index`, and whether it was replaced by another image of its class because its file is damaged."""
        image, replaced = self._readable(index)
        across, down, mirror = self._draws(index) if self._train else (0.5, 0.5, 1.0)
        pixels = np.array(_crop(_shrink(image, round(RESIZE * self._size)), self._size, across, down))
        if self._flip and mirror < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), int(self._labels[index]), replaced

    def _readable(self, index: int) -> tuple[Image, bool]:
        try:
            return self._image(index), False
        except DamagedImageError as error:
            if not self._skip:
                raise DamagedImageError(f"{error}; remove it or use --skip-damaged") from None
            damage = error
        # The next readable image of the same class, cyclically: the label stays right, and every run finds the same.
        first, end = np.searchsorted(self._labels, [self._labels[index], self._labels[index] + 1]).tolist()
        for other in (*range(index + 1, end), *range(first, index)):
            with suppress(DamagedImageError):
                return self._image(other), True
        raise ImageFileError(f"{damage}; its class has no other readable image to replace it") from None

    def _image(self, index: int) -> Image:
        try:
            return read_image(self.path(index))
        except OSError as error:
            raise ImageFileError(f"{self._paths[index]} cannot be read: {error.strerror}") from None

    def _draws(self, index: int) -> list[float]:
        # The index goes into the counter's second word: in the first, neighbours would share their random numbers.
        bits = np.random.Philox(key=[self._seed, self._epoch.value], counter=[0, index, 0, 0])
        return np.random.Generator(bits).random(3).tolist()


def numbering(classes: tuple[str, ...]) -> list[str]:
    """A note if class folders are named by numbers that differ from their labels; else an empty list."""
    if not _are_numbers(classes):
        return []
    if [int(name) for name in classes] != list(range(len(classes))):
        ends = f"label 0 is folder {classes[0]}, label {len(classes) - 1} is folder {classes[-1]}"
        return [f"class folders are sorted as numbers, which are not the labels: {ends}"]
    if list(classes) != sorted(classes):
        return [
            f"class folders are sorted as numbers: label {classes[-1]} is folder {classes[-1]} (not as text any more)"
        ]
    return []


def _class_folders(root: Path) -> list[str]:
    folders = (path for path in root.iterdir() if path.is_dir() and not is_leftover(path.name))
    return [path.name for path in folders if not path.samefile(root)]


def _in_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (int(name), name)) if _are_numbers(names) else sorted(names)


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _by_class(root: Path, images: list[str], classes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Images ordered by class, within a class as torchvision's ImageFolder does: folder by folder, by name."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    for path in images:
        name, inside, _ = path.removeprefix(os.path.join(root, "")).partition(os.sep)
        if inside:
            found[name].append(path)
    for name, paths in found.items():
        if not paths:
            raise ValueError(f"class folder {root / name} holds no images; remove it, or use {', '.join(ENDINGS[:9])}")
        paths.sort(key=os.path.split)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in found.values()])
    return [path for paths in found.values() for path in paths], labels


def _without_classes(root: Path, loose: list[str]) -> str:
    holds = f"{len(loose)} images and no folder" if loose else "no folder that could be a class"
    return f"root {str(root)!r} holds {holds}: it must hold one folder of images for each class"


def _loose(paths: list[str]) -> str:
    return told(paths, "image beside the class folders was", "images beside the class folders were")


def _shrink(image: Image, short_side: int) -> Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    return resize(image, short_side, InterpolationMode.LANCZOS)


def _crop(image: Image, size: int, across: float, down: float) -> Image:
    """Return a square of the image; 0 to 1 say where between left and right, and between top and bottom."""
    left = min(int(across * (image.width - size + 1)), image.width - size)
    top = min(int(down * (image.height - size + 1)), image.height - size)
    return image.crop((left, top, left + size, top + size))
