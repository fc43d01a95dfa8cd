"""List a folder of images: the images, and the files that are not. Training and evaluation both use this."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from var_toolkit.images import ENDINGS

# Created by operating systems; so are names that begin with a dot, such as `._a.jpg` and `.ipynb_checkpoints`.
LEFTOVERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
SHOWN = 3  # names of files that a message lists


class Listing(NamedTuple):
    """The files under a folder, as paths that begin with it, in the order of names."""

    images: list[str]  # a data set has millions: strings take a third of the memory of paths
    skipped: list[str]


def list_images(root: Path, endings: Sequence[str] = ENDINGS) -> Listing:
    """All files under `root` by their endings, in upper or lower case. Links to files and to folders are followed.

    A link whose target does not exist counts as an image, so that reading it gives an error with its name.
    OSError for a folder that cannot be read.
    """
    found = Listing([], [])
    files = _files(str(root), frozenset([_identity(str(root))]), leftover=False)
    for path, leftover in sorted(files, key=lambda file: file[0].split(os.sep)):
        wanted = not leftover and os.path.splitext(path)[1].lower() in endings
        (found.images if wanted else found.skipped).append(path)
    return found


def is_leftover(name: str) -> bool:
    """Whether a file or a folder of this name was created by a system or a program rather than by a user."""
    return name.startswith(".") or name in LEFTOVERS


def told(paths: Sequence[str], one: str, many: str, became: str = "skipped") -> str:
    """A line such as "4 files that are not images were skipped: a, b, c and 1 more"."""
    listed = ", ".join(paths[:SHOWN])
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{len(paths)} {one if len(paths) == 1 else many} {became}: {listed}{more}"


def skipped_files(paths: Sequence[str]) -> str:
    """A line that counts files which are not images."""
    return told(paths, "file that is not an image was", "files that are not images were")


def _files(folder: str, above: frozenset[tuple[int, int]], *, leftover: bool) -> Iterator[tuple[str, bool]]:
    """Files of any depth, and whether they are leftovers; links to the folders `above` are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            aside = leftover or is_leftover(entry.name)
            if not entry.is_dir():
                if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                    yield entry.path, aside
            elif (identity := _identity(entry.path)) not in above:
                yield from _files(entry.path, above | {identity}, leftover=aside)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
