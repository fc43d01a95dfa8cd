"""Edits of scenes: a scene, an instruction, the scene that it asks for, and what an edited image must show.

An edit is a pure function of its number. What it does not touch keeps place, rotation, ground and light, so the two
renderings are equal wherever the edit changes nothing. Every edit has an inverse, drawn from the same two renderings.
torch is not imported here, so that the rendering processes start fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import pi
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from var_toolkit.still_life.captions import GROUND_WORDS, LIGHT_WORDS, NOUNS, SIZE_WORDS, Wish, unseen
from var_toolkit.still_life.scene_drawing import foot_at, seen_at
from var_toolkit.still_life.scenes import COLOURS, GROUNDS, HELD_OUT, LIGHTS, SIZES, SOLIDS, Scene, Thing, scene_of

if TYPE_CHECKING:
    from var_toolkit.still_life.scene_detector import Found, FoundScene

KINDS = ("colour", "solid", "size", "add", "remove", "ground", "light")
INVERSE = {"add": "remove", "remove": "add"}  # the others are their own
_FIRST = {"train": 0, "validation": 2**40, "held-out": 2**41}  # so that splits differ in what they change too
GAP = (1.22, 1.4)  # from a solid to one that is added beside it, in units
MOST_X = 1.4  # of a solid that is added, so that it is whole in the image
TRIED = 200  # words for an edit among which an unseen instruction is looked for
APART = 0.02  # of the image's side: solids closer than this are neither left nor right of one another
NEAR = 0.08  # of the image's side: a solid that is found as near as this is the one that stands there

COLOUR = (
    "make {0} {1}",
    "paint {0} {1}",
    "turn {0} {1}",
    "colour {0} {1}",
    "change the colour of {0} to {1}",
)
SOLID = (
    "turn {0} into {1}",
    "change {0} into {1}",
    "replace {0} with {1}",
    "replace {0} by {1}",
    "swap {0} for {1}",
)
SIZE = {
    "large": ("make {0} larger", "make {0} bigger", "enlarge {0}", "make {0} large", "make {0} big"),
    "small": ("make {0} smaller", "shrink {0}", "make {0} small", "make {0} tiny"),
}
REMOVE = ("remove {0}", "delete {0}", "erase {0}", "take away {0}", "take {0} away")
ADD = ("add {0} {1}", "put {0} {1}", "place {0} {1}")
PLACES = {
    "left": ("to the left of {0}", "left of {0}", "on the left of {0}"),
    "right": ("to the right of {0}", "right of {0}", "on the right of {0}"),
    "front": ("in front of {0}",),
    "behind": ("behind {0}",),
    "between": ("between {0} and {1}", "in the middle, between {0} and {1}"),
}
PLACES_OF_IT = {
    "left": ("to its left", "to the left of it", "on its left"),
    "right": ("to its right", "to the right of it", "on its right"),
    "front": ("in front of it",),
    "behind": ("behind it",),
}
# Of the phrases of captions, "on sand", and of what follows their "on".
GROUND = ("put everything {0}", "put it {0}", "show it {0}", "move everything to {1}", "move to {1}", "move it to {1}")
LIGHT = ("make it {1}", "turn it to {1}", "change the light to {1}", "show it {0}")
TIMES = {"noon": ("noon", "day"), "dusk": ("dusk", "sunset", "evening"), "night": ("night",)}
PLACE_WORDS = {2: ("left", "right"), 3: ("left", "middle", "right")}  # of solids that are alike


_Option = TypeVar("_Option")


@dataclass(frozen=True)
class Edit:
    """What is changed, and the scenes before and after.

    `touched` is the number of the solid that is changed, in the scene that has it; None if the ground or the light is.
    """

    kind: str
    before: Scene
    after: Scene
    touched: int | None

    @property
    def inverse(self) -> Edit:
        """The edit that undoes this one."""
        return Edit(INVERSE.get(self.kind, self.kind), self.after, self.before, self.touched)

    @property
    def untouched(self) -> tuple[Thing, ...]:
        """The solids that stay as they are."""
        larger = self.before if self.kind == "remove" else self.after
        return tuple(thing for number, thing in enumerate(larger.things) if number != self.touched)


@dataclass(frozen=True)
class Instruction:
    """An instruction, and what it says of a solid that is to be added."""

    text: str
    added: Wish | None = None


class EditVerdict(NamedTuple):
    """Whether an edited image shows what was asked for, and whether it shows all the rest as it was."""

    followed: bool
    kept: bool


def edit_of(number: int, split: str = "train") -> Edit:
    """An edit of scene `number` of a split. ValueError for a number or a split that `scene_of` does not know.

    No solid becomes a pair of colour and solid that is held out.
    """
    scene = scene_of(number, split)
    draw = np.random.Generator(np.random.Philox(key=[_FIRST[split] + number, 131]))
    # Solids that are alike cannot be told apart by words once one of them is missing.
    alike = len(scene.things) > 1 and len({(one.solid, one.colour) for one in scene.things}) == 1
    kinds = ["colour", "solid", "size", "ground", "light"]
    if not alike:
        # Adding and removing are the hardest and need more pairs.
        kinds += 2 * ["add" if len(scene.things) == 1 else "remove"]
    kind = _one(draw, kinds)
    if kind == "ground":
        return Edit(kind, scene, replace(scene, ground=_other(draw, GROUNDS, scene.ground)), None)
    if kind == "light":
        return Edit(kind, scene, replace(scene, light=_other(draw, LIGHTS, scene.light)), None)
    if kind == "add":
        return _with_another(draw, scene)
    touched = int(draw.integers(len(scene.things)))
    if kind == "remove":
        rest = scene.things[:touched] + scene.things[touched + 1 :]
        return Edit(kind, scene, replace(scene, things=rest, arrangement=_arrangement(scene, len(rest))), touched)
    things = list(scene.things)
    things[touched] = _changed(draw, kind, things, touched)
    return Edit(kind, scene, replace(scene, things=tuple(things)), touched)


def _arrangement(scene: Scene, things: int) -> str:
    return "single" if things == 1 else scene.arrangement


def _changed(draw: np.random.Generator, kind: str, things: list[Thing], touched: int) -> Thing:
    """A solid of a scene with another colour, solid or size, and unlike all others."""
    thing, others = things[touched], things[:touched] + things[touched + 1 :]
    if kind == "size":
        return replace(thing, size=_other(draw, tuple(SIZES), thing.size))
    while True:
        if kind == "colour":
            found = replace(thing, colour=_other(draw, COLOURS, thing.colour))
        else:
            found = replace(thing, solid=_other(draw, SOLIDS, thing.solid))
        if _fits(found, others):
            return found


def _fits(thing: Thing, others: list[Thing]) -> bool:
    look = (thing.colour, thing.solid)
    return look not in HELD_OUT and all(look != (one.colour, one.solid) for one in others)


def _with_another(draw: np.random.Generator, scene: Scene) -> Edit:
    """A single solid gets another one beside it, on a side on which there is enough ground."""
    (there,) = scene.things
    gap = float(draw.uniform(*GAP))
    x = _one(draw, [x for x in (there.x - gap, there.x + gap) if abs(x) <= MOST_X])
    y, turn = there.y + float(draw.uniform(-0.2, 0.2)), float(draw.uniform(0, 2 * pi))
    while True:
        new = Thing(_one(draw, SOLIDS), _one(draw, COLOURS), _one(draw, tuple(SIZES)), x, y, turn)
        if _fits(new, [there]):
            break
    things = (new, there) if x < there.x else (there, new)
    return Edit("add", scene, replace(scene, things=things, arrangement="row"), things.index(new))


def pair_of(number: int, split: str = "train", epoch: int = 0) -> Edit:
    """The edit that a pair shows in an epoch: that of its number, or its inverse, in turns."""
    edit = edit_of(number, split)
    return edit.inverse if inverted(number, epoch) else edit


def inverted(number: int, epoch: int) -> bool:
    """Whether a pair shows the inverse of its edit in an epoch."""
    return (number + epoch) % 2 == 1


def instruction(edit: Edit, seed: int) -> Instruction:
    """An instruction for an edit; the seed, at least 0, chooses the words. It names exactly one solid that is there."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 132]))
    after, touched = edit.after, edit.touched
    if touched is None:
        return Instruction(_of_all(draw, edit))
    if edit.kind == "add":
        thing = after.things[touched]
        wish = Wish(
            thing.solid,
            thing.colour if draw.random() < 0.85 else "",
            thing.size if draw.random() < 0.6 else None,
        )
        return Instruction(_one(draw, ADD).format(_described(draw, wish), _place(draw, edit)), wish)
    single = len(edit.before.things) == 1
    named = "it" if single and draw.random() < 0.3 else _named(draw, edit.before, touched)
    if edit.kind == "remove":
        return Instruction(_one(draw, REMOVE).format(named))
    thing = after.things[touched]
    if edit.kind == "colour":
        return Instruction(_one(draw, COLOUR).format(named, thing.colour))
    if edit.kind == "size":
        return Instruction(_one(draw, SIZE[thing.size]).format(named))
    return Instruction(_one(draw, SOLID).format(named, _described(draw, Wish(thing.solid, "", None))))


def _of_all(draw: np.random.Generator, edit: Edit) -> str:
    if edit.kind == "ground":
        phrase = _one(draw, GROUND_WORDS[edit.after.ground])
        return _one(draw, GROUND).format(phrase, phrase.removeprefix("on "))
    light = edit.after.light
    return _one(draw, LIGHT).format(_one(draw, LIGHT_WORDS[light]), _one(draw, TIMES[light]))


def _described(draw: np.random.Generator, wish: Wish) -> str:
    """A solid that is not there yet: "a small red ball"."""
    size = [] if wish.size is None else [_one(draw, SIZE_WORDS[wish.size])]
    words = [*size, *([wish.colour] if wish.colour else []), _one(draw, NOUNS[wish.solid])[0]]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _named(draw: np.random.Generator, scene: Scene, number: int) -> str:
    """A solid that is there, in words that fit no other of the scene."""
    things, thing = scene.things, scene.things[number]
    others = things[:number] + things[number + 1 :]
    ways = [(False, False), (False, True), (True, False), (True, True)]  # whether size and colour are told
    clear = [way for way in ways if not any(_alike(one, thing, *way) for one in others)]
    noun = _one(draw, NOUNS[thing.solid])[0]
    if not clear:
        return f"the {PLACE_WORDS[len(things)][number]} {noun}"
    sized, coloured = clear[0] if draw.random() < 0.6 else _one(draw, clear)
    size = [_one(draw, SIZE_WORDS[thing.size])] if sized else []
    return " ".join(["the", *size, *([thing.colour] if coloured else []), noun])


def _alike(one: Thing, other: Thing, sized: bool, coloured: bool) -> bool:
    return (
        one.solid == other.solid
        and (not sized or one.size == other.size)
        and (not coloured or one.colour == other.colour)
    )


def relation(edit: Edit) -> tuple[str, tuple[int, ...]]:
    """Where a solid is added: a key of `PLACES`, and the numbers of the solids that it names, in the scene after."""
    assert edit.touched is not None
    at, last = edit.touched, len(edit.after.things) - 1
    if edit.after.arrangement == "depth":
        return ("front", (1,)) if at == 0 else ("behind", (0,))
    if at == 0:
        return "left", (1,)
    return ("right", (at - 1,)) if at == last else ("between", (at - 1, at + 1))


def _place(draw: np.random.Generator, edit: Edit) -> str:
    name, anchors = relation(edit)
    if len(edit.before.things) == 1 and draw.random() < 0.4:
        return _one(draw, PLACES_OF_IT[name])
    there = [edit.before.things.index(edit.after.things[anchor]) for anchor in anchors]
    return _one(draw, PLACES[name]).format(*(_named(draw, edit.before, number) for number in there))


def training_instruction(number: int, epoch: int) -> str:
    """The instruction of a training pair in an epoch: another one in each, and none that is `unseen`."""
    return _first(pair_of(number, "train", epoch), 4096 * number + 64 * (epoch % 64), False).text


def unseen_instruction(edit: Edit, seed: int) -> Instruction:
    """An instruction that no training pair is shown with; of an edit that has none, any."""
    return _first(edit, 4096 * seed, True)


def _first(edit: Edit, seed: int, wanted: bool) -> Instruction:
    """The first instruction of an edit from a seed on that is unseen, or that is not; the first of all if none is."""
    found = (instruction(edit, one) for one in range(seed, seed + TRIED))
    return next((one for one in found if unseen(one.text) == wanted), instruction(edit, seed))


def vocabulary() -> tuple[str, ...]:
    """All words and punctuation of the instructions, sorted."""
    return tuple(sorted({word for phrase in _phrases() for word in re.findall(r"[a-z]+|,", phrase)}))


def _phrases() -> Iterator[str]:
    for nouns in NOUNS.values():
        yield from (singular for singular, _ in nouns)
    for table in (SIZE, PLACES, PLACES_OF_IT, SIZE_WORDS, GROUND_WORDS, LIGHT_WORDS, TIMES):
        yield from (phrase for phrases in table.values() for phrase in phrases)
    for words in (COLOURS, COLOUR, SOLID, REMOVE, ADD, GROUND, LIGHT, *PLACE_WORDS.values()):
        yield from words
    yield "a an the it"


def judge_edit(edit: Edit, asked: Instruction, shown: FoundScene) -> EditVerdict:
    """Whether an image shows the scene after an edit, by what a detector found in it.

    `kept`: every untouched solid is where it was and looks as it did, ground and light are as they were unless they are
    what is changed, and there is no further solid.
    """
    free = list(shown.things)
    kept = True
    for thing in edit.untouched:
        found = _standing_at(thing, free)
        if found is not None:
            free.remove(found)
        kept = kept and found is not None and _looks_like(found, thing)
    kept = kept and (edit.kind == "ground" or shown.ground == edit.before.ground)
    kept = kept and (edit.kind == "light" or shown.light == edit.before.light)
    if edit.touched is None:
        followed = getattr(shown, edit.kind) == getattr(edit.after, edit.kind)
        return EditVerdict(followed, kept and not free)
    if edit.kind == "remove":
        left = _standing_at(edit.before.things[edit.touched], free)
        return EditVerdict(left is None, kept and len(free) == (left is not None))
    if edit.kind == "add":
        assert asked.added is not None
        followed = any(_is(one, asked.added) and _placed(one, edit) for one in free)
    else:
        thing = edit.after.things[edit.touched]
        there = _standing_at(thing, free)
        followed = there is not None and _looks_like(there, thing)
    return EditVerdict(followed, kept and len(free) <= 1)


def _standing_at(thing: Thing, found: list[Found]) -> Found | None:
    """What was found nearest to where a solid stands; None if nothing is near."""
    (x, _), foot = seen_at(thing), foot_at(thing)
    near = [one for one in found if max(abs(one.x - x), abs(one.foot - foot)) <= NEAR]
    return min(near, key=lambda one: abs(one.x - x) + abs(one.foot - foot), default=None)


def _looks_like(found: Found, thing: Thing) -> bool:
    return (found.solid, found.colour, found.size) == (thing.solid, thing.colour, thing.size)


def _is(found: Found, wish: Wish) -> bool:
    return found.solid == wish.solid and wish.colour in ("", found.colour) and wish.size in (None, found.size)


def _placed(found: Found, edit: Edit) -> bool:
    """Whether a solid that was added stands where the instruction says."""
    name, anchors = relation(edit)
    things = [edit.after.things[anchor] for anchor in anchors]
    columns, foot = [seen_at(one)[0] for one in things], foot_at(things[0])
    return {
        "left": found.x + APART < columns[0],
        "right": found.x - APART > columns[0],
        "front": found.foot > foot + APART,
        "behind": found.foot < foot - APART,
        "between": min(columns) + APART < found.x < max(columns) - APART,
    }[name]


def _other(draw: np.random.Generator, names: tuple[str, ...], one: str) -> str:
    return _one(draw, [name for name in names if name != one])


def _one(draw: np.random.Generator, options: tuple[_Option, ...] | list[_Option]) -> _Option:
    return options[int(draw.integers(len(options)))]
