"""What people paint over an image, as a mask of the image itself."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops


def painted(layers: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """The mask of all layers together, mode L of `size`: white wherever one of them holds any paint."""
    mask = Image.new("L", size)
    for layer in layers:
        paint = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BOX)
        mask = ImageChops.lighter(mask, paint)
    return mask.point(lambda level: 255 * (level > 0))


def unmagnified(image: Image.Image, side: int) -> Image.Image:
    """An image that was magnified from `side` pixels by a whole factor, as it was before; any other as it is.

    The page magnifies small images, and a drawn one must come back to the model as the model drew it.
    """
    factor = image.width // side
    if factor < 2 or image.size != (factor * side, factor * side):
        return image
    small = image.resize((side, side), Image.Resampling.NEAREST)
    same = ImageChops.difference(small.resize(image.size, Image.Resampling.NEAREST), image).getbbox() is None
    return small if same else image
