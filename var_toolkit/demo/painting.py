"""Turns what a user paints over an image into a mask."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops


def painted(layers: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """The union of all layers as a mask of mode L and of `size`: white where any layer has paint."""
    mask = Image.new("L", size)
    for layer in layers:
        paint = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BOX)
        mask = ImageChops.lighter(mask, paint)
    return mask.point(lambda level: 255 * (level > 0))


def unmagnified(image: Image.Image, side: int) -> Image.Image:
    """Undo a magnification from `side` pixels by an integer factor; any other image is returned unchanged.

    The page magnifies small images, and the model must get a drawn image back as it drew it.
    """
    factor = image.width // side
    if factor < 2 or image.size != (factor * side, factor * side):
        return image
    small = image.resize((side, side), Image.Resampling.NEAREST)
    same = ImageChops.difference(small.resize(image.size, Image.Resampling.NEAREST), image).getbbox() is None
    return small if same else image
