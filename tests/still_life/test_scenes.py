"""Scenes, their captions, their drawings, and the judge of both."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from var_toolkit.still_life.caption_reader import read_caption
from var_toolkit.still_life.captions import (
    Caption,
    Wish,
    caption,
    training_caption,
    unseen,
    unseen_caption,
    vocabulary,
)
from var_toolkit.still_life.image_cache import cached_images
from var_toolkit.still_life.scene_data import SCENES
from var_toolkit.still_life.scene_detector import Found, FoundScene
from var_toolkit.still_life.scene_drawing import SIZE, draw_scene, foot_at, seen_at
from var_toolkit.still_life.scene_judge import CATEGORIES, judge, prompts
from var_toolkit.still_life.scenes import HELD_OUT, SPLITS, Scene, Thing, scene_of

MANY = 300
RECORDED = {0: 384893759, 1: 49974547, 7: 296102112}


def test_a_scene_is_a_function_of_its_number_and_split() -> None:
    assert scene_of(5) == scene_of(5)
    assert len({scene_of(5, split) for split in SPLITS}) == len(SPLITS)


@pytest.mark.parametrize(
    ("seed", "split", "named"), [(-1, "train", "-1"), (2**40, "train", "seed"), (0, "test", "test")]
)
def test_scenes_that_do_not_exist_are_refused(seed: int, split: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        scene_of(seed, split)


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.solid) for thing in scene.things}


def test_pairs_that_are_held_out_are_shown_in_their_split_alone() -> None:
    for number in range(MANY):
        assert not pairs(scene_of(number)) & set(HELD_OUT)
        assert not pairs(scene_of(number, "validation")) & set(HELD_OUT)
        assert pairs(scene_of(number, "held-out")) & set(HELD_OUT)


def test_solids_stand_in_the_image_in_the_order_of_the_scene() -> None:
    for number in range(MANY):
        scene = scene_of(number)
        columns = [seen_at(thing)[0] for thing in scene.things]
        feet = [foot_at(thing) for thing in scene.things]
        assert all(0.02 < value < 0.98 for thing in scene.things for value in seen_at(thing))
        assert scene.arrangement != "row" or columns == sorted(columns)
        assert scene.arrangement != "depth" or feet == sorted(feet, reverse=True)


def test_an_image_is_a_function_of_scene_and_seed_on_every_machine() -> None:
    for number, recorded in RECORDED.items():
        image = draw_scene(scene_of(number), number, SIZE)
        assert image.shape == (3, SIZE, SIZE)
        assert image.dtype == np.uint8
        assert zlib.crc32(image.tobytes()) == recorded


def test_a_solid_is_where_the_scene_says() -> None:
    thing = Thing("sphere", "red", "large", 0.6, 0.1, 0.0)
    image = draw_scene(Scene((thing,), "single", "marble", "noon"), 0, SIZE).astype(int)
    column, row = (int(value * SIZE) for value in seen_at(thing))
    red, green, blue = image[:, row, column]
    assert red > 2 * max(green, blue)
    bare = draw_scene(Scene((replace(thing, x=-0.6),), "single", "marble", "noon"), 0, SIZE)
    assert bare[0, row, column] < 1.3 * bare[1, row, column]


def test_the_nearer_solid_hides_the_farther() -> None:
    near, far = Thing("cube", "red", "large", 0.0, -0.7, 0.0), Thing("cube", "blue", "large", 0.1, 0.9, 0.0)
    column, row = (int(value * SIZE) for value in seen_at(near))
    for things in ((near, far), (far, near)):
        image = draw_scene(Scene(things, "depth", "sand", "noon"), 0, SIZE).astype(int)
        assert image[0, row, column] > image[2, row, column]


def test_captions_are_true_varied_and_of_the_vocabulary() -> None:
    words, texts = set(vocabulary()), set()
    for number in range(MANY):
        scene = scene_of(number)
        found = caption(scene, number)
        texts.add(found.text)
        assert set(re.findall(r"[a-z]+|,", found.text)) <= words
        assert [(wish.solid, wish.colour) for wish in found.wishes] == [(t.solid, t.colour) for t in scene.things]
        assert judge(found, shown(scene)).whole
    assert len(texts) > 0.95 * MANY


def named(text: str) -> list[tuple[str, str]]:
    """Solids and colours in the order of a caption's words."""
    return [(wish.solid, wish.colour) for wish in read_caption(text).wishes]


def from_left(scene) -> list[tuple[str, str]]:
    return [(thing.solid, thing.colour) for thing in sorted(scene.things, key=lambda thing: thing.x)]


def vague(text: str) -> bool:
    """Whether a caption of several different solids does not say how they stand."""
    found = read_caption(text)
    return len(set(found.wishes)) > 1 and not (found.left_of or found.in_front_of or found.between)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_captions_for_training_name_solids_from_left_to_right_unless_they_say_how_these_stand(split):
    told = (
        (lambda number: training_caption(number, 0))
        if split == "train"
        else (lambda number: unseen_caption(scene_of(number, split), number, from_left=True).text)
    )
    listed = [(scene_of(number, split), told(number)) for number in range(150) if vague(told(number))]
    assert len(listed) > 10
    for scene, text in listed:
        assert named(text) == from_left(scene), text


def test_prompts_of_the_judge_name_solids_in_any_order():
    listed = [p for p in prompts(400) if p.category in ("two objects", "attribute binding")]
    ordered = [named(prompt.caption.text) == from_left(prompt.scene) for prompt in listed]
    assert 0.15 < sum(ordered) / len(ordered) < 0.6


def test_training_never_uses_unseen_captions() -> None:
    drawn = [training_caption(number, epoch) for number in range(60) for epoch in range(5)]
    assert not any(map(unseen, drawn))
    assert len(set(drawn)) > 0.9 * len(drawn)
    assert all(unseen(unseen_caption(scene_of(number, "validation"), number).text) for number in range(30))


def shown(scene: Scene) -> FoundScene:
    """What a faultless detector finds."""
    things = (Found(t.solid, t.colour, t.size, seen_at(t)[0], foot_at(t)) for t in scene.things)
    return FoundScene(tuple(things), scene.ground, scene.light)


def test_prompts_are_of_all_categories_and_no_two_alike() -> None:
    found = prompts(4 * len(CATEGORIES))
    assert [prompt.category for prompt in found] == list(CATEGORIES) * 4
    assert len({prompt.caption.text for prompt in found}) == len(found)
    for prompt in found:
        assert judge(prompt.caption, shown(prompt.scene)).whole
        assert unseen(prompt.caption.text)
        assert (prompt.category == CATEGORIES[-1]) == bool(pairs(prompt.scene) & set(HELD_OUT))
    with pytest.raises(ValueError, match="0"):
        prompts(0)


BALL, CUBE = Found("sphere", "red", "small", 0.3, 0.7), Found("cube", "blue", "large", 0.7, 0.5)
ASKED = Caption(
    "a small red ball left of a blue cube on sand at noon",
    (Wish("sphere", "red", "small"), Wish("cube", "blue", None)),
    left_of=((0, 1),),
    ground="sand",
    light="noon",
)
WRONG = {
    "count": (BALL, CUBE, CUBE),
    "solid": (BALL._replace(solid="cone"), CUBE),
    "colour": (BALL, CUBE._replace(colour="green")),
    "size": (BALL._replace(size="large"), CUBE),
    "position": (BALL._replace(x=0.8), CUBE),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_in_an_image_is_named(wrong: str) -> None:
    verdict = judge(ASKED, FoundScene(WRONG[wrong], "sand", "noon"))
    assert not verdict.whole
    assert [name for name, right in vars(verdict).items() if not right] == [wrong]


def test_what_is_right_is_right_in_any_order() -> None:
    assert judge(ASKED, FoundScene((CUBE, BALL), "sand", "noon")).whole
    other = judge(ASKED, FoundScene((CUBE, BALL), "grass", "dusk"))
    assert (other.ground, other.light, other.whole) == (False, False, False)
    assert not judge(ASKED, FoundScene((), "sand", "noon")).position


def test_colours_that_are_swapped_are_not_right() -> None:
    swapped = (BALL._replace(colour="blue"), CUBE._replace(colour="red"))
    assert not judge(ASKED, FoundScene(swapped, "sand", "noon")).colour


@pytest.mark.parametrize(
    ("relation", "right"),
    [({"in_front_of": ((0, 1),)}, True), ({"in_front_of": ((1, 0),)}, False), ({"left_of": ((1, 0),)}, False)],
    ids=["in-front", "behind", "right"],
)
def test_positions(relation: dict[str, tuple[tuple[int, int], ...]], right: bool) -> None:
    asked = replace(ASKED, **{"left_of": (), **relation})
    assert judge(asked, FoundScene((BALL, CUBE), "sand", "noon")).position is right


def test_between() -> None:
    three = (Wish("cone", "red", None), Wish("sphere", "red", None), Wish("cube", "blue", None))
    asked = Caption("", three, between=(0, 1, 2))
    cone = Found("cone", "red", "small", 0.5, 0.6)
    assert judge(asked, FoundScene((BALL, cone, CUBE), "sand", "noon")).whole
    assert not judge(asked, FoundScene((BALL, cone._replace(x=0.9), CUBE), "sand", "noon")).position


def test_images_of_a_file_are_those_of_their_scenes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    images = cached_images(replace(SCENES, size=16, draw=_small), tmp_path, 3, "validation", progress=False)
    assert images.shape == (3, 3, 16, 16)
    assert np.array_equal(images[2], _small(2, "validation"))
    with pytest.raises(ValueError, match="nowhere"):
        cached_images(SCENES, tmp_path, 1, "nowhere")


def _small(index: int, split: str) -> np.ndarray:
    return np.full((3, 16, 16), index, dtype=np.uint8)


def asked_for(told: Caption) -> tuple[object, ...]:
    """What a caption asks for, whatever the order of its wishes."""
    named = [(one.solid, one.colour, one.size or "any") for one in told.wishes]
    between = told.between and (named[told.between[0]], sorted(named[i] for i in told.between[1:]))
    pairs = (sorted((named[i], named[j]) for i, j in pairs) for pairs in (told.left_of, told.in_front_of))
    return sorted(named), *pairs, between, told.ground, told.light


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_what_a_caption_asks_for_is_read_back_from_its_text(first):
    for number in range(first, first + 100):
        told = caption(scene_of(number), number)
        assert asked_for(read_caption(told.text)) == asked_for(told), told.text


def test_texts_outside_the_grammar_are_named():
    assert read_caption("A red sphere to the left of a blue cube on sand.").left_of == ((0, 1),)
    with pytest.raises(ValueError, match="a cat"):
        read_caption("a cat")
