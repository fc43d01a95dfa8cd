"""Masks from what people paint."""

import pytest
from PIL import Image

from var_toolkit.demo.painting import painted, unmagnified


def layer(box: tuple[int, int, int, int], alpha: int) -> Image.Image:
    image = Image.new("RGBA", (120, 120))
    image.paste((255, 0, 0, alpha), box)
    return image


def test_paint_of_any_layer_and_strength_counts():
    mask = painted([layer((0, 0, 12, 24), 255), layer((60, 60, 120, 120), 40)], (120, 120))
    assert mask.mode == "L"
    assert sorted(mask.getcolors()) == [(12 * 24 + 60 * 60, 255), (120 * 120 - 12 * 24 - 60 * 60, 0)]


def test_a_smaller_mask_holds_every_pixel_that_was_touched():
    mask = painted([layer((11, 0, 13, 6), 255)], (20, 20))
    assert [(x, y) for x in range(20) for y in range(20) if mask.getpixel((x, y))] == [(1, 0), (2, 0)]


def test_without_paint_nothing_is_masked():
    assert painted([], (8, 8)).getbbox() is None
    assert painted([Image.new("RGBA", (16, 16))], (8, 8)).getbbox() is None


def noisy(side: int) -> Image.Image:
    return Image.effect_noise((side, side), 80).convert("RGB")


def test_a_magnified_image_comes_back_as_it_was():
    small = noisy(16)
    assert unmagnified(small.resize((96, 96), Image.Resampling.NEAREST), 16).tobytes() == small.tobytes()


@pytest.mark.parametrize("image", [noisy(16), noisy(96), noisy(100), Image.new("RGB", (96, 64))])
def test_any_other_image_stays(image):
    assert unmagnified(image, 16) is image
