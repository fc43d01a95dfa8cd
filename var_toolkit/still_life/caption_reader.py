"""What a caption of the grammar asks for, read back from its text, so that what a prompt shows can be judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from var_toolkit.still_life.captions import (
    ALIKE,
    BESIDE,
    BETWEEN,
    FRONT,
    GROUND_WORDS,
    LEFT,
    LIGHT_WORDS,
    NOUNS,
    NUMBERS,
    OPENINGS,
    SIZE_WORDS,
    THREE,
    TOGETHER,
    Caption,
    Wish,
)
from var_toolkit.still_life.scenes import COLOURS

# Templates of several solids, each with the fields of a caption as pairs or triples of its placeholders.
ORDERS: tuple[tuple[tuple[str, ...], dict[str, tuple[tuple[int, ...], ...]]], ...] = (
    (("{0}", *BESIDE, *TOGETHER), {}),
    (LEFT, {"left_of": ((0, 1),)}),
    (FRONT, {"in_front_of": ((0, 1),)}),
    (THREE, {"left_of": ((0, 1), (1, 2))}),
    (BETWEEN, {"between": ((1, 0, 2),)}),
)


def read_caption(text: str) -> Caption:
    """What a caption asks for; wishes are in the order of the text. ValueError of one line for other texts."""
    rest = " ".join(text.lower().removesuffix(".").split())
    light, rest = _cut(rest, LIGHT_WORDS, ("^{}, ", ",? {}$"))
    rest = re.sub(f"^({_either(OPENINGS)})", "", rest)
    ground, rest = _cut(rest, GROUND_WORDS, (" {}$",))
    wishes, orders = _several(rest) or _arranged(rest) or ((), {})
    if not wishes:
        raise ValueError(
            f"prompt {text!r} is not of the grammar of scenes, so nothing can judge what it asks for; "
            'write one such as "a red sphere to the left of a blue cube on sand"'
        )
    (between,) = orders.pop("between", (None,))
    return Caption(text, wishes, **orders, between=between, ground=ground, light=light)  # type: ignore[arg-type]


def _cut(text: str, words: Mapping[str, Iterable[str]], places: tuple[str, ...]) -> tuple[str | None, str]:
    """What one of some phrases means, and the text without it; None if none is there."""
    for meaning, phrases in words.items():
        for place in places:
            shorter = re.sub(place.format(f"({_either(phrases)})"), "", text)
            if shorter != text:
                return meaning, shorter
    return None, text


def _several(text: str) -> tuple[tuple[Wish, ...], dict[str, tuple[tuple[int, ...], ...]]] | None:
    found = re.fullmatch(f"({_either(NUMBERS.values())}) {_solid(plural=True)}({_either(ALIKE)})", text)
    if found is None:
        return None
    number = next(number for number, word in NUMBERS.items() if word == found[1])
    return (_wish(found["size"], found["colour"], found["noun"]),) * number, {}


def _arranged(text: str) -> tuple[tuple[Wish, ...], dict[str, tuple[tuple[int, ...], ...]]] | None:
    phrase = f"(?:an?) {_solid()}"
    for templates, orders in ORDERS:
        for template in templates:
            if not re.fullmatch(re.sub(r"\\{\d\\}", re.sub(r"\?P<\w+>", "?:", phrase), re.escape(template)), text):
                continue
            slots = [int(slot) for slot in re.findall(r"\{(\d)\}", template)]
            wishes = [_wish(one["size"], one["colour"], one["noun"]) for one in re.finditer(phrase, text)]
            at = {slot: place for place, slot in enumerate(slots)}
            return tuple(wishes), {
                name: tuple(tuple(at[slot] for slot in slots) for slots in told) for name, told in orders.items()
            }
    return None


def _solid(plural: bool = False) -> str:
    """A pattern of a solid in words, with groups size, colour and noun."""
    nouns = (pair[plural] for pairs in NOUNS.values() for pair in pairs)
    sizes = (word for words in SIZE_WORDS.values() for word in words)
    return f"(?:(?P<size>{_either(sizes)}) )?(?P<colour>{_either(COLOURS)}) (?P<noun>{_either(nouns)})"


def _wish(size: str | None, colour: str, noun: str) -> Wish:
    solid = next(solid for solid, pairs in NOUNS.items() if any(noun in pair for pair in pairs))
    told = next((meaning for meaning, words in SIZE_WORDS.items() if size in words), None)
    return Wish(solid, colour, told)


def _either(phrases: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))
