"""Images on disk that were sampled: files of their own, or members of shards.

A shard holds two members an image, side by side and of one stem: `000207_class-207.png`, and `000207_class-207.cls`
with the label in digits.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from var_toolkit.data.shards import ImageFile, Member, add_member, all_members, is_image
from var_toolkit.files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

LABEL_ENDING = ".cls"
IMAGE = re.compile(r"(\d{6,})_class-(\d+)\.png")
SHARD = re.compile(r"shard-(\d{5,})\.tar")


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
    found = all_members(shard)
    images = [member for member in found if is_image(member)]
    others = [member for member in found if not is_image(member) and not member.name.endswith(LABEL_ENDING)]
    return images, others


def write_shard(path: Path, images: Iterable[tuple[str, int, Image]]) -> None:
    """A shard of images with their file names and labels, whole or not at all. Each is drawn as it is written."""
    write_whole(path, lambda temporary: _fill(temporary, images))


def _fill(path: Path, images: Iterable[tuple[str, int, Image]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, label, image in images:
            png = BytesIO()
            image.save(png, format="png")
            add_member(archive, name, png.getvalue())
            add_member(archive, Path(name).with_suffix(LABEL_ENDING).name, str(label).encode())
