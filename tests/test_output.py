"""What a notebook shows of a pipeline and of what it returns."""

import io

import pytest
from PIL import Image, ImageChops

from var_toolkit.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe(small_tokenizer, small_var) -> Pipeline:
    return Pipeline(small_tokenizer, small_var)


def shown(output) -> Image.Image:
    return Image.open(io.BytesIO(output._repr_png_()))


def test_a_pipeline_is_one_line(pipe):
    assert repr(pipe) == "Pipeline(VAR 4 x 256, MultiScaleVQ, 10 classes, 64 x 64 pixels, cpu, float32)"


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_an_output_is_one_line_and_shows_its_images(pipe, kind):
    output = pipe([3, 7, 3], seeds=[0, 1, 2], output_type=kind)
    assert len(repr(output)) < 120
    assert "3 images" in repr(output)
    assert "class_labels=[3, 7, 3], seeds=[0, 1, 2]" in repr(output)
    sheet = shown(output)
    assert sheet.size == (3 * 130 - 2, 128)  # magnified
    first, seen = pipe([3, 7, 3], seeds=[0, 1, 2]).images[0], sheet.crop((0, 0, 128, 128)).resize((64, 64), 0)
    assert max(high for _, high in ImageChops.difference(first, seen).getextrema()) <= 1  # rounded twice


def test_latents_show_nothing(pipe):
    output = pipe(3, seeds=0, output_type="latent")
    assert output._repr_png_() is None
    assert "(1, 8, 4, 4)" in repr(output)


def test_many_images_are_shown_in_part(pipe):
    from dataclasses import replace

    output = pipe(3, seeds=0)
    many = replace(output, images=[Image.new("RGB", (900, 900))] * 100, class_labels=[3] * 100, seeds=list(range(100)))
    assert max(shown(many).size) <= 1024
    assert "100 in all" in repr(many)
    assert len(repr(many)) < 200
