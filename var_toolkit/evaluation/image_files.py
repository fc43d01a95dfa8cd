"""Images on disk: files of their own, or members of shards, which are plain tar files as WebDataset reads them.

A shard holds two members an image, side by side and of one stem: `000207_class-207.png`, and `000207_class-207.cls`
with the label in digits. Equal images give equal bytes: no member tells a time or an owner.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from var_toolkit.data.folder_listing import is_leftover
from var_toolkit.files import write_whole
from var_toolkit.images import ENDINGS

if TYPE_CHECKING:
    from PIL.Image import Image

SHARD_ENDING, LABEL_ENDING = ".tar", ".cls"
IMAGE = re.compile(r"(\d{6,})_class-(\d+)\.png")
SHARD = re.compile(r"shard-(\d{5,})\.tar")


@dataclass(frozen=True)
class Member:
    """An image in a shard: where its bytes lie, so that it is read without the others."""

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


ImageFile = Path | Member


def readable(file: ImageFile) -> Path | BytesIO:
    """What `var_toolkit.images` opens."""
    if isinstance(file, Path):
        return file
    with file.shard.open("rb") as shard:
        shard.seek(file.offset)
        return BytesIO(shard.read(file.size))


def label_in(file: ImageFile) -> int | None:
    """The class in the name of a sampled image; None if the name has another form."""
    match = IMAGE.fullmatch(file.name)
    return int(match[2]) if match else None


def members(shard: Path) -> list[Member]:
    """The images of a shard in its order; ValueError if it is damaged."""
    return contents(shard)[0]


def contents(shard: Path) -> tuple[list[Member], list[Member]]:
    """The images of a shard in its order, and what else it holds beside them and their labels.

    ValueError if it is damaged.
    """
    try:
        with tarfile.open(shard, "r:") as archive:
            found = [Member(shard, info.name, info.offset_data, info.size) for info in archive if info.isreg()]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is damaged, or is not a tar file: {error}") from None
    images = [member for member in found if _is_image(member)]
    others = [member for member in found if not _is_image(member) and not member.name.endswith(LABEL_ENDING)]
    return images, others


def _is_image(member: Member) -> bool:
    path = Path(member.name)
    return path.suffix.lower() in ENDINGS and not any(is_leftover(part) for part in path.parts if part != ".")


def write_image(path: Path, image: Image) -> None:
    """A PNG file, whole or not at all."""
    write_whole(path, lambda temporary: image.save(temporary, format="png"))


def write_shard(path: Path, images: Iterable[tuple[str, int, Image]]) -> None:
    """A shard of images with their file names and labels, whole or not at all. Each is drawn as it is written."""
    write_whole(path, lambda temporary: _fill(temporary, images))


def _fill(path: Path, images: Iterable[tuple[str, int, Image]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, label, image in images:
            png = BytesIO()
            image.save(png, format="png")
            _add(archive, name, png.getvalue())
            _add(archive, Path(name).with_suffix(LABEL_ENDING).name, str(label).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)  # of time 0 and of user 0
    header.size = len(content)
    archive.addfile(header, BytesIO(content))
