"""Images and masks of all kinds, and what comes back."""

import numpy as np
import pytest
import torch
from PIL import Image

from var_toolkit.editing import as_image, prepare
from var_toolkit.images import given_square, image_tensor, open_image, pixels
from var_toolkit.pipeline import Pipeline


@pytest.fixture
def pipe(small_tokenizer, small_var) -> Pipeline:
    """A model of 64 px and 10 classes that draws nothing sensible."""
    return Pipeline(small_tokenizer, small_var)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prepared(image, mask=None, expand=None, whole=False):
    return prepare(image, mask, expand, side=64, whole=whole)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (101, 64), (300, 207), (40, 33)])
def test_outside_the_mask_no_pixel_differs(pipe, width, height):
    image, box = noise(width, height), (7, 9, 20, 14)
    (edited,) = pipe.edit(image, box, 3, seeds=0, keep_pixels=True).images
    assert edited.size == image.size
    changed = (pixels(edited) != pixels(image)).any(0)
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[9:23, 7:27] = True
    assert not bool(changed[~inside].any())
    assert bool(changed[inside].any())


def pasted_white(image, box):
    """What shows of white that is pasted into a black image, 0 to 255."""
    return pixels(prepared(image, box).pasted(torch.ones(1, 3, 64, 64), "pil")[0])[0]


@pytest.mark.parametrize("times", [1, 5])
def test_what_is_pasted_fades_in_from_the_border_of_the_mask(times):
    box = tuple(times * number for number in (16, 16, 32, 32))
    row = pasted_white(Image.new("RGB", (64 * times, 64 * times)), box)[32 * times]
    assert row[16 * times - 1] == 0
    assert 0 < row[16 * times] < row[17 * times] < row[19 * times] == 255
    assert torch.equal(row, row.flip(0))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("times", [1, 5])
def test_a_thin_mask_hides_what_was_there(times, width):
    box = tuple(times * number for number in (30, 8, width, 48))
    row = pasted_white(Image.new("RGB", (64 * times, 64 * times)), box)[32 * times]
    assert row.max() == 255
    assert not row[: 30 * times].any()


def test_at_the_edge_of_the_image_nothing_fades():
    assert bool((pasted_white(Image.new("RGB", (64, 64)), (0, 0, 64, 20))[:17] == 255).all())


def test_a_photograph_of_twelve_megapixels_is_pasted_into(pipe):
    image = noise(4000, 3000)
    (edited,) = pipe.edit(image, (1900, 900, 800, 1600), 1, seeds=0, keep_pixels=True).images
    differs = (np.asarray(edited) != np.asarray(image)).any(-1)
    assert differs[900:2500, 1900:2700].mean() > 0.9
    differs[900:2500, 1900:2700] = False
    assert not differs.any()


def test_a_large_image_keeps_its_size_and_its_pixels(pipe):
    image = noise(256, 192)
    drawn = pipe.edit(image, (100, 50, 60, 60), [1, 2], seeds=[0, 1], keep_pixels=True, output_type="pt").images
    assert drawn.shape == (2, 3, 192, 256)
    assert pipe.edit(image, (100, 50, 60, 60), 1, seeds=0).images[0].size == (64, 64)


def test_the_square_moves_to_the_mask_and_else_stays_in_the_middle():
    image = noise(200, 100)
    assert prepared(image, (80, 20, 30, 30)).square == (50, 0, 100)
    assert prepared(image, (0, 20, 30, 30)).square == (0, 0, 100)
    assert prepared(image, (180, 20, 20, 30)).square == (100, 0, 100)
    assert prepared(image, (0, 0, 200, 100)).square == (50, 0, 100)
    assert prepared(image, Image.new("L", (200, 100))).square == (50, 0, 100)
    assert torch.equal(prepared(image, (80, 20, 30, 30)).square_tensor(64), image_tensor(image, 64))


def test_a_cell_is_drawn_anew_if_any_part_of_it_is():
    cells = prepared(noise(64, 64), (15, 16, 2, 16)).cells(4)
    assert cells.nonzero().tolist() == [[1, 0], [1, 1]]


def test_out_painting_draws_the_room_around_the_image(pipe):
    image = noise(32, 48)
    (grown,) = pipe.edit(image, None, 3, expand=(8, 0, 24, 16), seeds=0, keep_pixels=True).images
    assert grown.size == (64, 64)
    assert torch.equal(pixels(grown)[:, 0:48, 8:40], pixels(image))


def test_a_mask_may_be_drawn_in_any_mode():
    light = Image.new("L", (64, 64))
    light.paste(255, (8, 8, 24, 40))
    wanted = prepared(noise(64, 64), (8, 8, 16, 32)).mask.tobytes()
    for mode in ("L", "1", "RGB", "P", "RGBA", "CMYK"):
        assert prepared(noise(64, 64), light.convert(mode)).mask.tobytes() == wanted, mode
    layer = Image.new("RGBA", (64, 64), (255, 255, 255, 0))  # as a paint program saves one
    layer.paste("white", (8, 8, 24, 40))
    assert prepared(noise(64, 64), layer).mask.tobytes() == wanted


def colours(image) -> list[int]:
    """The left and the right half of an image, red, green and blue."""
    found = pixels(as_image(image, 16)).float()
    return [round(float(half.mean())) for channel in found for half in (channel[:, :10], channel[:, 10:])]


def test_cmyk_grey_sixteen_bit_palette_and_transparent_images_are_read_as_people_see_them(tmp_path):
    image = Image.new("RGB", (20, 20), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 20))
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    clear = image.convert("RGBA")
    clear.paste((9, 9, 9, 0), (10, 0, 20, 20))
    clear.save(tmp_path / "clear.png")
    levels = np.full((20, 20), 65535, dtype=np.uint16)
    levels[:, 10:] = 257 * 100
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert colours(open_image(tmp_path / "cmyk.tif")) == [255, 0, 0, 0, 0, 255]
    assert colours(open_image(tmp_path / "palette.png")) == [255, 0, 0, 0, 0, 255]
    assert colours(open_image(tmp_path / "clear.png")) == [255, 255, 0, 255, 0, 255]
    assert colours(open_image(tmp_path / "deep.png")) == [255, 100] * 3


def test_of_an_animation_the_first_image_is_edited(tmp_path, pipe):
    first, second = noise(64, 64), Image.new("RGB", (64, 64), "green")
    first.save(tmp_path / "moving.webp", save_all=True, append_images=[second], lossless=True)
    (edited,) = pipe.edit(open_image(tmp_path / "moving.webp"), (8, 8, 16, 16), 1, seeds=0, keep_pixels=True).images
    assert torch.equal(pixels(edited)[:, 32:], pixels(first)[:, 32:])


def test_a_photograph_taken_sideways_is_edited_upright(tmp_path):
    image, exif = Image.new("RGB", (40, 20), "black"), Image.Exif()
    image.paste("white", (0, 0, 20, 20))
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    upright = prepared(open_image(tmp_path / "photo.png"), (0, 0, 20, 20))
    assert upright.image.size == (20, 40)
    assert pixels(upright.image)[0, 0].float().mean() == 255


def test_a_tensor_is_an_image_too(pipe):
    image = noise(64, 64)
    one, other = (pipe.edit(given, (8, 8, 16, 16), 1, seeds=0).images for given in (image, pixels(image) / 255))
    assert one[0].tobytes() == other[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "mask .* or expand"),
        ({"mask": (0, 0, 8, 8), "expand": 4}, "one of the two"),
        ({"mask": (0, 0, 8)}, "four numbers"),
        ({"mask": (60, 0, 8, 8)}, "x 60, y 0, width 8, height 8 is not within the image, 64 x 64"),
        ({"mask": (0, 0, 0, 8)}, "not within"),
        ({"mask": Image.new("L", (32, 64))}, "the mask is 32 x 64 pixels, the image 64 x 64"),
        ({"expand": 0}, "expand is"),
        ({"expand": (0, -1, 0, 4)}, "expand is"),
        ({"expand": 97}, r"^expand .*258 x 258 pixels.* 64 x 64.* 256 pixels"),
        ({"expand": (0, 16, 0, 0)}, "^expand .*64 x 80 pixels.* 16 more left or right"),
        ({"mask": (0.5, 0, 8, 8)}, r"^mask is \(0\.5, 0, 8, 8\)"),
        ({"mask": "m.png"}, "four numbers"),
        ({"expand": "wide"}, "expand is"),
        ({"mask": np.zeros((64, 64), np.uint8)}, "the mask is a ndarray"),
        ({"mask": Image.new("L", (64, 64), 1)}, "the mask .* 1 of 255"),
        ({"mask": Image.new("F", (64, 64), 1.0)}, "the mask has floating-point pixels"),
        ({"mask": (0, 0, 8, 8), "keep_pixels": True, "output_type": "latent"}, "keep_pixels pastes pixels"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(pipe, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipe.edit(noise(64, 64), class_labels=1, **arguments)


def test_an_image_that_is_too_small_is_refused(pipe):
    for draw in (lambda: pipe.edit(noise(200, 15), (0, 0, 4, 4), 1), lambda: pipe.vary(noise(15, 200), 2, 1)):
        with pytest.raises(ValueError, match=r"too small, \d+ x \d+ pixels; .* 16 x 16 or more"):
            draw()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 64, 64, dtype=torch.uint8), r"torch\.uint8"),
        (torch.zeros(3, 64, 64, dtype=torch.bool), r"torch\.bool"),
        (torch.full((3, 64, 64), torch.nan), "nan"),
        (torch.full((3, 64, 64), 200.0), "200"),
        (torch.zeros(64, 64), r"\(64, 64\)"),
        (torch.zeros(1, 3, 64, 64), r"\(1, 3, 64, 64\)"),
        (torch.zeros(3, 0, 64), r"\(3, 0, 64\)"),
        (np.zeros((3, 64, 64), np.uint8), r"uint8 \(3, 64, 64\)"),
        (np.zeros((64, 64, 3), np.float32), r"float32 \(64, 64, 3\)"),
        (np.zeros((64, 0, 3), np.uint8), r"uint8 \(64, 0, 3\)"),
        (None, "None"),
        (7, "int"),
        ([[0, 1]], "list"),
    ],
)
def test_what_is_no_image_is_refused(pipe, image, words):
    draws = (
        lambda: pipe.edit(image, (0, 0, 8, 8), 1),
        lambda: pipe.vary(image, 2, 1),
        lambda: pipe.reconstruct(image),
    )
    for draw in draws:
        with pytest.raises(ValueError, match=words) as caught:
            draw()
        assert "\n" not in str(caught.value)


def test_arrays_paths_and_tensors_are_the_image_that_they_hold(pipe, tmp_path):
    image = noise(90, 70)
    image.save(tmp_path / "image.png")
    same = (np.asarray(image), tmp_path / "image.png", str(tmp_path / "image.png"), pixels(image) / 255)
    for draw in (
        lambda given: pipe.edit(given, (8, 8, 16, 16), 1, seeds=0).images[0],
        lambda given: pipe.vary(given, 2, 1, seeds=0).images[0],
        pipe.reconstruct,
    ):
        wanted = draw(image).tobytes()
        assert [draw(given).tobytes() for given in same] == [wanted] * 4


def test_a_tensor_of_the_size_of_the_model_keeps_its_exact_values():
    exact = torch.rand(3, 64, 64)
    assert torch.equal(given_square(exact, 64), exact)


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point pixels; save it with 8 or 16 bits"):
        as_image(Image.new("F", (64, 64), 0.5), 64)


def test_a_mask_wider_than_the_square_is_refused_where_it_would_be_half_pasted(pipe):
    with pytest.raises(ValueError, match="larger than the square that is drawn, 64 x 64 of 128 x 64"):
        pipe.edit(noise(128, 64), (10, 0, 100, 8), 1, keep_pixels=True)
    assert pipe.edit(noise(128, 64), (10, 0, 100, 8), 1, seeds=0).images[0].size == (64, 64)
