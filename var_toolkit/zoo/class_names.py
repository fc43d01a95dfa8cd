"""Class labels from what people type: a number, a name, a synonym or a synset."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from operator import index
from typing import SupportsIndex

NO_CLASS = "none"


class ClassNames:
    """The names of the classes of one data set; class i has the names `names[i]`, the first for display."""

    def __init__(self, names: list[list[str]]) -> None:
        self._names = names
        self._numbers: dict[str, list[int]] = {}
        for number, synonyms in enumerate(names):
            for name in synonyms:
                self._numbers.setdefault(name.lower(), []).append(number)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, label: int) -> str:
        """The display name of a label."""
        return "no class" if label == len(self) else self._names[label][0]

    def resolve(self, wanted: SupportsIndex | str | None) -> int:
        """The label that a number or a name means; ValueError with the nearest names if there is none.

        None, or "none", is the null class behind all others, as which models learnt to draw without a label.
        """
        if wanted is None or wanted == NO_CLASS:
            return len(self)
        if not isinstance(wanted, str) or wanted.strip().lstrip("+-").isdigit():
            number = int(wanted) if isinstance(wanted, str) else index(wanted)
            if not 0 <= number < len(self):
                raise ValueError(f"class {number} does not exist; classes are 0 to {len(self) - 1}")
            return number
        found = self._numbers.get(wanted.strip().lower(), [])
        if len(found) == 1:
            return found[0]
        if found:
            choices = ", ".join(f"{number} ({', '.join(self._names[number][:2])})" for number in found)
            raise ValueError(f"class {wanted!r} is the name of several classes; give the number: {choices}")
        nearest = get_close_matches(wanted.strip().lower(), self._numbers, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(name) for name in nearest)}? " if nearest else ""
        raise ValueError(f"class {wanted!r} is not known; {hint}numbers 0 to {len(self) - 1} work too")


@cache
def class_names(data_set: str | None, count: int) -> ClassNames:
    """The names of a data set with `count` classes: "imagenet", "still-lifes", or None for plain numbers."""
    if data_set == "imagenet":
        rows = json.loads((files("var_toolkit.zoo") / "imagenet_classes.json").read_text())
        return ClassNames([[*description.split(", "), synset] for synset, description in rows])
    if data_set == "still-lifes":
        from var_toolkit.data.still_life_names import class_name

        return ClassNames([[class_name(label)] for label in range(count)])
    return ClassNames([[f"class {label}"] for label in range(count)])
