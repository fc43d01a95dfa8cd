"""Writes the same images and captions in every way that is read."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from var_toolkit.data.shards import add_member

CAPTIONS = (("a red cube",), ("a blue cone", "a cone in blue"), ("two spheres",), ("grass",), ("a tub",), ("sand",))


def png(number: int, side: int = 80) -> bytes:
    """An image of noise that depends on its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side - 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write(root: Path, kind: str, captions: Sequence[Sequence[str]] = CAPTIONS, images: Sequence[bytes] = ()) -> Path:
    """A root with an image for each entry of `captions`."""
    root.mkdir(parents=True, exist_ok=True)
    found = list(images) or [png(number) for number in range(len(captions))]
    if kind in ("text", "lines", "parquet-names"):
        for number, content in enumerate(found):
            (root / f"{number}.png").write_bytes(content)
    WRITERS[kind](root, found, captions)
    return root


def _text(root: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> None:
    for number, texts in enumerate(captions):
        (root / f"{number}.txt").write_text("\n".join(texts))


def _lines(root: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> None:
    rows = [{"file_name": f"{number}.png", "text": texts} for number, texts in enumerate(map(list, captions))]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _shard(root: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> None:
    with tarfile.open(root / "00000.tar", "w") as archive:
        for number, (image, texts) in enumerate(zip(images, captions, strict=True)):
            add_member(archive, f"{number}.png", image)
            add_member(archive, f"{number}.txt", "\n".join(texts).encode())


def _shard_json(root: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> None:
    with tarfile.open(root / "00000.tar", "w") as archive:
        for number, (image, texts) in enumerate(zip(images, captions, strict=True)):
            add_member(archive, f"{number}.json", json.dumps({"caption": list(texts), "width": 80}).encode())
            add_member(archive, f"{number}.png", image)


def _parquet(root: Path, column: str, images: Sequence[Any], captions: Sequence[Sequence[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({column: images, "captions": [list(texts) for texts in captions]}), root / "0.parquet")


WRITERS = {
    "text": _text,
    "lines": _lines,
    "shard": _shard,
    "shard-json": _shard_json,
    "parquet-bytes": lambda root, images, captions: _parquet(root, "image_bytes", images, captions),
    "parquet-hub": lambda root, images, captions: _parquet(
        root, "image", [{"bytes": image, "path": "x.png"} for image in images], captions
    ),
    "parquet-names": lambda root, images, captions: _parquet(
        root, "path", [f"{number}.png" for number in range(len(images))], captions
    ),
}
