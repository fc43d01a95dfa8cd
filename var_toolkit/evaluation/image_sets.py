"""Sets of images to be scored: a folder, an `.npz` of the ADM evaluator, or new renderings of still lifes.

A set is checked when it is opened, before any computation: damaged images, images of different sizes, arrays of the
wrong type. (A truncated JPEG is found only when it is read.) Files that are not images are skipped and counted.
Item i of a set is uint8 (3, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from var_toolkit.data.folder_listing import list_images, skipped_files
from var_toolkit.data.shards import SHARD_ENDING, ImageFile, readable
from var_toolkit.evaluation.adm_npz import shuffled
from var_toolkit.evaluation.frechet import Statistics
from var_toolkit.evaluation.image_files import contents, label_in
from var_toolkit.evaluation.npz_files import IMAGES, POOLED, SPATIAL, images_in, open_archive, statistics_in
from var_toolkit.evaluation.reference_statistics import Origin, features_in, origin_in
from var_toolkit.evaluation.sample_folder import SETTINGS, TEMPORARY
from var_toolkit.formats.directory import read_json
from var_toolkit.images import ENDINGS, DamagedImageError, image_size, read_image
from var_toolkit.locks import LOCK
from var_toolkit.still_life.data_set import SIZE, render

if TYPE_CHECKING:
    from PIL.Image import Image

STILL_LIFES = "stilllife"  # names the reference that is rendered
CLASSES = 1000
FRESH_SEED = 2**41  # above the seeds of both splits of the still lifes, so no training uses these


class ImageFiles(Dataset[Tensor]):
    """Images in checked files or shards; with a `side`, cropped to squares of that size."""

    def __init__(self, paths: list[ImageFile], side: int | None = None) -> None:
        self._paths, self._side = paths, side

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self._paths[index]
        with _way_out():
            image = read_image(readable(path), path)
        pixels = np.array(image if self._side is None else cut_square(image, self._side))
        return torch.from_numpy(pixels).permute(2, 0, 1)


class ImageArray(Dataset[Tensor]):
    """Images in an array, uint8 (N, h, w, 3)."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self._array[index])).permute(2, 0, 1)


class FreshStillLifes(Dataset[Tensor]):
    """Renderings that no training uses, drawn on access; item i has the label (first + i) % 1000."""

    def __init__(self, count: int, first: int = 0) -> None:
        self._items = range(first, first + count)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        item = self._items[index]
        return render([item % CLASSES], [FRESH_SEED + item])[0]


class Part(Dataset[Tensor]):
    """Selected images of a set, in its order."""

    def __init__(self, whole: Dataset[Tensor], indices: list[int]) -> None:
        self._whole, self._indices = whole, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Tensor:
        return self._whole[self._indices[index]]


@dataclass(frozen=True)
class ImageSet:
    """Images, precomputed statistics, or both."""

    source: str
    images: Any = None  # one of the data sets above
    size: tuple[int, int] | None = None  # height and width
    statistics: Statistics | None = None  # mu, sigma
    spatial: Statistics | None = None  # mu_s, sigma_s
    settings: dict[str, Any] | None = None  # sampling settings, if the set has them
    labels: list[int] | None = None  # the class of each image, if all file names contain it
    shuffled: bool = False  # whether the order is random, as in the evaluator's files
    origin: Origin | None = None  # origin of statistics that `vargen evaluate score` wrote
    features: Tensor | None = None  # pooled features of the images that statistics were computed from
    skipped: str | None = None  # a line about files of the folder that are not images

    @property
    def count(self) -> int:
        """The number of images; 0 if there are only statistics."""
        return 0 if self.images is None else len(self.images)

    @property
    def compared(self) -> int:
        """The number of images or stored features for KID, precision and recall."""
        return self.count if self.features is None else len(self.features)


def open_images(source: str | Path, count: int | None = None) -> ImageSet:
    """The set to be scored: a folder or an `.npz` with images, or a fixed random sample of `count` of them.

    ValueError in one line if it is neither, or has fewer images.
    """
    found = _opened(source)
    if found.images is None:
        raise ValueError(f"{source} holds statistics but no images ({IMAGES}); it can only be a reference")
    if count is None or count == found.count:
        return found
    if not 1 <= count < found.count:
        raise ValueError(f"{source} has {found.count} images, not {count}; give a count (-n) from 1 to {found.count}")
    numbers = chosen(found.count, count)
    labels = [found.labels[i] for i in numbers] if found.labels else None
    return ImageSet(
        found.source, Part(found.images, numbers), found.size, settings=found.settings, labels=labels,
        shuffled=found.shuffled, skipped=found.skipped,
    )  # fmt: skip


def open_reference(source: str | Path, images: int, side: int | None = None) -> ImageSet:
    """The reference: a folder, an `.npz`, or "stilllife" for as many new renderings as there are `images`.

    The number of renderings is rounded up to a multiple of 1000, so that all classes are equally frequent. Images of
    several sizes in a folder, as in ImageNet, are cropped to squares of `side`.
    """
    if str(source) == STILL_LIFES:
        count = -(-images // CLASSES) * CLASSES
        return ImageSet(f"{count} fresh still lifes", FreshStillLifes(count), (SIZE, SIZE))
    return _opened(source, side)


def cut_square(image: Image, side: int) -> Image:
    """The middle of an image as a square of `side` pixels, as the ADM evaluator's references were prepared."""
    from PIL.Image import Resampling

    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def chosen(of: int, count: int) -> list[int]:
    """A fixed random sample of `count` numbers below `of`, in ascending order."""
    return sorted(shuffled(of)[:count])


def _opened(source: str | Path, side: int | None = None) -> ImageSet:
    path = Path(source)
    if not str(source).strip():
        raise ValueError(f"{source!r} is an empty path; give a folder of images or an .npz file")
    if path.is_dir():
        return _open_folder(path, side)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _open_npz(path)
    problem = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
    raise ValueError(f"{source} {problem}; give a folder of images or an .npz file")


class _Header(NamedTuple):
    path: ImageFile
    size: tuple[int, int]


def _open_folder(folder: Path, side: int | None) -> ImageSet:
    paths, others = _image_files(folder)
    skipped = skipped_files(others) if others else None
    if not paths:
        raise ValueError(f"{folder} contains no images" + (f"; {skipped}" if skipped else ""))
    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(_verified, paths))
    other = next((header for header in headers if header.size != headers[0].size), None)
    if other is not None and side is not None:
        return ImageSet(f"{folder}, cut to {side}x{side}", ImageFiles(paths, side), (side, side), skipped=skipped)
    if other is not None:
        raise ValueError(
            f"the images of {folder} have several sizes: {_told(headers[0])}, {_told(other)}; "
            "scale and crop them to one size first"
        )
    labels = [label_in(path) for path in paths]
    return ImageSet(
        str(folder),
        ImageFiles(paths),
        headers[0].size,
        settings=_settings(folder),
        labels=None if None in labels else labels,  # type: ignore[arg-type]
        skipped=skipped,
    )


def _image_files(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """Every image in a folder, in folders of it and in shards, by name; and the names of all other files.

    Files that belong to a set beside its images are in neither.
    """
    images: list[ImageFile] = []
    found = list_images(folder, (*ENDINGS, SHARD_ENDING))
    others = [path for path in found.skipped if not _is_aside(Path(path).name)]
    for path in map(Path, found.images):
        if path.suffix.lower() == SHARD_ENDING:
            inside, beside = contents(path)
            images += inside
            others += map(str, beside)
        else:
            images.append(path)
    return images, others


def _settings(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else None


def _is_aside(name: str) -> bool:
    """Whether a file belongs to a set but is not one of its images."""
    return name in (SETTINGS, LOCK) or name.endswith(".npz") or TEMPORARY.fullmatch(name) is not None


def _told(header: _Header) -> str:
    height, width = header.size
    return f"{header.path} is {width}x{height}"


def _verified(path: ImageFile) -> _Header:
    """The size of an image; for a PNG, all checksums are compared too."""
    with _way_out():
        return _Header(path, image_size(readable(path), path))


@contextmanager
def _way_out() -> Iterator[None]:
    """Say what to do about an image that cannot be read."""
    try:
        yield
    except DamagedImageError as error:
        raise DamagedImageError(f"{error}; replace it, or remove it from the set") from None


def _open_npz(path: Path) -> ImageSet:
    with open_archive(path) as archive:
        pooled, spatial = (statistics_in(archive, keys) for keys in (POOLED, SPATIAL))
        array, origin = images_in(archive), origin_in(archive)
        features = features_in(archive, origin, pooled) if origin else None
        if array is None and pooled is None:
            raise ValueError(f"{path} holds {archive.held()}; it must hold images as {IMAGES}, or mu and sigma")
    if array is None:
        told = {"classes": origin.classes} if origin and origin.classes else None
        return ImageSet(
            str(path), None, origin.size if origin else None, pooled, spatial, told,
            shuffled=origin is not None and origin.shuffled, origin=origin, features=features,
        )  # fmt: skip
    size = (array.shape[1], array.shape[2])
    settings = _settings(path.parent)  # where `vargen evaluate sample` packed it among its images
    return ImageSet(str(path), ImageArray(array), size, pooled, spatial, settings, shuffled=True)
