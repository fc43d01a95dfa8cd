"""Several images as one: plain grids, and labelled tables for notebooks and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2  # pixels between images
LETTERS = 13  # height of names, in pixels


def grid(images: list[Any], columns: int) -> Any:
    """PIL images of one size as one image, row by row, two pixels apart."""
    from PIL import Image

    width, height = (length + GAP for length in images[0].size)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image, ((i % columns) * width, (i // columns) * height))
    return sheet


def enlarged(image: Any, least: int) -> Any:
    """A PIL image; a small one is magnified by an integer factor, to about `least` pixels."""
    factor = max(1, least // image.width)
    return image.resize((image.width * factor, image.height * factor), 0)


def image_table(
    rows: Sequence[Sequence[Image]],
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    side: int = 96,
) -> Image:
    """Rows of square PIL images as one image with row and column names, for notebooks.

    Each image is scaled to `side` pixels, so token maps and images of any size can be combined: with sharp edges by an
    integer factor, smoothly by any other. Rows may differ in length. ValueError if there are no images, or if the
    number of names differs from that of rows or columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = max(map(len, rows), default=0)
    if not columns:
        raise ValueError("rows have no images; give at least one")
    for what, names, count in (("row", row_names, len(rows)), ("column", column_names, columns)):
        if names and len(names) != count:
            raise ValueError(f"{what}_names has {len(names)} names for {count} {what}s; give one for each, or none")
    font = ImageFont.load_default(LETTERS)
    left = max((round(font.getlength(name)) + 4 * GAP for name in row_names), default=0)
    top = 2 * LETTERS if column_names else 0
    step = side + GAP
    sheet = Image.new("RGB", (left + columns * step - GAP, top + len(rows) * step - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for x, name in enumerate(column_names):
        pen.text((left + x * step + side / 2, top / 2), name, "black", font, "mm")
    for y, name in enumerate(row_names):
        pen.text((left - 3 * GAP, top + y * step + side / 2), name, "black", font, "rm")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            whole = side % image.width == 0
            scaled = image.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)
            sheet.paste(scaled, (left + x * step, top + y * step))
    return sheet
