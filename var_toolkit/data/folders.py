"""Images in one folder for each class (the ImageNet layout), with the augmentation of the published VAR models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from var_toolkit.data.cropped_images import CroppedImages
from var_toolkit.data.folder_listing import is_leftover, list_images, skipped_files, told
from var_toolkit.images import ENDINGS

READING = 2  # part of the fingerprint: increase it whenever decoding or resizing changes


class ClassFolders(CroppedImages, Dataset[tuple[Tensor, int]]):
    """Item i is (uint8 tensor (3, size, size), label); labels count the class folders.

    They are in the order of their names, and in the order of their numbers if all names are whole numbers.

    Images are resized and cropped as `CroppedImages` says, which explains the other arguments.

    Args:
        root: folder with a folder of images for each class.
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

    whole: ClassVar[str] = "its class"

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
            paths, self._labels = listing.images, np.zeros(len(listing.images), np.int64)
        else:
            self.classes = tuple(_in_order(_class_folders(self._root)))
            if not self.classes:
                raise ValueError(_without_classes(self._root, loose))
            paths, self._labels = _by_class(self._root, listing.images, self.classes)
            self.notes += [_loose(loose)] if loose else []
            self.notes += numbering(self.classes)
        super().__init__(paths, size, train, flip=flip, seed=seed, skip_damaged=skip_damaged)

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64 (N), ascending."""
        return self._labels

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits that change with the size returned, or with the names or sizes of the files."""
        digest = hashlib.blake2b(repr((READING, self._size)).encode(), digest_size=5)
        for path in map(str, self._files):
            digest.update(f"{os.path.relpath(path, self._root)} {os.path.getsize(path)}\n".encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, shown = self.read(index)
        return image, int(self._labels[shown])

    def _others(self, index: int) -> Iterable[int]:
        """The others of the class: the label stays right."""
        first, end = np.searchsorted(self._labels, [self._labels[index], self._labels[index] + 1]).tolist()
        return (*range(index + 1, end), *range(first, index))


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
