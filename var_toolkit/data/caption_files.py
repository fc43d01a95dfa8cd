"""Images and their captions on disk: text files, JSON lines, parquet files or shards, told apart by what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from var_toolkit.data.folder_listing import Listing, list_images, skipped_files, told
from var_toolkit.data.parquet_files import ParquetImages
from var_toolkit.data.shards import SHARD_ENDING, Member, all_members, content, is_image
from var_toolkit.images import ENDINGS
from var_toolkit.strict_fields import shown

IMAGE_FIELDS = ("file_name", "file", "filename", "image", "image_path", "path", "image_bytes", "jpg", "png", "webp")
CAPTION_FIELDS = ("caption", "captions", "text", "long_caption", "short_caption", "prompt")
TEXT, LINES, PARQUET = ".txt", ".jsonl", ".parquet"
EXAMPLE = '{"file": "a.png", "caption": "a red sphere"}'
TABLES = (LINES, PARQUET, SHARD_ENDING)  # files that say which images there are


class Fields(NamedTuple):
    """Names of the fields or columns that hold an image and its captions; None for the usual names."""

    image: str | None = None
    captions: tuple[str, ...] | None = None


@dataclass
class Captioned:
    """Images with their captions, in order."""

    files: list[str | Member] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)  # of each image, at least one
    notes: list[str] = field(default_factory=list)  # a line each about what was skipped

    def part(self, numbers: Sequence[int]) -> Captioned:
        """Some of the images, without the notes."""
        return Captioned([self.files[i] for i in numbers], [self.captions[i] for i in numbers])


class _Entry(NamedTuple):
    name: str  # in messages
    file: str | Member
    captions: tuple[str, ...] = ()
    problem: str = "has no caption"  # why it cannot be used, if it has no captions


def list_captioned(root: Path, fields: Fields, cache_dir: Path, *, skip: bool = False) -> Captioned:
    """The images with captions under a folder, or in one table: JSON lines, a parquet file or a shard.

    Images in parquet files are copied to shards in `cache_dir` once, where each is read without the others.

    ValueError in one line for an image without a caption or a file, unless `skip` leaves it out; for tables that are
    damaged or of several kinds; and if nothing is found.
    """
    listing = _listing(root)
    kinds = [kind for kind in TABLES if any(_ending(path) == kind for path in listing.images)]
    if len(kinds) > 1:
        raise ValueError(
            f"root {str(root)!r} holds {' and '.join(kinds)} files; give one file, or a folder of one kind"
        )
    found = _collected(_entries(listing.images, kinds[0] if kinds else TEXT, fields, cache_dir), skip)
    if not found.files:
        raise ValueError(
            f"root {str(root)!r} holds no image with a caption; put image files beside {TEXT} files, or give "
            f"{', '.join(TABLES)} files"
        )
    found.notes += [skipped_files(listing.skipped)] if listing.skipped else []
    if kinds:
        used, images = set(map(str, found.files)), [path for path in listing.images if _ending(path) in ENDINGS]
        if loose := [path for path in images if os.path.normpath(path) not in used]:
            found.notes.append(told(loose, "image that no table describes was", "images that no table describes were"))
    return found


def _listing(root: Path) -> Listing:
    if root.is_dir():
        return list_images(root, (*ENDINGS, TEXT, *TABLES))
    if not root.is_file():
        raise ValueError(f"root {str(root)!r} does not exist; give a folder of images with captions")
    if _ending(str(root)) not in TABLES:
        raise ValueError(f"root {str(root)!r} is neither a folder nor a file of {', '.join(TABLES)}")
    return Listing([str(root)], [])


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _entries(paths: list[str], kind: str, fields: Fields, cache_dir: Path) -> Iterable[_Entry]:
    if kind == TEXT:
        return _beside(paths)
    readers: dict[str, Callable[[Path], Iterator[_Entry]]] = {
        LINES: lambda path: _of_lines(path, fields),
        PARQUET: lambda path: _of_parquet(path, fields, cache_dir),
        SHARD_ENDING: lambda path: _of_shard(path, fields),
    }
    return chain.from_iterable(readers[kind](Path(path)) for path in paths if _ending(path) == kind)


def _collected(entries: Iterable[_Entry], skip: bool) -> Captioned:
    """The entries in order; those of one file are one image."""
    found, skipped = Captioned(), []
    places: dict[str | Member, int] = {}
    for name, file, captions, problem in entries:
        if not captions and not skip:
            raise ValueError(f"{name} {problem}; add it, remove the image, or leave it out with --skip-damaged")
        if not captions:
            skipped.append(name)
        elif file in places:
            found.captions[places[file]] = tuple(dict.fromkeys(found.captions[places[file]] + captions))
        else:
            places[file] = len(found.files)
            found.files.append(file)
            found.captions.append(captions)
    if skipped:
        found.notes.append(told(skipped, "image without a caption was", "images without a caption were"))
    return found


def _beside(paths: list[str]) -> Iterator[_Entry]:
    """Image files with text files of the same stem beside them."""
    texts = {os.path.splitext(path)[0]: path for path in paths if _ending(path) == TEXT}
    for path in paths:
        if _ending(path) not in ENDINGS:
            continue
        stem = os.path.splitext(path)[0]
        if stem in texts:
            yield _Entry(path, path, _of_text(Path(texts[stem]).read_bytes(), texts[stem]), "has an empty caption")
        else:
            yield _Entry(path, path, problem=f"has no caption: {stem}{TEXT} is missing")


def _of_lines(path: Path, fields: Fields) -> Iterator[_Entry]:
    """The images that JSON lines name, relative to the folder of their file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            if line.strip():
                yield _of_row(where, _object(line, where), fields, path.parent)


def _of_row(where: str, row: Mapping[str, Any], fields: Fields, folder: Path) -> _Entry:
    """The entry of a row that names a file."""
    key = _image_field(row, fields, where)
    if not isinstance(row[key], str) or not row[key]:
        raise ValueError(f"{where}: {key} is {shown(row[key])}; expected the name of an image file")
    path = os.path.normpath(folder / row[key])
    if not os.path.isfile(path):
        return _Entry(where, path, problem=f"names {path}, which does not exist")
    return _Entry(where, path, _captions(row, fields, where))


def _of_parquet(path: Path, fields: Fields, cache_dir: Path) -> Iterator[_Entry]:
    """The images of a parquet file: bytes, as data sets on the Hugging Face Hub have them, or names of files."""
    table = ParquetImages(path)
    key = _image_field(table.columns, fields, str(path))
    texts = [name for name in fields.captions or CAPTION_FIELDS if name in table.columns]
    if not texts:
        raise ValueError(f"{path} has no column of captions but {_listed(table.columns)}; name one as caption_fields")
    if table.holds_paths(key):
        for number, row in enumerate(table.rows([key, *texts])):
            yield _of_row(f"{path} row {number}", row, fields, path.parent)
        return
    members = table.unpacked(key, cache_dir)
    for number, (member, row) in enumerate(zip(members, table.rows(texts), strict=True)):
        where = f"{path} row {number}"
        captions = _captions(row, fields, where) if member.size else ()
        yield _Entry(where, member, captions, "has no caption" if member.size else "has no image")


def _of_shard(path: Path, fields: Fields) -> Iterator[_Entry]:
    """The images of a shard, with members of the same stem: text, or a JSON object."""
    members = all_members(path)
    named = {member.name: member for member in members}
    for member in filter(is_image, members):
        stem = os.path.splitext(member.name)[0]
        text, details = named.get(f"{stem}{TEXT}"), named.get(f"{stem}.json")
        if text and not fields.captions:
            captions = _of_text(content(text), str(text))
        else:
            captions = _captions(_object(content(details), str(details)), fields, str(details)) if details else ()
        yield _Entry(str(member), member, captions)


def _image_field(names: Iterable[str], fields: Fields, where: str) -> str:
    allowed = (fields.image,) if fields.image else IMAGE_FIELDS
    found = next((name for name in allowed if name in names), None)
    if found is None:
        raise ValueError(f"{where} has no image but {_listed(names)}; name its field as image_field")
    return found


def _captions(row: Mapping[str, Any], fields: Fields, where: str) -> tuple[str, ...]:
    """All captions in the fields of a row."""
    found: list[str] = []
    for name in fields.captions or CAPTION_FIELDS:
        value = row.get(name)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: {name} is {shown(value)}; expected text or a list of texts")
        found += texts
    return _cleaned(found)


def _of_text(content: bytes, where: str) -> tuple[str, ...]:
    """The captions in a text file, one a line."""
    return _cleaned(_decoded(content, where).splitlines())


def _cleaned(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions of one line without surrounding space; empty and repeated ones are left out."""
    return tuple(dict.fromkeys(filter(None, (" ".join(text.split()) for text in captions))))


def _object(content: bytes, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(_decoded(content, where))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON: {str(error).splitlines()[0]}; write an object such as {EXAMPLE}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {shown(found)}; expected an object such as {EXAMPLE}")
    return found


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8; save it in that encoding, or remove it") from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:8]) or "no field"
