"""Captions of scenes, from a grammar with paraphrases, and what each caption asks for.

A caption is true of its scene, and leaves things out as people do: a size, the ground, the light, or how solids stand.
Captions for training that leave out how solids stand are of rows and name them from left to right: the bits of a coarse
map are drawn independently of one another, so that a model cannot choose between two orders there and would mix them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from var_toolkit.still_life.scenes import COLOURS, Scene, scene_of

# Singular and plural.
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "sphere": (("sphere", "spheres"), ("ball", "balls")),
    "cube": (("cube", "cubes"), ("box", "boxes"), ("block", "blocks")),
    "cylinder": (("cylinder", "cylinders"), ("drum", "drums")),
    "cone": (("cone", "cones"),),
    "torus": (("torus", "tori"), ("ring", "rings"), ("donut", "donuts")),
    "pyramid": (("pyramid", "pyramids"),),
    "octahedron": (("octahedron", "octahedra"), ("diamond", "diamonds")),
    "pawn": (("pawn", "pawns"), ("chess pawn", "chess pawns")),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
GROUND_WORDS = {
    "sand": ("on sand", "on the sand", "on a sandy floor"),
    "checks": ("on checks", "on a checkered floor", "on a chequered floor"),
    "stripes": ("on stripes", "on a striped floor"),
    "tiles": ("on tiles", "on a tiled floor"),
    "marble": ("on marble", "on a marble floor"),
    "grass": ("on grass", "on the grass", "on a lawn"),
}
LIGHT_WORDS = {
    "noon": ("at noon", "in daylight", "in bright daylight"),
    "dusk": ("at dusk", "at sunset", "in the evening"),
    "night": ("at night", "in moonlight", "by moonlight"),
}
OPENINGS = ("", "", "an image of ", "a photo of ", "a scene with ")
NUMBERS = {2: "two", 3: "three"}
ALIKE = ("", "", " side by side", " in a row")
LEFT = (
    "{0} to the left of {1}",
    "{0} left of {1}",
    "{1} to the right of {0}",
    "{1} right of {0}",
    "{0} on the left and {1} on the right",
)
FRONT = ("{0} in front of {1}", "{1} behind {0}")
BESIDE = ("{0} and {1}", "{0} and {1}", "{0} next to {1}", "{0} beside {1}")
THREE = ("{0}, {1} and {2} from left to right", "{0}, {1} and {2} in a row from left to right")
TOGETHER = ("{0}, {1} and {2}", "{0} with {1} and {2}")
BETWEEN = ("{1} between {0} and {2}", "{1} in the middle, between {0} and {2}")


_Option = TypeVar("_Option")


@dataclass(frozen=True)
class Wish:
    """A solid that a caption asks for; None is any."""

    solid: str
    colour: str
    size: str | None


@dataclass(frozen=True)
class Caption:
    """A caption and what it asks for. Pairs are numbers of wishes."""

    text: str
    wishes: tuple[Wish, ...]
    left_of: tuple[tuple[int, int], ...] = ()
    in_front_of: tuple[tuple[int, int], ...] = ()
    between: tuple[int, int, int] | None = None  # the first stands between the others
    ground: str | None = None
    light: str | None = None


def caption(scene: Scene, seed: int, *, from_left: bool = False) -> Caption:
    """A caption of a scene; the seed, at least 0, chooses the words and what is left out.

    A caption that does not say how solids stand names them in any order; with `from_left` from left to right, and one
    that stands behind another is always told.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, 130]))
    things, alike = scene.things, len({(t.solid, t.colour, t.size) for t in scene.things}) == 1 < len(scene.things)
    sized = [draw.random() < 0.6] * len(things) if alike else [draw.random() < 0.6 for _ in things]
    wishes = tuple(Wish(t.solid, t.colour, t.size if told else None) for t, told in zip(things, sized, strict=True))
    orders: dict[str, Any] = {}
    if alike:
        text = _several(draw, wishes)
    else:
        text, orders = _arranged(draw, scene, [_noun_phrase(draw, wish) for wish in wishes], from_left)
    ground = scene.ground if draw.random() < 0.8 else None
    light = scene.light if draw.random() < 0.7 else None
    return Caption(_framed(draw, text, ground, light), wishes, **orders, ground=ground, light=light)


def training_caption(number: int, epoch: int) -> str:
    """The caption of a training scene in an epoch: another one in each, and none that is `unseen`."""
    return _first(scene_of(number), 4096 * number + 64 * (epoch % 64), False, from_left=True).text


def unseen_caption(scene: Scene, seed: int, *, from_left: bool = False) -> Caption:
    """A caption whose words no training scene is shown with."""
    return _first(scene, 4096 * seed, True, from_left=from_left)


def unseen(text: str) -> bool:
    """Whether a caption is never used in training: one in sixteen is not."""
    return crc32(text.encode()) % 16 == 0


def _first(scene: Scene, seed: int, wanted: bool, *, from_left: bool) -> Caption:
    """The first caption of a scene from a seed on that is unseen, or that is not."""
    captions = (caption(scene, one, from_left=from_left) for one in count(seed))
    return next(found for found in captions if unseen(found.text) == wanted)


def _several(draw: np.random.Generator, wishes: tuple[Wish, ...]) -> str:
    words = [NUMBERS[len(wishes)], *_adjectives(draw, wishes[0]), _one(draw, NOUNS[wishes[0].solid])[1]]
    return " ".join(words) + _one(draw, ALIKE)


def _noun_phrase(draw: np.random.Generator, wish: Wish) -> str:
    words = [*_adjectives(draw, wish), _one(draw, NOUNS[wish.solid])[0]]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _adjectives(draw: np.random.Generator, wish: Wish) -> list[str]:
    return [*([] if wish.size is None else [_one(draw, SIZE_WORDS[wish.size])]), wish.colour]


def _arranged(
    draw: np.random.Generator, scene: Scene, phrases: list[str], from_left: bool
) -> tuple[str, dict[str, Any]]:
    """The solids in words, and the order that the words ask for."""
    if len(phrases) == 1:
        return phrases[0], {}
    vague = draw.random() < 0.3 and not (from_left and scene.arrangement == "depth")
    order = draw.permutation(len(phrases)) if not from_left else np.argsort([thing.x for thing in scene.things])
    listed = [phrases[i] for i in order]
    if len(phrases) == 2:
        if vague:
            return _one(draw, BESIDE).format(*listed), {}
        if scene.arrangement == "depth":
            return _one(draw, FRONT).format(*phrases), {"in_front_of": ((0, 1),)}
        return _one(draw, LEFT).format(*phrases), {"left_of": ((0, 1),)}
    if vague:
        return _one(draw, TOGETHER).format(*listed), {}
    if draw.random() < 0.5:
        return _one(draw, THREE).format(*phrases), {"left_of": ((0, 1), (1, 2))}
    first, last = (0, 2) if draw.random() < 0.5 else (2, 0)
    return _one(draw, BETWEEN).format(phrases[first], phrases[1], phrases[last]), {"between": (1, 0, 2)}


def _framed(draw: np.random.Generator, text: str, ground: str | None, light: str | None) -> str:
    where = "" if ground is None else " " + _one(draw, GROUND_WORDS[ground])
    when = "" if light is None else _one(draw, LIGHT_WORDS[light])
    opening = _one(draw, OPENINGS)
    if when and draw.random() < 0.25:
        return f"{when}, {opening}{text}{where}"
    comma = "," if draw.random() < 0.5 else ""
    return f"{opening}{text}{where}{comma} {when}" if when else f"{opening}{text}{where}"


def vocabulary() -> tuple[str, ...]:
    """All words and punctuation of the grammar, sorted."""
    return tuple(sorted({word for phrase in _phrases() for word in re.findall(r"[a-z]+|,", phrase)}))


def _phrases() -> Iterator[str]:
    for nouns in NOUNS.values():
        yield from (word for pair in nouns for word in pair)
    for table in (SIZE_WORDS, GROUND_WORDS, LIGHT_WORDS):
        yield from (phrase for phrases in table.values() for phrase in phrases)
    yield from (
        *COLOURS,
        *NUMBERS.values(),
        *OPENINGS,
        *ALIKE,
        *LEFT,
        *FRONT,
        *BESIDE,
        *THREE,
        *TOGETHER,
        *BETWEEN,
        "a an",
    )


def _one(draw: np.random.Generator, options: tuple[_Option, ...]) -> _Option:
    return options[int(draw.integers(len(options)))]
