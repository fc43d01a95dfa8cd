"""What stands behind the buttons of the page, called as Gradio calls it."""

import asyncio

import pytest
from PIL import Image, ImageChops

gr = pytest.importorskip("gradio", reason="the page needs gradio (extra demo)")

from var_toolkit.demo.page import SHOWN, build  # noqa: E402
from var_toolkit.demo.studio import Studio, model_names  # noqa: E402
from var_toolkit.pipeline import Pipeline  # noqa: E402

PLAN = "Plain, all layers"
WISH = ("stilllife-var", PLAN, 207, 3, 1.5)


@pytest.fixture(scope="module")
def page(studio):
    return build(studio, "stilllife-var")


def button(page, name: str):
    """What happens at a click, by its name."""
    return next(function.fn for function in page.fns.values() if function.api_name == name)


def steps(page, name: str, *given) -> list:
    """All that an event of that name shows, one after another."""

    async def listened():
        return [step async for step in button(page, name)(*given)]

    return asyncio.run(listened())


def painting(image: Image.Image, box: tuple[int, int, int, int] | None) -> dict:
    """What the editor sends: a magnified image, and one layer painted in a box of it."""
    layer = Image.new("RGBA", image.size)
    if box:
        layer.paste((255, 77, 109, 160), box)
    return {"background": image.convert("RGBA"), "layers": [layer], "composite": None}


def test_a_drawn_image_is_magnified_by_a_whole_factor(page):
    *growing, (shown, row, told, drawn) = steps(page, "draw", *WISH)
    assert drawn.size == (64, 64)
    assert shown.tobytes() == drawn.resize((SHOWN, SHOWN), Image.Resampling.NEAREST).tobytes()
    assert row.width > 6 * 64 > 5 * row.height
    assert "forward passes" in told
    said = [step[2] for step in growing if not step[2].startswith("loading")]
    assert said == [f"scale {k} of 6" for k in range(1, 7)]


def test_no_file_is_written_again_while_a_browser_may_read_it(page, tmp_path):
    drawn = [step for _ in range(2) for step in steps(page, "draw", *WISH)]
    for at in (0, 1):
        shown = gr.Image(format="png")
        shown.GRADIO_CACHE = str(tmp_path)
        files = {shown.postprocess(step[at]).path for step in drawn}
        assert len(files) == len(drawn)
        assert all(file.startswith(str(tmp_path)) for file in files)


def test_painting_over_a_drawn_image_draws_that_part_anew(page):
    drawn = steps(page, "draw", *WISH)[-1][3]
    asked = painting(drawn.resize((SHOWN, SHOWN), Image.Resampling.NEAREST), (0, 0, SHOWN // 2, SHOWN))
    *_, (shown, told) = steps(page, "edit", asked, True, "stilllife-var", PLAN, 503, 8, 1.5)
    small = shown.resize((64, 64), Image.Resampling.NEAREST)
    assert "forward passes" in told
    changed = ImageChops.difference(small, drawn).getbbox()
    assert changed is not None
    assert changed[2] <= 32


def test_a_photo_comes_back_whole_with_the_painted_part_drawn_anew(page):
    photo = Image.effect_noise((300, 200), 60).convert("RGB")
    *_, (shown, _) = steps(page, "edit", painting(photo, (40, 40, 120, 120)), True, *WISH)
    assert shown.size == (300, 200)
    left, top, right, bottom = ImageChops.difference(shown, photo).getbbox()
    assert 40 <= left < right <= 120
    assert 40 <= top < bottom <= 120


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (None, "there is no image"),
        ({"background": None, "layers": [], "composite": None}, "there is no image"),
        (painting(Image.new("RGB", (90, 90)), None), "nothing is painted over"),
    ],
)
def test_without_image_or_paint_the_page_says_what_to_do(page, asked, words):
    with pytest.raises(gr.Error, match=words):
        steps(page, "edit", asked, True, *WISH)


@pytest.mark.parametrize("name", ["draw", "compare"])
def test_bad_input_becomes_one_visible_line(page, name):
    wish = WISH if name == "draw" else ("stilllife-var", PLAN, PLAN, 207, 3, 1.5)
    with pytest.raises(gr.Error, match="seed is -5") as shown:
        steps(page, name, *wish[:-2], -5, 1.5)
    assert "\n" not in shown.value.message


def test_side_by_side_shows_both_images_with_their_seconds(page):
    *_, (left, told_left, right, told_right) = steps(
        page, "compare", "stilllife-var", PLAN, "VARiant: 4 of 12 layers from scale 4 on", 207, 3, 1.5
    )
    assert left.size == right.size == (SHOWN, SHOWN)
    assert left.tobytes() != right.tobytes()
    assert " s** · 6 forward passes · keys and values 4.8 MB" in told_left
    assert " s** · 6 forward passes · keys and values 1.6 MB" in told_right


def test_a_model_of_ones_own_is_offered_first(small_tokenizer, small_var, tmp_path):
    mine = str(tmp_path / "mine")
    Pipeline(small_tokenizer, small_var).save_pretrained(mine)
    own = build(Studio(model_names(mine), device="cpu"), mine)
    models = next(block for block in own.blocks.values() if getattr(block, "label", None) == "Model")
    assert models.choices[0] == (mine, mine)
    *_, (_, _, told, drawn) = steps(own, "draw", mine, PLAN, 9, 0, 1.5)
    assert drawn.size == (64, 64)
    assert "4 forward passes" in told


def test_one_image_is_drawn_at_a_time(page):
    drawing = [function for function in page.fns.values() if function.api_name in ("draw", "compare", "edit")]
    assert {(function.concurrency_id, function.concurrency_limit) for function in drawing} == {("drawing", 1)}
