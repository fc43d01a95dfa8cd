"""Several images as one."""

import numpy as np
import pytest
from PIL import Image

from var_toolkit.sheets import grid, image_table


def plain(side: int, colour: str) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_images_of_any_size_become_cells_of_one_size():
    sheet = np.array(image_table([[plain(1, "red"), plain(8, "blue")], [plain(64, "lime")]], side=32))
    assert sheet.shape == (66, 66, 3)
    assert (sheet[:32, :32] == (255, 0, 0)).all()
    assert (sheet[:32, 34:] == (0, 0, 255)).all()
    assert (sheet[34:, :32] == (0, 255, 0)).all()
    assert (sheet[34:, 34:] == 255).all()  # the second row is shorter


def test_names_stand_beside_the_images():
    bare = image_table([[plain(8, "red")] * 2], side=32)
    named = image_table([[plain(8, "red")] * 2], row_names=["one"], column_names=["a", "b"], side=32)
    assert named.width > bare.width
    assert named.height > bare.height
    pixels = np.array(named)
    assert (pixels[-32:, -66:] == np.array(bare)).all()
    assert (pixels[: named.height - 32, :].min() < 128).any()  # letters above
    assert (pixels[:, : named.width - 66].min() < 128).any()  # and on the left


def test_names_must_fit_the_images():
    with pytest.raises(ValueError, match=r"^row_names has 1 .* 2 rows"):
        image_table([[plain(8, "red")], [plain(8, "red")]], row_names=["one"])
    with pytest.raises(ValueError, match=r"^column_names has 3 .* 2 columns"):
        image_table([[plain(8, "red")] * 2, [plain(8, "red")]], column_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="no images"):
        image_table([])


def test_a_grid_holds_whole_images_that_are_not_square():
    tall = [Image.new("RGB", (10, 30), colour) for colour in ("red", "green", "blue")]
    sheet = grid(tall, columns=2)
    assert sheet.size == (10 + 2 + 10, 30 + 2 + 30)
    assert sheet.getpixel((9, 29)) == (255, 0, 0)
    assert sheet.getpixel((0, 61)) == (0, 0, 255)
