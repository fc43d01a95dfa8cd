"""Shards: plain tar files, as WebDataset reads them, whose members are read one by one."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from var_toolkit.data.folder_listing import is_leftover
from var_toolkit.images import ENDINGS

SHARD_ENDING = ".tar"


@dataclass(frozen=True)
class Member:
    """A file in a shard: where its bytes lie, so that it is read without the others."""

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


ImageFile = Path | Member


def readable(file: ImageFile) -> Path | BytesIO:
    """What `var_toolkit.images` opens."""
    return file if isinstance(file, Path) else BytesIO(content(file))


def content(member: Member) -> bytes:
    """The bytes of a member."""
    with member.shard.open("rb") as shard:
        shard.seek(member.offset)
        return shard.read(member.size)


def all_members(shard: Path) -> list[Member]:
    """The files in a shard, in its order; ValueError if it is damaged."""
    try:
        with tarfile.open(shard, "r:") as archive:
            return [Member(shard, info.name, info.offset_data, info.size) for info in archive if info.isreg()]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is damaged, or is not a tar file: {error}") from None


def is_image(member: Member) -> bool:
    """Whether a member is an image by its ending, and not what a system or a program left there."""
    path = Path(member.name)
    return path.suffix.lower() in ENDINGS and not any(is_leftover(part) for part in path.parts if part != ".")


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a shard that is being written. Equal files give equal bytes: no member tells a time or an owner."""
    header = tarfile.TarInfo(name)  # of time 0 and of user 0
    header.size = len(content)
    archive.addfile(header, BytesIO(content))
