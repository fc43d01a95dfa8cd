"""Judges whether images show what their prompts ask for, in categories after GenEval (arXiv 2310.11513).

Prompts come from the grammar of captions, of scenes and words that training never shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count, permutations

from var_toolkit.still_life.captions import Caption, Wish, unseen_caption
from var_toolkit.still_life.scene_detector import Found, FoundScene
from var_toolkit.still_life.scenes import Scene, scene_of

CATEGORIES = ("single object", "two objects", "counting", "position", "attribute binding", "held-out pairs")
HELD_OUT = CATEGORIES[-1]
APART = 0.02  # of the image's side: solids closer than this are neither left nor right of one another


@dataclass(frozen=True)
class Prompt:
    """A prompt, what it asks for, and a scene of which it is true."""

    category: str
    caption: Caption
    scene: Scene
    number: int  # of the scene, which is also the seed of its rendering


@dataclass(frozen=True)
class Verdict:
    """What is right in an image. What a prompt does not mention is right whatever it is."""

    count: bool
    solid: bool
    colour: bool
    size: bool
    position: bool
    ground: bool
    light: bool

    @property
    def whole(self) -> bool:
        """Whether all is right."""
        return all(getattr(self, one.name) for one in fields(self))


def prompts(total: int) -> list[Prompt]:
    """The first `total` prompts, in turns of all categories. ValueError for a number below 1."""
    if total < 1:
        raise ValueError(f"the number of prompts is {total}; it must be at least 1")
    sources = {category: _prompts(category) for category in CATEGORIES}
    return [next(sources[CATEGORIES[i % len(CATEGORIES)]]) for i in range(total)]


def _prompts(category: str) -> Iterator[Prompt]:
    split = "held-out" if category == HELD_OUT else "validation"
    for number in count():
        scene = scene_of(number, split)
        # Three prompts of a category from one scene would be nearly the same, so each scene gives one.
        caption = unseen_caption(scene, number)
        if category in (HELD_OUT, _category(scene, caption)):
            yield Prompt(category, caption, scene, number)


def _category(scene: Scene, caption: Caption) -> str:
    if len(scene.things) == 1:
        return "single object"
    if caption.left_of or caption.in_front_of or caption.between is not None:
        return "position"
    if len(set(caption.wishes)) == 1:
        return "counting"
    return "two objects" if len(scene.things) == 2 else "attribute binding"


def judge(caption: Caption, shown: FoundScene) -> Verdict:
    """What of a caption an image shows: solids are matched with wishes so that as much as possible is right."""
    verdicts = [_verdict(caption, list(order), shown) for order in _orders(caption.wishes, shown.things)]
    return max(verdicts, key=lambda one: (one.whole, sum(getattr(one, field.name) for field in fields(one))))


def _orders(wishes: tuple[Wish, ...], things: tuple[Found, ...]) -> Iterator[tuple[Found | None, ...]]:
    """All ways to give every wish a solid; None where there are too few."""
    missing: list[Found | None] = [None] * max(len(wishes) - len(things), 0)
    yield from permutations([*things, *missing], len(wishes))


def _verdict(caption: Caption, order: list[Found | None], shown: FoundScene) -> Verdict:
    pairs = list(zip(caption.wishes, order, strict=True))
    return Verdict(
        count=len(shown.things) == len(caption.wishes),
        solid=all(found is not None and found.solid == wish.solid for wish, found in pairs),
        colour=all(found is not None and found.colour == wish.colour for wish, found in pairs),
        size=all(found is not None and wish.size in (None, found.size) for wish, found in pairs),
        position=None not in order and _in_position(caption, [found for found in order if found is not None]),
        ground=caption.ground in (None, shown.ground),
        light=caption.light in (None, shown.light),
    )


def _in_position(caption: Caption, order: list[Found]) -> bool:
    left = all(order[i].x + APART < order[j].x for i, j in caption.left_of)
    front = all(order[i].foot > order[j].foot + APART for i, j in caption.in_front_of)
    if caption.between is None:
        return left and front
    middle, one, other = (order[i].x for i in caption.between)
    return left and front and min(one, other) + APART < middle < max(one, other) - APART
