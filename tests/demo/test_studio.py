"""Drawing for the page, without the page."""

import asyncio
from functools import partial
from threading import Event

import pytest
import torch
from PIL import Image, ImageChops

from var_toolkit.abandoning import AbandonedError
from var_toolkit.demo import studio as module
from var_toolkit.demo.studio import KEPT, Frame, Studio, Wish, model_names
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline

PLAIN, SUBNET = "Plain, all layers", "VARiant: 4 of 12 layers from scale 4 on"
WISH = Wish("stilllife-var", PLAIN, 207, 3, 1.5)


def wish(**changes) -> Wish:
    return Wish(**{**vars(WISH), **changes})


def test_embedded_models_come_first_and_a_directory_before_them():
    names = model_names("stilllife-var")
    assert names[0] == "stilllife-var"
    assert names.index("stilllife-gpt") < names.index("var-d16")
    assert "stilllife-tokenizer" not in names
    assert model_names("mine")[:2] == ["mine", "stilllife-var"]


def draw(studio, *given, how="draw", **rest):
    """The images that are told of, and the last."""
    told = []
    last = getattr(studio, how)(*given, told.append, **rest)
    return [*(frame for frame in told if isinstance(frame, Frame)), last]


def finished(studio, wished: Wish) -> Frame:
    (frame,) = draw(studio, wished, how="finished")
    return frame


def test_an_image_grows_scale_by_scale_into_the_one_of_the_pipeline(studio):
    *growing, last = draw(studio, WISH)
    assert [frame.scale for frame in growing] == list(range(6))
    assert all(frame.facts is None and frame.scales == 6 for frame in growing)
    expected = load("stilllife-var", device="cpu").pack()(207, seeds=3, cfg=1.5)
    assert last.image.tobytes() == expected.images[0].tobytes() == growing[-1].image.tobytes()
    assert growing[0].image.tobytes() != growing[-1].image.tobytes()
    assert (last.facts.forward_passes, last.facts.cache_bytes) == (expected.forward_passes, expected.cache_bytes)
    assert 0 < last.facts.seconds < 60


@pytest.mark.parametrize("model", ["stilllife-var", "stilllife-gpt"])
def test_an_image_that_nobody_waits_for_ends_within_its_first_pass(studio, model):
    def left(told):
        assert not isinstance(told, Frame)
        if told is None:
            raise AbandonedError

    wished = wish(model=model, plan=studio.choices(model)[0].name)
    with pytest.raises(AbandonedError):
        studio.draw(wished, left)
    assert finished(studio, wished).image.size == (64, 64)  # and the model goes on


def test_the_next_image_waits_until_one_that_was_left_has_ended(studio, monkeypatch):
    happened, go_on = [], Event()
    call = Pipeline.__call__

    def watched(self, *args, seeds, **settings):
        happened.append(f"{seeds} begins")
        assert seeds != 3 or go_on.wait(10)
        try:
            return call(self, *args, seeds=seeds, **settings)
        finally:
            happened.append(f"{seeds} ends")

    monkeypatch.setattr(Pipeline, "__call__", watched)
    studio.pipeline("stilllife-var")

    async def two():
        left = asyncio.ensure_future(anext(studio.worker.live(partial(studio.draw, wish(seed=3)))))
        while not happened:
            await asyncio.sleep(0.001)
        left.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        return [frame async for frame in studio.worker.live(partial(studio.draw, wish(seed=4)))]

    assert len([told for told in asyncio.run(two()) if isinstance(told, Frame)]) == 7
    assert happened == ["3 begins", "3 ends", "4 begins", "4 ends"]


def test_a_seed_is_an_image(studio):
    images = [finished(studio, wish(seed=seed)).image.tobytes() for seed in (3, 4, 3)]
    assert images[0] == images[2] != images[1]


def test_plans_side_by_side_tell_what_each_took(studio):
    whole, subnet = (finished(studio, wish(plan=plan)) for plan in (PLAIN, SUBNET))
    assert subnet.facts.cache_bytes < whole.facts.cache_bytes
    assert "4 layers" in subnet.facts.plan
    assert whole.facts.peak_bytes is None  # of main memory


def test_a_plan_of_two_models_draws_with_both(studio):
    frame = finished(studio, wish(plan=studio.choices("stilllife-var")[3].name))
    assert frame.facts.plan.count("VAR ") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/etc"}, "model '/etc' is not offered here"),
        ({"plan": "Masked passes as published (HMAR)"}, "is not a plan of stilllife-var; choose one of Plain"),
        ({"label": None}, "no class is chosen"),
        ({"label": 1000}, "classes are 0 to 999"),
        ({"seed": None}, "there is no seed"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"guidance": -2.0}, "cfg is -2.0"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(studio, changes, words):
    with pytest.raises(ValueError, match=words) as complaint:
        draw(studio, wish(**changes))
    assert "\n" not in str(complaint.value)


def test_a_model_is_loaded_once_and_the_last_few_are_kept(monkeypatch):
    loaded = []

    def counted(source, **rest):
        loaded.append(source)
        return load("stilllife-gpt-small", **rest)

    monkeypatch.setattr(module, "load", counted)
    one = Studio(["a"], device="cpu")
    for source in ["a", "b", "a", *"cd", "a", "b"]:
        one.pipeline(source)
    assert KEPT == 3
    assert loaded == ["a", "b", "c", "d", "b"]


def test_a_studio_computes_in_the_dtype_it_is_told():
    assert Studio(["stilllife-var-small"], dtype=torch.bfloat16).pipeline("stilllife-var-small").dtype == torch.bfloat16


@pytest.fixture
def half() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


def test_an_edited_image_changes_inside_the_mask_alone(studio, half):
    before = finished(studio, WISH).image
    *growing, last = draw(studio, wish(label=503, seed=8), before, half, how="edit", keep_pixels=True)
    assert len(growing) == 6
    changed = ImageChops.difference(before, last.image).getbbox()
    assert changed is not None
    assert changed[2] <= 32


def test_nothing_painted_is_refused(studio):
    with pytest.raises(ValueError, match="nothing is painted"):
        draw(studio, WISH, Image.new("RGB", (64, 64)), Image.new("L", (64, 64)), how="edit", keep_pixels=False)


def test_a_plan_with_drafts_edits_as_well(studio, half):
    jacobi = next(choice.name for choice in studio.choices("stilllife-gpt") if "Jacobi" in choice.name)
    asked = wish(model="stilllife-gpt", plan=jacobi)
    frames = draw(studio, asked, Image.new("RGB", (64, 64)), half, how="edit", keep_pixels=False)
    assert frames[-1].facts.forward_passes < 256


def test_a_prompt_and_a_negative_prompt_reach_the_image(text_studio, text_model):
    def drawn(**words):
        return finished(text_studio, Wish(text_model, None, None, 3, 3.0, **words)).image.tobytes()

    pipe = load(text_model, device="cpu").pack()
    (expected,) = pipe(prompt="red cube", negative_prompt="cube", seeds=3, cfg=3.0).images
    assert drawn(prompt="red cube", negative_prompt="cube") == expected.tobytes()
    assert len({drawn(prompt=words) for words in ("red cube", "cube")} | {expected.tobytes()}) == 3
    assert drawn(prompt="red cube", negative_prompt="") == drawn(prompt="red cube")


@pytest.mark.parametrize(
    ("prompt", "words"), [(None, "no prompt"), (" ", "no prompt"), ("blue cube", "unknown words: blue")]
)
def test_a_prompt_that_cannot_be_drawn_is_named(text_studio, text_model, prompt, words):
    with pytest.raises(ValueError, match=words):
        finished(text_studio, Wish(text_model, None, 207, 3, prompt=prompt))
