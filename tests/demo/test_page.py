"""What stands behind the buttons of the page, called as Gradio calls it."""

import asyncio

import pytest
from PIL import Image, ImageChops

gr = pytest.importorskip("gradio", reason="the page needs gradio (extra demo)")

from var_toolkit.demo.choosing import NAMES  # noqa: E402
from var_toolkit.demo.page import build  # noqa: E402
from var_toolkit.demo.showing import SIDE, magnified  # noqa: E402
from var_toolkit.demo.studio import Studio, model_names  # noqa: E402
from var_toolkit.pipeline import Pipeline  # noqa: E402

PLAN = "Plain, all layers"
WISH = ("stilllife-var", PLAN, 207, 3, 1.5)


@pytest.fixture(scope="module")
def page(studio):
    return build(studio, "stilllife-var")


def button(page, name: str):
    """What happens at a click, by its name."""
    return next(function.fn for function in page.fns.values() if function.api_name == name or function.name == name)


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
    *growing, (shown, row, told, _, drawn, _) = steps(page, "draw", *WISH)
    assert drawn.size == (64, 64)
    assert shown.tobytes() == drawn.resize((SIDE, SIDE), Image.Resampling.NEAREST).tobytes()
    assert row.width > 6 * 64 > 5 * row.height
    assert "forward passes" in told
    said = [step[2] for step in growing if not step[2].startswith("loading")]
    assert said == [f"scale {k} of 6" for k in range(1, 7)]


def test_no_file_is_written_again_while_a_browser_may_read_it(page, tmp_path):
    drawn = [step for _ in range(2) for step in steps(page, "draw", *WISH) if step[0] is not None]  # once loaded
    assert len(drawn) >= 2 * 6
    for at in (0, 1):
        shown = gr.Image(format="png")
        shown.GRADIO_CACHE = str(tmp_path)
        files = {shown.postprocess(step[at]).path for step in drawn}
        assert len(files) == len(drawn)
        assert all(file.startswith(str(tmp_path)) for file in files)


def test_painting_over_a_drawn_image_draws_that_part_anew(page):
    drawn = steps(page, "draw", *WISH)[-1][4]
    asked = painting(drawn.resize((SIDE, SIDE), Image.Resampling.NEAREST), (0, 0, SIDE // 2, SIDE))
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
    assert left.size == right.size == (SIDE, SIDE)
    assert left.tobytes() != right.tobytes()
    assert " s** · 6 forward passes · keys and values 4.8 MB" in told_left
    assert " s** · 6 forward passes · keys and values 1.6 MB" in told_right


def test_a_model_of_ones_own_is_offered_first(small_tokenizer, small_var, tmp_path):
    mine = str(tmp_path / "mine")
    Pipeline(small_tokenizer, small_var).save_pretrained(mine)
    own = build(Studio(model_names(mine), device="cpu"), mine)
    models = next(block for block in own.blocks.values() if getattr(block, "label", None) == "Model")
    assert models.choices[0] == (mine, mine)
    *_, (_, _, told, _, drawn, _) = steps(own, "draw", mine, PLAN, 9, 0, 1.5)
    assert drawn.size == (64, 64)
    assert "4 forward passes" in told


def test_several_images_count_their_seeds_up_and_fill_the_gallery(page):
    *_, (_, _, told, gallery, last, images) = steps(page, "draw", *WISH, None, None, 3)
    assert told.startswith("image 3 of 3 (seed 5): ")
    assert [caption for _, caption in gallery] == ["seed 3", "seed 4", "seed 5"]
    alone = [steps(page, "draw", *WISH[:3], seed, 1.5)[-1][4] for seed in (3, 4, 5)]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in alone]
    assert last.tobytes() == alone[-1].tobytes()


@pytest.mark.parametrize("count", [0, 10, 1.5])
def test_another_number_of_images_is_refused(page, count):
    with pytest.raises(gr.Error, match=f"count is {count}"):
        steps(page, "draw", *WISH, None, None, count)


def test_temperature_and_top_k_reach_the_plan_of_a_model_that_has_them(page):
    *_, (_, _, told, *_) = steps(page, "draw", *WISH, 0.5, 7)
    assert "top-k 7" in told
    assert "temperature 0.5" in told
    flowar = ("stilllife-flowar", None, 207, 3, 1.5)
    *_, (_, _, told, *_) = steps(page, "draw", *flowar, 0.5, 7)
    assert "FlowAR" in told


def filled(page, name: str, *given) -> dict:
    """What an event of that place fills the settings with, by name; what it leaves alone is missing."""
    values = button(page, name)(*given)
    names = ("model", "class", "seed", "guidance", "temperature", "top_k", "filled", "plan", "left", "right", "edit")
    names += ("prompt", "negative_prompt")
    return {name: value for name, value in zip(names, values, strict=True) if value != gr.skip()}


class Opened:
    """The request for an address."""

    def __init__(self, **query: str) -> None:
        self.query_params = query


def test_a_link_restores_every_setting(page):
    link = {"model": "stilllife-hmar", "plan": "Plain, one pass a scale", "class": "12", "seed": "5"}
    link |= {"guidance": "2.5", "temperature": "0.8", "top_k": "50"}
    assert set(link) == set(NAMES) - {"prompt", "negative_prompt"}
    found = filled(page, "opened", Opened(**link))
    assert found["model"]["value"] == found["filled"] == "stilllife-hmar"
    assert (found["class"]["value"], found["seed"], found["guidance"]) == (12, 5, 2.5)
    assert (found["temperature"]["value"], found["top_k"]["value"]) == (0.8, 50)
    assert found["plan"]["value"] == "Plain, one pass a scale"
    assert found["plan"]["value"] in found["plan"]["choices"][0] or found["plan"]["value"] in found["plan"]["choices"]


def test_what_a_link_names_wrongly_is_said_and_the_rest_restored(page, monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Warning", said.append)
    found = filled(page, "opened", Opened(model="stilllife-var", plan="Nope", seed="-5", top_k="x", guidance="2"))
    assert found["plan"]["value"] == PLAN
    assert found["guidance"] == 2
    assert "seed" not in found
    assert [sum(word in line for line in said) for word in ("'Nope'", "'-5'", "'x'")] == [1, 1, 1]
    found = filled(page, "opened", Opened(model="/etc"))
    assert found["model"]["value"] == "stilllife-var"
    assert "'/etc'" in said[-1]
    found = filled(page, "opened", Opened(model="stilllife-var", guidance="nan", temperature="inf"))
    assert (found["guidance"], found["temperature"]["value"]) == (1.5, 1)  # the model's own
    assert "guidance 'nan'" in said[-2]
    assert "temperature 'inf'" in said[-1]


def test_settings_that_a_model_lacks_are_hidden(page):
    for model, shown in (("stilllife-flowar", False), ("stilllife-gpt", True)):
        found = filled(page, "opened", Opened(model=model))
        assert found["temperature"]["visible"] is found["top_k"]["visible"] is shown


def test_draw_at_once_after_another_model_was_chosen_takes_that_models_settings(page):
    found = filled(page, "put", "stilllife-flowar", "stilllife-var", 4, False, 1)
    assert found["plan"]["value"] == found["plan"]["choices"][0] == "Plain, published solver with 25 steps"
    assert found["seed"] == 4
    assert set(filled(page, "put", "stilllife-flowar", "stilllife-flowar", 4, False, 1)) == {"seed"}


def test_draw_before_a_link_has_filled_the_page_draws_what_the_link_says(page):
    asked = ("stilllife-var", "", 0, False, 1, Opened(model="stilllife-gpt", seed="7"))
    found = filled(page, "put", *asked)
    assert (found["filled"], found["seed"]) == ("stilllife-gpt", 7)


def test_a_random_seed_is_shown_and_another_each_time(page):
    seeds = {filled(page, "put", "stilllife-var", "stilllife-var", 1.5, True, 1)["seed"] for _ in range(4)}
    assert len(seeds) == 4


@pytest.mark.parametrize("seed", [1.5, -5, None, 2**53, float("inf")])
def test_what_is_no_seed_is_one_line_of_ours(page, seed):
    with pytest.raises(gr.Error, match="seed") as shown:
        button(page, "put")("stilllife-var", "stilllife-var", seed, False, 1)
    assert "\n" not in shown.value.message
    if seed is not None:
        assert f"seed is {seed}" in shown.value.message


@pytest.mark.parametrize("name", ["draw", "compare", "edit"])
def test_the_parameters_of_the_api_have_names(page, name):
    told = page.get_api_info()["named_endpoints"][f"/{name}"]["parameters"]
    names = [parameter["parameter_name"] for parameter in told]
    assert {"model", "class_label", "seed", "guidance", "temperature", "top_k", "prompt", "negative_prompt"} < set(
        names
    )
    assert [one for one in told if not one["parameter_has_default"]] == [told[0]] * (name == "edit")


@pytest.fixture(scope="module")
def text_page(text_studio, text_model):
    return build(text_studio, text_model)


def test_the_words_are_shown_for_models_of_text_alone_and_a_link_restores_them(text_page, text_model):
    found = filled(text_page, "opened", Opened(model=text_model, prompt="red cube", negative_prompt="cube", seed="4"))
    assert [found[name]["visible"] for name in ("class", "prompt", "negative_prompt", "top_k")] == [
        False,
        True,
        True,
        False,
    ]
    assert (found["class"]["value"], found["seed"]) == (None, 4)
    assert (found["prompt"]["value"], found["negative_prompt"]["value"]) == ("red cube", "cube")
    found = filled(text_page, "opened", Opened(model="stilllife-var", prompt="red cube"))
    assert [found[name]["visible"] for name in ("class", "prompt", "negative_prompt")] == [True, False, False]
    assert (found["class"]["value"], found["prompt"]["value"]) == (207, "")  # so that no link holds it


def test_each_tab_draws_what_a_prompt_says(text_page, text_model):
    wish, words = (text_model, None, None, 3, 3.0, None, None), ("red cube", "cube")
    *_, (_, _, told, _, drawn, _) = steps(text_page, "draw", *wish, 1, *words)
    assert drawn.size == (6, 6)
    assert "3 forward passes" in told
    *_, (left, _, right, _) = steps(text_page, "compare", text_model, *wish[1:2], *wish[1:], *words)
    assert left.tobytes() == right.tobytes() == magnified(drawn).tobytes()
    with pytest.raises(gr.Error, match="there is no prompt"):
        steps(text_page, "draw", *wish)
